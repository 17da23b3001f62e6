"""What is measured on, in float16 on the GPU: noise for times, distributions for errors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ..common.sizes import ceil_div
from ..reference import distributions
from .cases import Case

# Keys and values repeat after this many tokens, which no cache of a GPU can make use of.
PERIOD = 8192


def noise(case: Case, seed: int) -> Any:
    """Return normal noise like Q, [B, H, N, D]; the batch repeats one element."""
    import cupy

    sizes = (1, case.num_q_heads, case.seqlen_q, case.head_dim)
    return cupy.tile(_drawn(sizes, seed), (case.batch, 1, 1, 1))


def token_noise(case: Case, tokens: int, seed: int) -> Any:
    """Return normal noise of tokens of K or V, [B, Hkv, tokens, D]; the batch repeats one."""
    import cupy

    sizes = (1, case.num_kv_heads, min(tokens, PERIOD), case.head_dim)
    times = ceil_div(tokens, PERIOD)
    return cupy.tile(_drawn(sizes, seed), (case.batch, 1, times, 1))[:, :, :tokens]


def inputs(case: Case, distribution: str = "normal") -> tuple[Any, Any, Any]:
    """Return float16 CuPy arrays q, k, v of a named distribution."""
    import cupy

    sizes = asdict(case)
    del sizes["is_causal"]
    drawn = distributions.make(distribution, **sizes)
    q, k, v = (cupy.asarray(x.astype(np.float16)) for x in drawn)
    return q, k, v


def _drawn(sizes: tuple[int, ...], seed: int) -> Any:
    import cupy

    drawn = np.random.default_rng(seed).standard_normal(sizes, dtype=np.float32)
    return cupy.asarray(drawn).astype(cupy.float16)
