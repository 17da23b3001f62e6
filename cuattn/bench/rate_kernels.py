"""Calls of the kernels that measure ceilings, on random numbers: zeros would take less power."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..arrays.device import Device, target
from ..arrays.view import cupy_module
from ..common.sizes import ceil_div, round_up
from ..compile.chain import Chain
from ..compile.launch import Buffers, Launch
from ..plan.listing import rate_specs
from ..reference.rounding import e4m3_bits, round_e4m3
from ..specs.attention import Type
from ..specs.rates import MemoryRateSpec, ProductRateSpec

__all__ = ["RateCall", "product_operands", "rate_calls"]

# Far beyond any cache.
MEMORY_BYTES = 1 << 30
# What is read repeats after so much, which no cache could make use of either.
PERIOD_BYTES = 1 << 26
# About a millisecond of an H200's tensor cores, by single warps two.
ROUNDS = {True: 4096, False: 16384}

WHAT: dict[Type, Literal["int8", "fp8", "fp16"]] = {
    Type.int8: "int8",
    Type.e4m3: "fp8",
    Type.fp16: "fp16",
}


@dataclass(frozen=True)
class RateCall:
    """A launch that does nothing but what is to be measured.

    Attributes
    ----------
    what, instruction : str
        As of `cuattn.records.record.Ceiling`.
    run : callable
        Enqueues it on CuPy's current stream.
    work : int
        Operations, or bytes read and written.
    """

    what: Literal["copy", "read", "int8", "fp8", "fp16"]
    instruction: str
    run: Callable[[], None]
    work: int

    @property
    def is_product(self) -> bool:
        """Whether work is operations."""
        return self.what not in ("copy", "read")


def rate_calls(
    device: Device, nbytes: int = MEMORY_BYTES, rounds: Mapping[bool, int] = ROUNDS
) -> Iterator[RateCall]:
    """Yield the calls of all kernels that measure a GPU's ceilings.

    Parameters
    ----------
    device : Device
    nbytes : int
        Of memory that is read, if that is free eight times over.
    rounds : mapping of bool to int
        Of products: by warpgroups, and by single warps.
    """
    for spec in rate_specs(target(device.arch)):
        if isinstance(spec, MemoryRateSpec):
            yield from _memory(spec, device, nbytes)
        else:
            yield _products(spec, device, rounds[spec.warpgroups])


def product_operands(spec: ProductRateSpec) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return A and B, [rows, row_bytes / bytes of an element]: normal noise, quantized.

    INT8 codes are those of rows whose largest element is four standard deviations, e4m3 those of
    elements without a scale.
    """
    rng = np.random.default_rng(0)
    columns = spec.row_bytes // spec.type.nbytes
    a, b = (rng.standard_normal((rows, columns)) for rows in (spec.a_rows, spec.b_rows))
    return _coded(a, spec.type), _coded(b, spec.type)


def _coded(x: NDArray[np.float64], kind: Type) -> NDArray[Any]:
    if kind is Type.int8:
        return np.rint(x.clip(-4, 4) * (127 / 4)).astype(np.int8)
    return (
        e4m3_bits(round_e4m3(x.astype(np.float32))) if kind is Type.e4m3 else x.astype(np.float16)
    )


def _memory(spec: MemoryRateSpec, device: Device, nbytes: int) -> Iterator[RateCall]:
    cupy = cupy_module()
    free, _ = cupy.cuda.runtime.memGetInfo()
    nbytes = round_up(min(nbytes, free // 8), spec.turn)
    # Drawn by the host: CuPy needs cuRAND for it.
    period = np.random.default_rng(0).integers(0, 256, PERIOD_BYTES, np.uint8)
    source = cupy.tile(cupy.asarray(period), ceil_div(nbytes, PERIOD_BYTES))[:nbytes]
    chunks = {"chunks": nbytes // 16}
    if spec.writes:
        copy = cupy.empty_like(source)
        arrays = {"from": source, "to": copy}
        run = _bound(spec, device, nbytes // spec.turn, chunks, **arrays)
        yield RateCall("copy", "16-byte loads and stores", run, 2 * nbytes)
        yield RateCall("copy", "cudaMemcpyAsync", partial(_copy, source, copy), 2 * nbytes)
    else:
        ctas = spec.min_ctas * device.num_sms
        words = cupy.empty(ctas * spec.num_threads, cupy.uint32)
        run = _bound(spec, device, ctas, chunks, **{"from": source, "to": words})
        yield RateCall("read", "16-byte loads", run, nbytes)


def _copy(source: Any, target: Any) -> None:
    target.data.copy_from_device_async(source.data, source.nbytes)


def _products(spec: ProductRateSpec, device: Device, rounds: int) -> RateCall:
    cupy = cupy_module()
    a, b = (cupy.asarray(x) for x in product_operands(spec))
    sums = cupy.empty(device.num_sms * spec.num_threads, cupy.uint32)
    return RateCall(
        WHAT[spec.type],
        "wgmma" if spec.warpgroups else "mma.sync",
        _bound(spec, device, device.num_sms, {"rounds": rounds}, a=a, b=b, sums=sums),
        rounds * device.num_sms * spec.operations,
    )


def _bound(
    spec: MemoryRateSpec | ProductRateSpec, device: Device, ctas: int, numbers: Any, **arrays: Any
) -> Callable[[], None]:
    """Return the launch of a kernel on arrays, which it keeps."""
    buffers = Buffers(*arrays)
    values = {name: buffers[name] for name in arrays}
    chain = Chain([Launch(spec, device, (ctas,), {**numbers, **values})], buffers)
    stream = cupy_module().cuda.get_current_stream

    def run() -> None:
        chain(tuple(x.data.ptr for x in arrays.values()), stream().ptr)

    return run
