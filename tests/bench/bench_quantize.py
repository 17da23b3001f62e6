"""Bandwidth of the quantizers at 1 GiB of input, beside that of a plain copy."""

import functools

import pytest

import cuattn
from benchmarks.measurements import QUANTIZERS
from cuattn.bench.cases import QUANTIZE
from cuattn.bench.inputs import noise
from cuattn.choice.timing import Stamp

pytestmark = pytest.mark.gpu


@functools.cache
def source():
    return noise(QUANTIZE, 0)


def measure(benchmark, cold_l2, call, moved):
    benchmark.group = "1 GiB"
    benchmark.pedantic(call, setup=cold_l2, rounds=30, warmup_rounds=5)
    if benchmark.enabled:
        gbps = moved / benchmark.stats.stats.median * 1e-9
        benchmark.extra_info["gbps"] = round(gbps, 1)


@pytest.mark.benchmark(timer=Stamp)
@pytest.mark.parametrize(("scheme", "operand"), QUANTIZERS)
def bench_quantize(benchmark, cold_l2, scheme, operand):
    x = source()
    head = x[:1, :1]
    restored = cuattn.quantize(head, operand=operand, scheme=scheme).dequantize().get()
    # A code is a step of the scale at most away from the number, which of normal noise is below 8.
    largest = 7 if scheme == "int4" else 127
    assert abs(restored - head.get().astype("float64")).max() < 8 / largest
    quantized = cuattn.quantize(x, operand=operand, scheme=scheme)
    moved = x.nbytes + quantized.codes.nbytes + quantized.scale.nbytes
    measure(benchmark, cold_l2, lambda: cuattn.quantize(x, operand=operand, scheme=scheme), moved)


@pytest.mark.benchmark(timer=Stamp)
def bench_copy(benchmark, cold_l2):
    import cupy

    x = source()
    copy = cupy.empty_like(x)

    def call():
        copy.data.copy_from_device_async(x.data, x.nbytes)

    measure(benchmark, cold_l2, call, 2 * x.nbytes)
