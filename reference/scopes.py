"""The scopes that share a scale: which one a token is in, and back from scopes to elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCOPES", "THREADS", "Scope", "scope_of_tokens", "spread"]

# Scales of "sorted" tokens are repeated for each: which share one is not known beforehand.
Scope: TypeAlias = Literal[
    "token", "group", "block", "thread_q", "thread_k", "sorted", "channel", "tensor"
]
Real = TypeVar("Real", np.float32, np.float64)
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class Threads:
    """SageAttention2's scopes: tokens of the same thread of an mma.m16n8, in tiles of several."""

    tile: int
    scopes: int
    neighbours: int

    def of(self, token: NDArray[np.intp]) -> NDArray[np.intp]:
        return token // self.tile * self.scopes + token // self.neighbours % self.scopes


# Of 32 rows of Q those that are 8 apart; of 64 keys the pairs that are 8 apart (arXiv 2411.10958,
# section 3.2).
THREADS = {"thread_q": Threads(32, 8, 1), "thread_k": Threads(64, 4, 2)}


def scope_of_tokens(n: int, scope: Scope, block: int) -> tuple[NDArray[np.intp], int]:
    """Return the number of each token's scope, and how many there are."""
    token = np.arange(n)
    if scope == "block":
        return token // block, -(-n // block)
    if scope in THREADS:
        threads = THREADS[scope]
        return threads.of(token), -(-n // threads.tile) * threads.scopes
    return token, n


def spread(of_scope: NDArray[Real], scope: Scope, block: int, n: int) -> NDArray[Real]:
    """Bring values of scopes to a shape that broadcasts against [batch, head, token, head_dim]."""
    if scope == "channel":
        return of_scope[:, :, None, :]
    if scope == "tensor":
        return of_scope[:, :, None, None]
    of_token = of_scope[:, :, scope_of_tokens(n, scope, block)[0]]
    return np.repeat(of_token, block, axis=3) if scope == "group" else of_token[..., None]
