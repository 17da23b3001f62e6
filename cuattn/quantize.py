"""`quantize`: from an array to a `QuantizedTensor`."""

from __future__ import annotations

import math
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
from .operands.quantized import QuantizedTensor
from .plan.conversion import conversion
from .plan.kernels import check_supported
from .plan.operand_buffers import ConversionJob
from .presets import resolve
from .scheme import Scheme
from .specs.coding import Name, coding

__all__ = ["quantize", "quantize_view"]

_REMEMBERED = 256


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
    kind, ordinal = device_of(x, "x")
    if kind == CPU:
        if stream is not None:
            raise ArgumentError("stream", stream, "None for arrays in host memory")
        return quantize_on_host(x, operand, how, layout)
    if kind != CUDA:
        raise ArgumentError("x", x, "on an NVIDIA GPU or in host memory")
    with on_device(ordinal):
        caller = Caller(x, stream)
        seen = caller.look(x, "x")
        with caller:
            return quantize_view(seen, operand, how, layout)


def quantize_view(x: View, operand: Name, scheme: Scheme, layout: str) -> QuantizedTensor:
    """Quantize an array on CuPy's current device and stream."""
    cupy = cupy_module()
    call = _prepare(x.signature, operand, scheme, layout)
    if call.copied:
        x = contiguous(x)
        call = _prepare(x.signature, operand, scheme, layout)
    code_layout = call.code_layout
    codes = cupy.ndarray(code_layout.data, code_layout.dtype)
    scale = cupy.ndarray(code_layout.scale, np.float32)
    vector = cupy.ndarray(code_layout.vector, np.float32) if code_layout.smoothed else None
    tensor = QuantizedTensor(codes, scale, vector, operand, scheme, call.shape, x.dtype)
    if call.launches:
        call.launches((x.ptr, *tensor.addresses), cupy.cuda.get_current_stream().ptr)
    else:  # an empty scope counts as one of zeros
        scale.fill(code_layout.empty_scale)
        if vector is not None:
            vector.fill(0)
    return tensor


@dataclass(frozen=True, eq=False)
class _Call:
    """What calls on arrays of the same kind share; no launches if there is nothing to do yet."""

    shape: tuple[int, ...]
    code_layout: CodeLayout
    copied: bool
    launches: Chain


@remember(_REMEMBERED)
def _prepare(x: Array, name: Name, scheme: Scheme, layout: str) -> _Call:
    operand = operand_of(name, x, scheme, layout)
    code_layout = CodeLayout.of(scheme, name, operand.shape, packed=True)
    buffers = Buffers("x", "codes", "scale", "vector")
    job = ConversionJob(
        operand,
        buffers["x"],
        data=buffers["codes"],
        scale=buffers["scale"],
        vector=buffers["vector"] if code_layout.smoothed else NULL,
    )
    check_supported(scheme, target(current_device().arch))
    copied = x.strides[-1] != 1 and all(x.shape)
    launches: list[Launch] = []
    if math.prod(operand.shape) and not copied:
        launches = conversion(
            {name: job}, scheme, current_device(), buffers, packed_qk=True, packed_v=True
        )
    return _Call(operand.shape, code_layout, copied, Chain(launches, buffers))
