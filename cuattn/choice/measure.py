"""How wrong a scheme is on given inputs, measured on the GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays.device import gpu_status
from ..arrays.host import HostArray, heads_first, to_host
from ..attention import attention
from ..common.public import public
from ..errors import ArgumentError
from ..presets import resolve
from ..reference import attribute, exact
from ..reference.arrays import Progress, Shape
from ..reference.by_row import RowErrors
from ..reference.masking import operations
from ..reference.metrics import metrics
from ..reference.rounding import HalfType
from ..scheme import Scheme
from .cache_error import CacheErrorReport, check_options, measure_cache
from .error_report import ErrorReport
from .progress import Stages
from .score_options import ScoreOptions, refuse_options
from .timing import ColdL2, time_gpu

__all__ = ["CacheErrorReport", "ErrorReport", "measure_error"]

WARMUP_CALLS = 3
TIMED_CALLS = 20
# Written before each call that is timed: 0.3 ms on an H200, in which the host submits the call, so
# that its kernels follow each other; and none of its inputs is left in the L2 cache.
FILL_BYTES, FILLS = 128 << 20, 8


@overload
def measure_error(
    q: Any,
    k: Any,
    v: Any,
    *,
    scheme: str | Scheme = ...,
    scale: float | None = ...,
    is_causal: bool = ...,
    window_size: tuple[int, int] = ...,
    softcap: float = ...,
    sinks: Any = ...,
    attn_mask: Any = ...,
    alibi_slopes: Any = ...,
    layout: str = ...,
    by_source: bool = ...,
    progress: Progress | None = ...,
    reference: ArrayLike | None = ...,
    cache: None = ...,
) -> ErrorReport: ...


@overload
def measure_error(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = ...,
    is_causal: bool = ...,
    layout: str = ...,
    progress: Progress | None = ...,
    reference: ArrayLike | None = ...,
    cache: Mapping[str, Any],
) -> CacheErrorReport: ...


@public
def measure_error(
    q: Any,
    k: Any,
    v: Any,
    *,
    scheme: str | Scheme = "int8",
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    sinks: Any = None,
    attn_mask: Any = None,
    alibi_slopes: Any = None,
    layout: str = "HND",
    by_source: bool = True,
    progress: Progress | None = None,
    reference: ArrayLike | None = None,
    cache: Mapping[str, Any] | None = None,
) -> ErrorReport | CacheErrorReport:
    """Compare `cuattn.attention`, or a `KVCache`, with attention in float64 on the same inputs.

    Parameters
    ----------
    q : array of float [batch, num_q_heads, seqlen_q, head_dim]
    k, v : array of float [batch, num_kv_heads, seqlen_kv, head_dim]
        Arrays of CuPy, PyTorch, JAX or NumPy, of a type that `cuattn.attention` takes or float64,
        which is rounded to float32. Those in host memory are copied to the GPU if there is one;
        without, and for bfloat16 in host memory, which CuPy cannot hold, the scheme is emulated.
    scheme, scale, is_causal, layout
        As for `cuattn.attention`.
    window_size, softcap, sinks, attn_mask, alibi_slopes
        Likewise, but not with `cache`; the reference has them too.
    by_source : bool
        Also measure what Q, K, P and V cause alone. This takes five runs of the emulation, which is
        slow for long sequences.
    progress : callable, optional
        Called as ``progress(done, total)`` now and then.
    reference : array_like of float [batch, num_q_heads, seqlen_q, head_dim], optional
        The exact output (always in this order of axes) from `cuattn.reference.exact.attention`, for
        measuring several schemes on one input.
    cache : mapping of str to object, optional
        Measure `KVCache.attend` instead, with these options of `KVCache`, such as ``{"bits": 4}``,
        after one `append` of all keys. The report says how wrong tokens of each age are; there is
        no scheme then, and nothing by source.

    Returns
    -------
    ErrorReport, or CacheErrorReport with `cache`

    Raises
    ------
    ArgumentError
        If the arrays do not fit each other or an option makes no sense.
    UnsupportedError, CompileError
        If the GPU cannot run the scheme.
    """
    scheme = resolve(scheme)
    if cache is not None:
        check_options(cache)
    host = [to_host(x, name) for name, x in (("q", q), ("k", k), ("v", v))]
    values = [heads_first(x.values, layout) for x in host]
    shape = Shape.of(*(x.shape for x in values))
    options: dict[str, Any] = {"scale": scale, "is_causal": is_causal}
    given = {
        "window_size": window_size,
        "softcap": softcap,
        "sinks": sinks,
        "attn_mask": attn_mask,
        "alibi_slopes": alibi_slopes,
    }
    compute: HalfType = "bfloat16" if host[0].dtype == "bfloat16" else "float16"
    on_gpu = gpu_status()[0] == "ok" and all(x.dtype != "bfloat16" or x.on_gpu for x in host)

    output = (*values[0].shape[:3], values[2].shape[3])
    if reference is not None and np.shape(reference) != output:
        raise ArgumentError("reference.shape", np.shape(reference), f"{output}")

    if cache is not None:
        if scheme.name != "int8":
            raise ArgumentError("scheme", scheme.name, "left out with cache, which has a format")
        refuse_options(given, "left out with cache")
        usable = [_usable(x, copy, on_gpu) for x, copy in zip((q, k, v), host, strict=True)]
        return measure_cache(
            dict(zip("qkv", values, strict=True)),
            dict(zip("qkv", usable, strict=True)),
            cache,
            on_gpu=on_gpu,
            scale=scale,
            is_causal=is_causal,
            layout=layout,
            reference=None if reference is None else np.asarray(reference, np.float64),
            stages=partial(Stages, progress),
        )
    stages = Stages(progress, 1 + (reference is None) + 5 * by_source)
    arrays = [_usable(x, copy, on_gpu) for x, copy in zip((q, k, v), host, strict=True)]
    scores = ScoreOptions.of(given, on_gpu)
    of_call = {"scheme": scheme, "layout": layout, **options, **scores.of_call}
    call = partial(attention, *arrays, **of_call)
    options |= scores.of_reference
    # First, because it checks the arguments more strictly than what takes longer.
    o, seconds = _run(call, arrays[0], on_gpu)
    stages.skip()
    if reference is None:
        reference, _ = exact.attention(*values, **options, progress=stages.next())
    sources = None
    if by_source:
        sources = attribute.attribute(
            *values,
            **options,
            scheme=scheme,
            compute=compute,
            reference=reference,
            progress=stages.next(5),
        )
        sources = {name: sources[name] for name in attribute.SOURCES}
    o = heads_first(o, layout)
    tops = None
    if seconds and attn_mask is None:
        tops = operations(shape, is_causal, output[3], window_size) / seconds / 1e12
    return ErrorReport(
        scheme=scheme,
        shape=shape,
        is_causal=is_causal,
        backend="gpu" if on_gpu else "emulation",
        metrics=metrics(o, reference),
        by_source=sources,
        seconds=seconds,
        tops=tops,
        by_row=RowErrors.of(o, reference),
        options=tuple(scores.of_call),
    )


def _usable(x: Any, copy: HostArray, on_gpu: bool) -> Any:
    """Return an array that `attention` takes, on the GPU if there is one."""
    if copy.on_gpu:
        return x
    if copy.dtype == "float64":
        x = copy.values.astype(np.float32)
    if not on_gpu:
        return x
    import cupy

    return cupy.asarray(to_host(x, "array").values)


def _run(
    call: Callable[..., Any], q: Any, on_gpu: bool
) -> tuple[NDArray[np.floating], float | None]:
    """Return the output and, on a GPU, the median time in seconds that a call takes there."""
    if not on_gpu:
        return to_host(call(), "o").values, None
    import cupy

    with cupy.cuda.Device(q.__dlpack_device__()[1]):
        stream = cupy.cuda.get_current_stream()
        call = partial(call, stream=stream)
        o = to_host(call(), "o").values
        fill = partial(ColdL2, FILL_BYTES, FILLS)
        times = time_gpu({"call": call}, rounds=TIMED_CALLS, warmup=WARMUP_CALLS, flush=fill)
    return o, times["call"].ms * 1e-3
