"""The kernels that measure ceilings on a GPU: what they store, and that rates are plausible."""

import pytest
from helpers.around_quantizer_cases import Place
from helpers.rate_cases import check_memory, check_products

from cuattn.arrays.device import current_device, target
from cuattn.bench import ceilings
from cuattn.plan.listing import rate_specs
from cuattn.specs.rates import ProductRateSpec

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu(cupy):
    return Place(current_device(), cupy)


@pytest.mark.parametrize("writes", [True, False])
def test_memory_is_read_or_copied_whole(gpu, rng, writes):
    check_memory(gpu, rng, writes=writes)


def test_products_are_added_up(gpu):
    specs = rate_specs(target(gpu.device.arch))
    products = [spec for spec in specs if isinstance(spec, ProductRateSpec)]
    assert products
    for spec in products:
        check_products(gpu, spec)


def test_every_ceiling_is_measured(cupy):
    found = ceilings.measure(rounds=3)
    assert {"copy", "read", "int8", "fp16"} <= {ceiling.what for ceiling in found}
    # Of any GPU that this project serves; the fastest is two orders of magnitude above.
    assert all(ceiling.rate > 50 for ceiling in found)
