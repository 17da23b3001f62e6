"""How the tokens of a cache are shared among workers that decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..common.sizes import ceil_div
from ..errors import ArgumentError
from .arrays import whole_counts

__all__ = ["BLOCK", "Piece", "partition"]

# Tokens that one step of P is for; workers share whole blocks.
BLOCK = 128

_MOST_TOKENS = 2**31 - 1

# Parts of a share that it may be rounded up by.
WHOLES = 16


@dataclass(frozen=True)
class Piece:
    """Neighbouring blocks of one head of K and V of a sequence."""

    sequence: int
    head: int
    blocks: range


def partition(lengths: ArrayLike, heads: int, workers: int) -> list[list[Piece]]:
    """Share the blocks of all heads among workers, equally: stream-K, as LeanAttention has it.

    The blocks of all sequences lie in one list, by sequence, head and block. Of its T blocks every
    worker takes `share_of` (T, workers) that follow each other, as long as there are any. So a
    worker has at most two heads that it does not have to itself.

    Parameters
    ----------
    lengths : array_like of int [batch]
        Tokens of each sequence.
    heads : int
        Heads of K and V.
    workers : int

    Returns
    -------
    list of list of Piece
        The pieces of each worker, in their order.

    Raises
    ------
    ArgumentError
        For lengths that are not whole numbers, or no heads or workers.
    """
    if heads < 0:
        raise ArgumentError("heads", heads, "at least 0")
    if workers < 1:
        raise ArgumentError("workers", workers, "at least 1")
    of_heads = [
        (b, h, ceil_div(int(n), BLOCK))
        for b, n in enumerate(whole_counts("lengths", lengths, np.size(lengths), _MOST_TOKENS))
        for h in range(heads)
    ]
    total = sum(blocks for _, _, blocks in of_heads)
    share = share_of(total, workers)
    shares: list[list[Piece]] = [[] for _ in range(workers)]
    done, worker = 0, 0
    for b, h, blocks in of_heads:
        first = 0
        while first < blocks:
            left = (worker + 1) * share - done
            if left == 0:
                worker += 1
                continue
            last = min(first + left, blocks)
            shares[worker].append(Piece(b, h, range(first, last)))
            done, first = done + last - first, last
    return shares


def share_of(blocks: int, workers: int) -> int:
    """Return the blocks of a worker, so many that the workers suffice.

    From 16 on they are rounded up, by a sixteenth at most, to a multiple of a power of two: then
    shares end where heads do if their lengths are powers of two.
    """
    share = ceil_div(blocks, workers)
    if share < WHOLES:
        return share
    granule = 1 << (share // WHOLES).bit_length() - 1
    return ceil_div(share, granule) * granule
