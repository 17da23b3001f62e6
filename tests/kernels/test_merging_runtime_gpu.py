"""`merge_states` beside the GPU's other work: graphs, streams, libraries, errors, large arrays."""

import numpy as np
import pytest
from helpers.arrays_in_memory import DTYPES
from helpers.gpu_cases import delay, on_host
from helpers.merge_cases import assert_same_bits, check, on_device

import cuattn
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.gpu

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.mark.parametrize("parts", [2, 40])
def test_call_is_captured_and_replayed(cupy, rng, parts):
    held, other = (on_device(cupy, rng, parts=parts)[1] for _ in range(2))
    kept = [[x.copy() for x in some] for some in held]
    expected = [cuattn.merge_states(*some) for some in (kept, other)]
    out = cupy.empty_like(held[0][0])
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        _, lse = cuattn.merge_states(*held, out=out)
        graph = stream.end_capture()
        for inputs, wanted in zip((kept, other, kept), (*expected, expected[0]), strict=True):
            for to, x in zip((*held[0], *held[1]), (*inputs[0], *inputs[1]), strict=True):
                to[...] = x
            out.fill(np.nan)
            lse.fill(np.nan)
            graph.launch(stream)
            stream.synchronize()
            assert_same_bits((out, lse), wanted)


@pytest.mark.alone
def test_nothing_waits_for_the_gpu(cupy, rng):
    calls = [on_device(cupy, rng, dtype, parts)[1] for dtype in DTYPES for parts in (2, 40)]
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()

    def call_everything():
        for given in calls:
            cuattn.merge_states(*given)
            cuattn.merge_states(*given, out=cupy.empty_like(given[0][0]))

    with stream:
        call_everything()
        stream.synchronize()
        delay(cupy, stream, seconds=0.5)
        call_everything()
        assert not stream.done
        stream.synchronize()


def test_explicit_stream_waits_for_cupys_current_one(cupy, rng):
    _, given = on_device(cupy, rng)
    expected = cuattn.merge_states(*given)
    producer, consumer = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    late = [[cupy.zeros_like(x) for x in some] for some in given]
    cupy.cuda.Device().synchronize()
    delay(cupy, producer)
    with producer:
        for to, x in zip((*late[0], *late[1]), (*given[0], *given[1]), strict=True):
            to[...] = x
        found = cuattn.merge_states(*late, stream=consumer)
    consumer.synchronize()
    assert_same_bits(found, expected)


@every_dtype
def test_pytorch_tensors(cupy, torch, rng, dtype):
    _, given = on_device(cupy, rng, dtype)
    expected = cuattn.merge_states(*given)
    o, lse = ([as_torch(torch, x) for x in some] for some in given)
    out = torch.empty_like(o[0])
    for some in ((o, lse), (torch.stack(o), torch.stack(lse)), (o, given[1])):
        got, got_lse = cuattn.merge_states(*some)
        assert (got.dtype, got.device, got.shape) == (o[0].dtype, o[0].device, o[0].shape)
        assert got_lse.dtype == torch.float32
        assert cuattn.merge_states(*some, out=out)[0] is out
        assert torch.equal(out, got)
        np.testing.assert_array_equal(got.float().cpu().numpy(), on_host(expected[0]))
        np.testing.assert_array_equal(got_lse.cpu().numpy(), on_host(expected[1]))


def as_torch(torch, x):
    if x.dtype.name != "bfloat16":
        return torch.from_dlpack(x)
    return torch.from_dlpack(x.view(np.uint16).view(np.int16)).view(torch.bfloat16)


def test_pytorch_graph(cupy, torch, rng):
    _, given = on_device(cupy, rng)
    o, lse = ([torch.from_dlpack(x) for x in some] for some in given)
    expected = cuattn.merge_states(o, lse)
    side = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        found = cuattn.merge_states(o, lse)
    for x in found:
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@every_dtype
def test_jax_arrays(cupy, jax, rng, dtype):
    (_, lse), given = on_device(cupy, rng, dtype, empty=0)
    expected = cuattn.merge_states(*given)
    parts = [jax.numpy.asarray(on_host(x)).astype(dtype) for x in given[0]]
    got, got_lse = cuattn.merge_states(parts, [jax.numpy.asarray(x) for x in lse])
    assert isinstance(got, jax.Array)
    assert got.dtype == parts[0].dtype
    np.testing.assert_array_equal(np.asarray(got.astype("float32")), on_host(expected[0]))
    np.testing.assert_array_equal(np.asarray(got_lse), on_host(expected[1]))


def test_what_is_wrong_is_named(cupy, rng):
    (o, lse), given = on_device(cupy, rng)
    with pytest.raises(ArgumentError, match=r"^o\[1\]\.device must be"):
        cuattn.merge_states([given[0][0], o[1], given[0][2]], given[1])
    with pytest.raises(ArgumentError, match=r"^lse\[2\]\.device must be"):
        cuattn.merge_states(given[0], [*given[1][:2], lse[2]])
    with pytest.raises(ArgumentError, match=r"^o\[1\]"):
        cuattn.merge_states([o[0], given[0][1], o[2]], lse)
    with pytest.raises(ArgumentError, match=r"^out\.device must be"):
        cuattn.merge_states(*given, out=o[0])
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of o\[1\]"):
        cuattn.merge_states(*given, out=given[0][1])
    apart = cupy.zeros(4 * lse[0].size + 8, np.uint8)[2:-6].view(np.float16)
    odd = cupy.ndarray(lse[0].shape, np.float32, apart.data)
    with pytest.raises(ArgumentError, match=r"^lse\[0\].*multiple of 4 bytes"):
        cuattn.merge_states(given[0], [odd, *given[1][1:]])


@pytest.mark.alone
def test_more_elements_than_32_bits_count(cupy, rng):
    shape = (1, 40, 2**20, 128)
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    if cupy.cuda.runtime.memGetInfo()[0] < 32 << 30:
        pytest.skip("takes 32 GiB")
    row = rng.standard_normal((2, 1, 1, 2**20, 128), np.float32).astype(np.float16)
    # Parts take the place of one head, and the output that of all.
    parts = [cupy.broadcast_to(cupy.asarray(x), shape) for x in row]
    logarithms = rng.standard_normal((2, *shape[:3]), np.float32)
    got, got_lse = cuattn.merge_states(parts, [cupy.asarray(x) for x in logarithms])
    for head in (0, 15, 16, 31, 32, 39):
        for rows in (slice(0, 100), slice(2**20 - 100, 2**20)):
            some = np.s_[:, head : head + 1, rows]
            want = row[:, :, :, rows], logarithms[:, :, head : head + 1, rows]
            check(got[some].get(), got_lse[some].get(), *want, "float16")
    del got, got_lse
    pool.free_all_blocks()
