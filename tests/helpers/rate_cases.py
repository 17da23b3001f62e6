"""The kernels that measure ceilings, launched on a GPU, real or simulated: what they store."""

import numpy as np

from cuattn.bench.rate_kernels import product_operands
from cuattn.reference.rounding import e4m3_values
from cuattn.specs.attention import Type
from cuattn.specs.rates import MemoryRateSpec
from helpers.around_quantizer_cases import on_host

# More turns than CTAs, not a multiple.
CTAS, TURNS = 3, 10


def check_memory(place, rng, *, writes):
    spec = MemoryRateSpec(writes)
    source = rng.integers(0, 2**32, (TURNS, spec.chunks, spec.num_threads, 4), np.uint32)
    out = place.put(np.zeros(source.shape if writes else (CTAS, spec.num_threads), np.uint32))
    chunks = {"chunks": source.nbytes // 16}
    place.run(spec, CTAS, chunks, **{"from": place.put(source), "to": out})
    if writes:
        np.testing.assert_array_equal(on_host(out), source)
        return
    words = np.bitwise_xor.reduce(source, axis=(1, 3))
    want = [np.bitwise_xor.reduce(words[cta::CTAS], axis=0) for cta in range(CTAS)]
    np.testing.assert_array_equal(on_host(out), want)


def check_products(place, spec, rounds=3):
    a, b = product_operands(spec)
    integer = spec.type is Type.int8
    out = place.empty((CTAS, spec.num_threads), np.int32 if integer else np.float32)
    place.run(spec, CTAS, {"rounds": rounds}, a=place.put(a), b=place.put(b), sums=out)
    if spec.type is Type.e4m3:
        a, b = e4m3_values(a), e4m3_values(b)
    products = rounds * (a.astype(np.float64) @ b.astype(np.float64).T)
    # Each warp, or warpgroup, has the whole product.
    got = on_host(out).reshape(-1, 128 if spec.warpgroups else 32).sum(1, np.float64)
    # Sums of e4m3 products have 13 bits on Hopper, those of others 23 (docs/numerics.md).
    bound = 0 if integer else 2.0**-11 * np.abs(products).sum() / np.sqrt(products.size)
    assert np.abs(got - products.sum()).max() <= bound
