"""Exact attention in float64 on the GPU: `cuattn.reference.exact`, fast enough for a grid."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ..common.typed_json import finite
from ..records.record import Accuracy
from ..reference import exact, metrics
from .cases import Case

BLOCK = 2048


def attention(q: Any, k: Any, v: Any, *, is_causal: bool) -> Any:
    """Return the output for CuPy arrays [B, H, N, D] of any float type, as float64 on the GPU."""
    import cupy

    batch, heads, seqlen_q, head_dim = q.shape
    seqlen_kv = k.shape[2]
    group = heads // k.shape[1]
    o = cupy.empty((batch, heads, seqlen_q, v.shape[3]), dtype=cupy.float64)
    key = cupy.arange(seqlen_kv)
    for b, h in np.ndindex(batch, heads):
        keys, values = (x[b, h // group].astype(cupy.float64) for x in (k, v))
        for first in range(0, seqlen_q, BLOCK):
            rows = q[b, h, first : first + BLOCK].astype(cupy.float64)
            s = rows @ keys.T / np.sqrt(head_dim)
            if is_causal:
                query = cupy.arange(first, first + len(rows)) + seqlen_kv - seqlen_q
                s[key > query[:, None]] = -np.inf
            p = cupy.exp(s - s.max(axis=1, keepdims=True))
            o[b, h, first : first + BLOCK] = p @ values / p.sum(axis=1, keepdims=True)
    return o


def errors(o: Any, wanted: Any, case: Case, name: str, scheme: str, family: str) -> Accuracy:
    """Return the row of an output's errors.

    Parameters
    ----------
    o : array
        Of any library, on the GPU.
    wanted : ndarray of float64
        What `attention` returned, in host memory.
    case : Case
    name : str
        Of the distribution.
    scheme, family : str
    """
    import cupy

    got = cupy.from_dlpack(o).astype(cupy.float64).get()
    return Accuracy(
        **asdict(case),
        scheme=scheme,
        family=family,
        distribution=name,
        metrics=finite(dict(metrics.metrics(got, wanted))),
    )


def check() -> None:
    """Compare with the reference on a small input.

    Raises
    ------
    RuntimeError
        If the two differ by more than the rounding of float64.
    """
    import cupy

    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 96, 64)) for _ in range(3))
    for is_causal in (False, True):
        wanted, _ = exact.attention(q, k, v, is_causal=is_causal)
        got = attention(*(cupy.asarray(x) for x in (q, k, v)), is_causal=is_causal).get()
        # Sums of 64 and 96 products of about 1, each good to 1e-16.
        worst = float(np.abs(got - wanted).max())
        if not worst < 1e-13:
            raise RuntimeError(f"float64 attention on the GPU is off by {worst} from the reference")
