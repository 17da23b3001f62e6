"""What calls with an option are made on, where it is not what others of the shape are made on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

import cuattn
from cuattn.bench import ours
from cuattn.bench.ours import Run

from .feature_cases import ALONE, HEAD_DIM_V, VARLEN, Feature, lengths

__all__ = ["prepare"]


def prepare(q: Any, k: Any, v: Any, feature: Feature, scheme: Any) -> Run:
    """Bind a scheme and an option to float16 CuPy arrays [B, H, N, D]."""
    case = feature.case
    if feature.name in (VARLEN, ALONE):
        packed = [_packed(x) for x in (q, k, v)]
        call = _one_call if feature.name == VARLEN else _calls
        return Run(kernel=None, end_to_end=call(packed, feature, scheme))
    if feature.name == "dv-128":
        v = v[..., :HEAD_DIM_V].copy()
    return ours.prepare(q, k, v, case, scheme, **feature.options())


def _packed(x: Any) -> Any:
    """Return the tokens of all sequences end to end, [token, head, head_dim]."""
    return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3])


def _bounds(feature: Feature) -> Any:
    return np.concatenate([[0], lengths(feature.case).cumsum()]).astype(np.int32)


def _one_call(packed: list[Any], feature: Feature, scheme: Any) -> Any:
    """Return the call of all sequences, whose lengths lie in memory of the GPU."""
    import cupy

    bounds, longest = cupy.asarray(_bounds(feature)), int(lengths(feature.case).max())
    options = {
        **dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), bounds),
        **dict.fromkeys(("max_seqlen_q", "max_seqlen_k"), longest),
        "out": cupy.empty_like(packed[0]),
        "is_causal": feature.case.is_causal,
        "scheme": scheme,
    }
    return lambda: cuattn.attention(*packed, **options)


def _calls(packed: list[Any], feature: Feature, scheme: Any) -> Any:
    """Return what makes a call for each sequence."""
    import cupy

    bounds, out = _bounds(feature), cupy.empty_like(packed[0])
    parts = [[x[begin:end][None] for x in (*packed, out)] for begin, end in pairwise(bounds)]
    options = {"is_causal": feature.case.is_causal, "scheme": scheme, "layout": "NHD"}

    def run() -> None:
        for q, k, v, o in parts:
            cuattn.attention(q, k, v, out=o, **options)

    return run
