"""Rings of ranks that are streams of one GPU."""

import numpy as np
import pytest
from ring_cases import relative_l1

import cuattn
from cuattn.distributed import (
    DistributedKVCache,
    all_gather_attention,
    from_environment,
    ring_attention,
    run_virtual,
    shard,
    ulysses_attention,
    unshard,
)
from cuattn.distributed.four_bits import unpacked
from cuattn.reference import exact
from cuattn.reference.layout import unpack_pairs

pytestmark = pytest.mark.gpu

CASES = {
    "causal": ("zigzag", {"is_causal": True}),
    "no-mask": ("zigzag", {"scheme": "int8-block"}),
    "contiguous": ("contiguous", {"is_causal": True, "scheme": "int8-block"}),
    "striped": ("striped", {"is_causal": True, "scheme": "int8-token"}),
    "window": ("zigzag", {"is_causal": True, "window_size": (100, -1)}),
    "two-sided": ("striped", {"window_size": (100, 37), "scheme": "int8-fp16"}),
    "half": ("zigzag", {"is_causal": True, "scheme": "fp16"}),
    "four-bits": ("zigzag", {"is_causal": True, "wire": "int4"}),
    "of-four-bits": ("zigzag", {"is_causal": True, "scheme": "int4"}),
}


def inputs(cupy, rng, tokens, dtype="float16", heads=8, kv_heads=4, head_dim=128):
    shapes = [(heads, tokens)] + 2 * [(kv_heads, tokens)]
    arrays = [rng.standard_normal((1, *shape, head_dim)) for shape in shapes]
    return [cupy.asarray(x, dtype) for x in arrays]


def over_ranks(attend, arrays, size, placement, **options):
    def work(group):
        own = [shard(x, size, group.rank, placement) for x in arrays]
        return attend(*own, group, placement=placement, **options)

    return unshard(run_virtual(size, work), placement).get()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_ring(cupy, rng, name, size):
    check_ring(cupy, rng, 2003, name, size)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("name", ["causal", "half", "four-bits", "of-four-bits"])
def test_ring_of_whole_blocks(cupy, rng, name, size):
    """Keys of a rank are quantized together, and some rows see the first ones only."""
    check_ring(cupy, rng, 2048, name, size)


def check_ring(cupy, rng, tokens, name, size):
    """Check a ring against itself, another engine and float64."""
    placement, options = CASES[name]
    arrays = inputs(cupy, rng, tokens)
    sinks = cupy.asarray(rng.standard_normal(8), np.float32)
    options = {**options, "sinks": sinks}
    o = over_ranks(ring_attention, arrays, size, placement, **options)
    for _ in range(3):
        again = over_ranks(ring_attention, arrays, size, placement, **options)
        np.testing.assert_array_equal(again, o)
    gathered = over_ranks(all_gather_attention, arrays, size, placement, **options)
    np.testing.assert_array_equal(gathered, o)
    known = ("is_causal", "window_size")
    true = {key: options[key] for key in known if key in options}
    on_host = [x.get() for x in arrays]
    wanted, _ = exact.attention(*on_host, sinks=sinks.get(), **true)
    assert relative_l1(o, wanted) < (0.22 if "four" in name else 0.03)


@pytest.mark.parametrize("tokens", [1030, 1024])
@pytest.mark.parametrize("scheme", ["int8", "int8-block", "int8-fast"])
def test_how_keys_travel_changes_nothing(cupy, rng, scheme, tokens):
    arrays = inputs(cupy, rng, tokens)
    options = {"is_causal": True, "scheme": scheme}
    o = over_ranks(ring_attention, arrays, 4, "zigzag", **options)
    again = over_ranks(ring_attention, arrays, 4, "zigzag", **options, wire="input")
    np.testing.assert_array_equal(again, o)


def test_one_rank_is_attention(cupy, rng):
    arrays = inputs(cupy, rng, 517)
    o = over_ranks(ring_attention, arrays, 1, "zigzag", is_causal=True)
    np.testing.assert_array_equal(o, cuattn.attention(*arrays, is_causal=True).get())


def test_ulysses(cupy, rng):
    arrays = inputs(cupy, rng, 1001)

    def attend(*own, placement, **options):
        return ulysses_attention(*own, **options)

    o = over_ranks(attend, arrays, 4, "contiguous", is_causal=True)
    wanted, _ = exact.attention(*[x.get() for x in arrays], is_causal=True)
    assert relative_l1(o, wanted) < 0.03


@pytest.mark.parametrize("bits", [8, 4])
def test_decoding(cupy, rng, bits):
    q, k, v = inputs(cupy, rng, 1001)

    def work(group):
        cache = DistributedKVCache(group, 1, 4, 128, 2048, bits=bits)
        cache.append(k, v)
        return cache.attend(q[:, :, -3:])

    results = run_virtual(4, work)
    for other in results[1:]:
        assert cupy.array_equal(other, results[0])
    wanted, _ = exact.attention(*[x.get() for x in (q[:, :, -3:], k, v)], is_causal=True)
    assert relative_l1(results[0].get(), wanted) < (0.03 if bits == 8 else 0.25)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("wire", [None, "input"])
def test_tensors_of_pytorch(cupy, torch, rng, dtype, wire):
    arrays = inputs(cupy, rng, 600)
    tensors = [torch.from_dlpack(x).to(getattr(torch, dtype)) for x in arrays]

    def work(group):
        own = [shard(x, 2, group.rank) for x in tensors]
        return ring_attention(*own, group, is_causal=True, wire=wire)

    o = unshard(run_virtual(2, work))
    assert o.dtype == tensors[0].dtype
    wanted, _ = exact.attention(*[x.float().cpu().numpy() for x in tensors], is_causal=True)
    assert relative_l1(o.float().cpu().numpy(), wanted) < 0.03


@pytest.mark.parametrize("shape", [(1, 2, 37, 16), (2, 3, 1, 32), (1, 1, 0, 16)])
def test_codes_of_four_bits_are_unpacked(cupy, rng, shape):
    packed = rng.integers(0, 256, shape, np.uint8)
    found = unpacked(cupy.asarray(packed))
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found.get(), unpack_pairs(packed))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_decoding_step_is_replayed(cupy, rng, bits):
    """Of virtual ranks a step is not captured; of one rank it is, and none asks the host."""
    q, k, v = inputs(cupy, rng, 701)
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cache = DistributedKVCache(from_environment(), 1, 4, 128, 1024, bits=bits)
    cache.append(k, v)
    cupy.cuda.get_current_stream().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        wanted = cache.attend(q[:, :, -1:])
        stream.begin_capture()
        o = cache.attend(q[:, :, -1:])
        stream.end_capture().launch(stream)
    stream.synchronize()
    assert cupy.array_equal(o, wanted)
