"""`quantize` and `quantize_kv`: from arrays to `QuantizedTensor`s."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays.caller import Caller, device_of, on_device
from .arrays.device import current_device, target
from .arrays.view import CPU, CUDA, Array, View, contiguous, cupy_module
from .common.public import public
from .common.remember import remember
from .compile.chain import Chain
from .compile.launch import NULL, Buffers, Launch
from .emulation.operands import quantize_on_host
from .errors import ArgumentError
from .operands.layout import CodeLayout
from .operands.operand import operand_of
from .operands.pairs import check_pair
from .operands.quantized import QuantizedTensor
from .plan.conversion import conversion
from .plan.kernels import check_supported
from .plan.operand_buffers import ConversionJob
from .presets import resolve
from .scheme import Scheme
from .specs.coding import Name, coding

__all__ = ["quantize", "quantize_into", "quantize_kv", "quantize_views"]

_REMEMBERED = 256

# Of an operand, what becomes of it.
_PARTS = ("_codes", "_scale", "_vector")


@public
def quantize(
    x: Any,
    *,
    operand: Name = "k",
    scheme: str | Scheme = "int8",
    layout: str = "HND",
    stream: Any = None,
) -> QuantizedTensor:
    """Quantize Q, K or V, to be attended any number of times.

    Parameters
    ----------
    x : array [batch, head, token, head_dim], or with layout "NHD" [batch, token, head, head_dim]
        float16, bfloat16 or float32, of CuPy, PyTorch, JAX or NumPy. If its last axis is not
        contiguous it is copied first.
    operand : {"q", "k", "v"}
        What it is to be: the three differ in scales, smoothing and layout.
    scheme : str or Scheme
        Decides scale and smoothing.
    layout : {"HND", "NHD"}
        Order of the axes of `x`; the tensor has no layout.
    stream : int or stream, optional
        As for `cuattn.attention`.

    Returns
    -------
    QuantizedTensor
        In CuPy's memory, or in NumPy's if `x` is in host memory. Codes and scales are bit for bit
        those of `cuattn.reference.quantize`, given the same smoothing vector. A token, block or
        channel that holds NaN or an infinity gets a scale that is NaN or infinite.

    Raises
    ------
    ArgumentError
        If an argument is wrong, or the scheme leaves the operand unquantized.
    NoGPUError, UnsupportedError, CompileError
        As for `cuattn.attention`.
    """
    how = resolve(scheme)
    if operand not in ("q", "k", "v") or coding(how, operand) is None:
        raise ArgumentError("operand", operand, f"one that is quantized in scheme {how.name!r}")
    return _quantized({operand: x}, {operand: "x"}, how, layout, stream)[operand]


@public
def quantize_kv(
    k: Any,
    v: Any,
    *,
    scheme: str | Scheme = "int8",
    layout: str = "HND",
    stream: Any = None,
) -> tuple[QuantizedTensor, QuantizedTensor]:
    """Quantize K and V together, to be attended any number of times.

    Where a scheme sorts keys, as "int8" does, both have the order that is best for both, which is
    what `cuattn.attention` makes of arrays; quantized one by one they are in their natural order,
    with larger errors where tokens of a block differ in size. Under other schemes the results are
    those of `quantize`.

    Parameters
    ----------
    k, v : array [batch, head, token, head_dim], or with layout "NHD" [batch, token, head, head_dim]
        As for `quantize`; of one type and device, and one shape but for the head_dim.
    scheme, layout, stream
        As for `quantize`.

    Returns
    -------
    k, v : QuantizedTensor
        To be attended together: of sorted keys each has the order of the other, one array.

    Raises
    ------
    ArgumentError
        If an argument is wrong, or the scheme leaves K or V unquantized.
    NoGPUError, UnsupportedError, CompileError
        As for `cuattn.attention`.
    """
    how = resolve(scheme)
    names: tuple[Name, ...] = ("k", "v")
    for name, x in zip(names, (k, v), strict=True):
        if coding(how, name) is None:
            raise ArgumentError("scheme", how.name, f"one that quantizes {name}")
        if isinstance(x, QuantizedTensor):
            raise ArgumentError(name, x, "an array, which is not quantized yet")
    made = _quantized({"k": k, "v": v}, {name: name for name in names}, how, layout, stream)
    return made["k"], made["v"]


def _quantized(
    given: Mapping[Name, Any],
    called: Mapping[Name, str],
    scheme: Scheme,
    layout: str,
    stream: Any,
) -> dict[Name, QuantizedTensor]:
    """Quantize arrays wherever they are; `called` are the names of the arguments."""
    first = next(iter(given))
    kind, ordinal = device_of(given[first], called[first])
    if kind == CPU:
        if stream is not None:
            raise ArgumentError("stream", stream, "None for arrays in host memory")
        return quantize_on_host(given, called, scheme, layout)
    if kind != CUDA:
        raise ArgumentError(called[first], given[first], "on an NVIDIA GPU or in host memory")
    with on_device(ordinal):
        caller = Caller(given[first], stream)
        seen = {name: caller.look(x, called[name]) for name, x in given.items()}
        with caller:
            return quantize_views(seen, scheme, layout)


def quantize_into(
    given: Mapping[Name, Any], into: Mapping[tuple[Name, str], Any], scheme: Scheme, layout: str
) -> dict[Name, QuantizedTensor]:
    """Quantize arrays, K and V together if both are there, into memory that there is.

    Parameters
    ----------
    given : mapping of {"q", "k", "v"} to array
        On CuPy's current device, or in host memory.
    into : mapping of (operand, attribute of `QuantizedTensor`) to ndarray
        Contiguous ones, of the shape and type that the attribute has. What is not here is made.
    """
    name = next(iter(given))
    if device_of(given[name], name)[0] == CPU:
        tensors = quantize_on_host(given, {name: name for name in given}, scheme, layout)
        for (name, part), array in into.items():
            array[...] = getattr(tensors[name], part)
        return tensors
    caller = Caller(given[name], None)
    seen = {name: caller.look(x, name) for name, x in given.items()}
    with caller:
        return quantize_views(seen, scheme, layout, into)


def quantize_views(
    arrays: Mapping[Name, View],
    scheme: Scheme,
    layout: str,
    into: Mapping[tuple[Name, str], Any] | None = None,
) -> dict[Name, QuantizedTensor]:
    """Quantize arrays on CuPy's current device and stream, K and V together if both are there."""
    cupy = cupy_module()
    into = into or {}
    seen = dict(arrays)
    call = _prepare(_signatures(seen), scheme, layout)
    if call.copied:
        seen |= {name: contiguous(seen[name]) for name in call.copied}
        call = _prepare(_signatures(seen), scheme, layout)
    tensors: dict[Name, QuantizedTensor] = {}
    order = None
    for name, x in seen.items():
        code_layout = call.code_layouts[name]
        codes, scale = into.get((name, "codes")), into.get((name, "scale"))
        codes = cupy.ndarray(code_layout.data, code_layout.dtype) if codes is None else codes
        scale = cupy.ndarray(code_layout.scale, np.float32) if scale is None else scale
        vector = into.get((name, "vector"))
        if code_layout.smoothed and vector is None:
            vector = cupy.ndarray(code_layout.vector, np.float32)
        if code_layout.order and len(seen) == 2 and order is None:
            order = into.get((name, "order"))
            order = cupy.ndarray(code_layout.order, np.uint8) if order is None else order
        shape = call.shapes[name]
        tensors[name] = QuantizedTensor(codes, scale, vector, name, scheme, shape, x.dtype, order)
    if call.launches:
        given: list[int] = []
        for name, x in seen.items():
            given += (x.ptr, *tensors[name].addresses)
        given.append(tensors[name].order_address)
        call.launches(tuple(given), cupy.cuda.get_current_stream().ptr)
    else:  # an empty scope counts as one of zeros
        for name, tensor in tensors.items():
            tensor.scale.fill(call.code_layouts[name].empty_scale)
            if tensor.vector is not None:
                tensor.vector.fill(0)
    return tensors


def _signatures(seen: Mapping[Name, View]) -> tuple[tuple[Name, Array], ...]:
    return tuple((name, x.signature) for name, x in seen.items())


@dataclass(frozen=True, eq=False)
class _Call:
    """What calls on arrays of the same kinds share; no launches if there is nothing to do yet."""

    shapes: dict[Name, tuple[int, ...]]
    code_layouts: dict[Name, CodeLayout]
    copied: tuple[Name, ...]
    launches: Chain


@remember(_REMEMBERED)
def _prepare(given: tuple[tuple[Name, Array], ...], scheme: Scheme, layout: str) -> _Call:
    arrays = dict(given)
    operands = {name: operand_of(name, x, scheme, layout) for name, x in arrays.items()}
    if len(arrays) == 2:
        check_pair(arrays["k"], arrays["v"])
    buffers = Buffers(*(name + part for name in arrays for part in ("", *_PARTS)), "order")
    jobs: dict[Name, ConversionJob] = {}
    code_layouts: dict[Name, CodeLayout] = {}
    for name, operand in operands.items():
        code_layout = code_layouts[name] = CodeLayout.of(scheme, name, operand.shape, packed=True)
        jobs[name] = ConversionJob(
            operand,
            buffers[name],
            data=buffers[f"{name}_codes"],
            scale=buffers[f"{name}_scale"],
            vector=buffers[f"{name}_vector"] if code_layout.smoothed else NULL,
        )
    check_supported(scheme, target(current_device().arch))
    copied = tuple(name for name, x in arrays.items() if x.strides[-1] != 1 and all(x.shape))
    launches: list[Launch] = []
    if all(math.prod(x.shape) for x in operands.values()) and not copied:
        launches = conversion(
            jobs,
            scheme,
            current_device(),
            buffers,
            order=buffers["order"],
            packed_qk=True,
            packed_v=True,
        )
    shapes = {name: operand.shape for name, operand in operands.items()}
    return _Call(shapes, code_layouts, copied, Chain(launches, buffers))
