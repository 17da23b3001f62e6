"""The most that this GPU can do: copies, reads, and products, by kernels that do nothing else."""

from itertools import product

import pytest

from cuattn.arrays.device import current_device
from cuattn.bench.rate_kernels import rate_calls
from cuattn.choice.timing import Stamp

pytestmark = pytest.mark.gpu

MEMORY = (
    ("copy", "16-byte loads and stores"),
    ("copy", "cudaMemcpyAsync"),
    ("read", "16-byte loads"),
)
PRODUCTS = list(product(("int8", "fp8", "fp16"), ("mma.sync", "wgmma")))


@pytest.fixture(scope="module")
def calls():
    return {(call.what, call.instruction): call for call in rate_calls(current_device())}


def measure(benchmark, clean_l2, call, name, scale):
    benchmark.group = "ceilings"
    benchmark.pedantic(call.run, setup=clean_l2, rounds=30, warmup_rounds=5)
    if benchmark.enabled:
        benchmark.extra_info[name] = round(call.work / benchmark.stats.stats.median * scale, 1)


@pytest.mark.benchmark(timer=Stamp)
@pytest.mark.parametrize(("what", "instruction"), MEMORY)
def bench_memory(benchmark, clean_l2, calls, what, instruction):
    measure(benchmark, clean_l2, calls[what, instruction], "gbps", 1e-9)


@pytest.mark.benchmark(timer=Stamp)
@pytest.mark.parametrize(("what", "instruction"), PRODUCTS)
def bench_products(benchmark, clean_l2, calls, what, instruction):
    if (what, instruction) not in calls:
        pytest.skip("this GPU has no such instruction")
    measure(benchmark, clean_l2, calls[what, instruction], "tops", 1e-12)
