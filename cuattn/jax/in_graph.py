"""`cuattn.attention` as an operation of XLA's graph.

Two ways lead there. By XLA's foreign function interface cuattn works on XLA's own buffers, on XLA's
stream, and nothing is copied or waited for. By `jax.pure_callback`, which is made of public
functions of JAX's only, operands and result travel through host memory.
"""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..attention import attention
from ..common.typed_json import typed
from ..scheme import Scheme
from .xla_ffi import Call, Memory, handler

__all__ = ["Static", "in_graph"]

_TARGET = "cuattn_attention"


class Static(NamedTuple):
    """What of a call is known when it is traced.

    Attributes
    ----------
    operands : tuple of str
        Names of the arrays, in their order: "q", "k", "v", and those of `cuattn.attention` besides.
    """

    operands: tuple[str, ...]
    scheme: str | Scheme
    scale: float | None
    is_causal: bool
    window_size: tuple[int, int]
    return_lse: bool

    @property
    def options(self) -> dict[str, Any]:
        """Options of `cuattn.attention`."""
        options = self._asdict()
        del options["operands"]
        return {**options, "layout": "NHD"}

    def text(self) -> str:
        """Return all of it as JSON, for XLA to keep."""
        scheme = asdict(self.scheme) if isinstance(self.scheme, Scheme) else self.scheme
        return json.dumps(self._replace(scheme=scheme)._asdict())  # type: ignore[arg-type]

    @staticmethod
    @lru_cache
    def of(text: str) -> Static:
        """Return what `text` has made."""
        fields = json.loads(text)
        scheme = fields["scheme"]
        if not isinstance(scheme, str):
            fields["scheme"] = typed(scheme, Scheme, "scheme")
        for name in ("operands", "window_size"):
            fields[name] = tuple(fields[name])
        return Static(**fields)


def in_graph(static: Static, operands: tuple[Any, ...], by_callback: bool) -> Any:
    """Return the output, and the log-sum-exp if it is wanted, where JAX traces or runs.

    Parameters
    ----------
    static : Static
    operands : tuple of jax.Array
    by_callback : bool
        Whether by `jax.pure_callback`.
    """
    q, v = operands[0], operands[2]
    batch, rows, heads, _ = q.shape
    shapes = [jax.ShapeDtypeStruct((batch, rows, heads, v.shape[3]), q.dtype)]
    if static.return_lse:
        shapes.append(jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32))
    if by_callback:
        call = partial(_by_callback, static)
        return jax.pure_callback(call, shapes, *operands, vmap_method="broadcast_all")
    _register()
    call = jax.ffi.ffi_call(_TARGET, shapes, vmap_method="broadcast_all")
    return call(*operands, static=static.text())


@lru_cache
def _register() -> None:
    """Register the target, for as long as the process runs."""
    for platform, function in (("cpu", _on_host), ("CUDA", _on_gpu)):
        capsule, pointer = handler(function)
        _kept.append(pointer)
        jax.ffi.register_ffi_target(_TARGET, capsule, platform=platform)


# XLA keeps addresses of these.
_kept: list[Any] = []


# ---- by the foreign function interface


def _on_host(call: Call) -> None:
    given, results = ([_numpy(x) for x in some] for some in (call.given, call.results))
    _attend(Static.of(call.texts["static"]), given, results, np)


def _on_gpu(call: Call) -> None:
    import cupy

    if not math.prod(call.results[0].shape):
        return  # nothing to write, and no address that says which GPU it is
    device = cupy.cuda.runtime.pointerGetAttributes(call.results[0].address).device
    with cupy.cuda.Device(device), _cupys(call.stream):
        given, results = ([_cupy(x, device) for x in some] for some in (call.given, call.results))
        _attend(Static.of(call.texts["static"]), given, results, cupy)


def _attend(static: Static, given: list[Any], results: list[Any], xp: Any) -> None:
    """Attend arrays, and write the result to those of XLA."""
    arrays = _merged(dict(zip(static.operands, given, strict=True)), xp)
    out = results[0].reshape(-1, *results[0].shape[-3:])
    found = attention(**arrays, **static.options, out=out)
    if static.return_lse:
        results[1][...] = found[1].reshape(results[1].shape)


def _merged(arrays: Mapping[str, Any], xp: Any) -> dict[str, Any]:
    """Make one batch of the axes that `jax.vmap` has put before an operand's own, and its batch."""
    q = arrays["q"]
    mapped, batch = q.shape[:-4], q.shape[-4]
    if not mapped:
        return dict(arrays)
    merged = {}
    for name, x in arrays.items():
        own = x.shape[len(mapped) + 1 :]
        if x.shape[len(mapped)] != batch:
            # Of one mask for the whole batch; by its bits, for CuPy copies no bfloat16.
            bits = x.view(f"u{x.dtype.itemsize}")
            x = xp.broadcast_to(bits, (*mapped, batch, *own)).copy().view(x.dtype)
        merged[name] = x.reshape(-1, *own)
    return merged


def _numpy(x: Memory) -> Any:
    dtype = np.dtype(jnp.dtype(x.dtype))
    memory = (ctypes.c_char * (math.prod(x.shape) * dtype.itemsize)).from_address(x.address)
    return np.ndarray(x.shape, dtype, memory)


def _cupys(stream: Any) -> Any:
    import cupy

    return cupy.cuda.Stream.from_external(stream)


def _cupy(x: Memory, device: int) -> Any:
    import cupy

    dtype = np.dtype(jnp.dtype(x.dtype))
    size = math.prod(x.shape) * dtype.itemsize
    memory = cupy.cuda.UnownedMemory(x.address, size, None, device)
    return cupy.ndarray(x.shape, dtype, cupy.cuda.MemoryPointer(memory, 0))


# ---- by jax.pure_callback


def _by_callback(static: Static, *operands: Any) -> list[Any]:
    """Attend arrays in host memory, on the GPU if JAX has one, and bring the result back."""
    given = [np.asarray(x) for x in operands]
    q, v = given[0], given[2]
    results = [np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)]
    if static.return_lse:
        *lead, rows, heads, _ = q.shape
        results.append(np.empty((*lead, heads, rows), np.float32))
    if jax.default_backend() != "gpu":
        _attend(static, given, results, np)
        return results
    import cupy

    on_gpu = [_sent(cupy, x) for x in given]
    there = [_sent(cupy, x) for x in results]
    _attend(static, on_gpu, there, cupy)
    return [_bits(x).get().view(x.dtype) for x in there]


def _sent(cupy: Any, x: Any) -> Any:
    return cupy.asarray(_bits(np.ascontiguousarray(x))).view(x.dtype)


def _bits(x: Any) -> Any:
    """Return an array as one of a type that CuPy copies to and fro, which bfloat16 is not."""
    return x.view(np.uint16) if x.dtype == jnp.bfloat16 else x
