"""The KV cache beside the GPU's other work: streams, graphs, counts on the device, libraries."""

import copy

import numpy as np
import pytest
from helpers.gpu_cases import delay, on_host
from helpers.kv_contents_cases import (
    FORMATS,
    GPU,
    Filled,
    _kernels,  # noqa: F401
    every_format,
    random_pages,
    snapshot,
    some_formats,
)
from helpers.kv_graph_cases import replay_while_sequences_grow

import cuattn
from cuattn.compile.chain import Chain
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.gpu


@every_format
def test_runs_are_bit_identical(cupy, rng, options):
    filled = Filled(GPU, batch=5, heads=4, head_dim=128, capacity=3000, **options)
    filled.append(rng, [3000, 1, 1700, 128, 640])
    q, o = filled.attend(rng, 16, 1)
    for _ in range(20):
        assert on_host(filled.cache.attend(q)).tobytes() == o.tobytes()


def test_a_long_sequence_is_shared_by_all_multiprocessors(rng):
    filled = Filled(GPU, batch=1, heads=1, head_dim=128, capacity=70000)
    for _ in range(8):
        filled.append(rng, 8192)
    filled.append(rng, 4001)
    filled.attend(rng, 8, 1)
    filled.attend(rng, 4, 3)


@some_formats
def test_many_sequences(rng, options):
    lengths = rng.integers(0, 400, 200)
    filled = Filled(GPU, batch=200, heads=3, **options).append(rng, lengths)
    filled.check_contents()
    filled.attend(rng, 12, 1)


@pytest.mark.parametrize("which", ["k", "q", "out"])
def test_strides_change_nothing(cupy, rng, which):
    filled = Filled(GPU, smooth_k=False).append(rng, [100, 40])
    q, o = filled.attend(rng, 4, 2)

    def apart(x):
        wide = cupy.pad(x, [(0, 0)] * 3 + [(3, 6)])
        return wide[..., 3:-6]

    if which == "k":
        again = Filled(GPU, smooth_k=False)
        for b, n in enumerate(filled.lengths):
            counts = np.where(np.arange(2) == b, n, 0)
            k, v = (apart(GPU.array(np.stack([x[b]] * 2))) for x in (filled.k, filled.v))
            again.cache.append(k, v, counts=counts)
        assert snapshot(again.cache) == snapshot(filled.cache)
    elif which == "q":
        np.testing.assert_array_equal(on_host(filled.cache.attend(apart(q))), o)
    else:
        out = apart(cupy.zeros_like(q))
        assert filled.cache.attend(q, out=out) is out
        np.testing.assert_array_equal(on_host(out), o)
        assert not out.base[..., :3].any()
        assert not out.base[..., -6:].any()


# ---- streams


def test_work_is_ordered_on_the_stream(cupy, rng):
    wanted = Filled(GPU).append(rng, [100, 40])
    q, o = wanted.attend(rng, 4, 1)
    k, v = wanted.tokens()
    for explicit in (False, True):
        filled = Filled(GPU)
        late = [cupy.zeros_like(x) for x in (q, k, v)]
        stream = cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        delay(cupy, stream)
        with stream:
            for to, x in zip(late, (q, k, v), strict=True):
                to[...] = x
        options = {"stream": stream} if explicit else {}
        with cupy.cuda.Stream.null if explicit else stream:
            filled.cache.append(*late[1:], counts=np.array([100, 40]), **options)
            found = filled.cache.attend(late[0], **options)
        stream.synchronize()
        np.testing.assert_array_equal(on_host(found), o)


@pytest.mark.alone
def test_nothing_waits_for_the_gpu(cupy, rng):
    stream = cupy.cuda.Stream(non_blocking=True)
    for page_size in (0, 16):
        filled = Filled(GPU, page_size=page_size)
        q, _ = filled.draw(rng, 4, 1, "float16")
        k, _ = filled.draw(rng, 2, 3, "float16")
        cupy.cuda.Device().synchronize()

        def call(cache=filled.cache, q=q, k=k):
            for _ in range(9):
                cache.append(k, k)
                cache.attend(q, return_lse=True)

        with stream:
            call()  # loads kernels and fills the stream's part of the memory pool
            stream.synchronize()
            delay(cupy, stream, seconds=0.5)
            call()
            assert not stream.done
            stream.synchronize()


# ---- graphs


@some_formats
@pytest.mark.parametrize("page_size", [0, 16])
def test_a_graph_is_replayed_while_sequences_grow(cupy, rng, options, page_size):
    captured, eager = (Filled(GPU, capacity=200, page_size=page_size, **options) for _ in range(2))
    seed = rng.integers(2**32)
    for some in (captured, eager):
        some.append(np.random.default_rng(seed), [100, 5])
    if page_size:
        captured.cache.reserve(200)
    q, k, v = (captured.draw(rng, heads, 1, "float16")[0] for heads in (8, 2, 2))
    replay_while_sequences_grow(cupy, rng, (captured.cache, eager.cache), [100, 5], (q, k, v), 60)
    np.testing.assert_array_equal(captured.cache.lengths, [160, 65])
    assert snapshot(captured.cache) == snapshot(eager.cache)


def test_a_graph_that_runs_out_of_room_changes_nothing(cupy, rng):
    filled = Filled(GPU, capacity=34).append(rng, [32, 5])
    k, _ = filled.draw(rng, 2, 1, "float16")
    filled.cache.append(k, k)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        filled.cache.append(k, k)
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
        np.testing.assert_array_equal(filled.cache.lengths, [34, 7])
        before = snapshot(filled.cache)
        for _ in range(3):
            graph.launch(stream)
        stream.synchronize()
    with pytest.raises(ArgumentError):
        _ = filled.cache.lengths
    assert snapshot(filled.cache) == before


# ---- copies


@some_formats
@pytest.mark.parametrize("page_size", [0, 32])
def test_a_copy_goes_its_own_way(rng, options, page_size):
    filled = Filled(GPU, page_size=page_size, **options).append(rng, [100, 40])
    before = snapshot(filled.cache)
    other = copy.deepcopy(filled.cache)
    assert snapshot(other) == before
    k, _ = filled.draw(rng, 2, 50, "float16")
    other.append(k, k)
    assert snapshot(filled.cache) == before
    filled.append(rng, [3, 60])
    filled.check_contents()
    filled.attend(rng, 4, 1)


def test_saving_and_copying_wait_for_work_of_any_stream(cupy, rng, tmp_path):
    filled = Filled(GPU).append(rng, [100, 40])
    k, v = filled.tokens()
    stream = cupy.cuda.Stream(non_blocking=True)
    found = []
    for use in (
        lambda cache: cache.save(tmp_path / "cache.safetensors"),
        lambda cache: found.append(copy.deepcopy(cache)),
    ):
        cache = Filled(GPU).cache
        cupy.cuda.Device().synchronize()
        delay(cupy, stream)
        cache.append(k, v, counts=np.array([100, 40]), stream=stream)
        use(cache)
    found.append(cuattn.KVCache.load(tmp_path / "cache.safetensors"))
    for cache in found:
        assert snapshot(cache) == snapshot(filled.cache)


def test_a_launch_that_fails_changes_nothing(rng, monkeypatch):
    filled = Filled(GPU, page_size=16, capacity=64).append(rng, [30, 20])
    before, table = snapshot(filled.cache), filled.cache.page_table
    k, _ = filled.draw(rng, 2, 20, "float16")

    launch = Chain.__call__

    def failing(self, given, stream):
        launch(self, given, stream)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chain, "__call__", failing)
        with pytest.raises(KeyboardInterrupt):
            filled.cache.append(k, k)
    np.testing.assert_array_equal(on_host(filled.cache.device_lengths), [30, 20])
    np.testing.assert_array_equal(filled.cache.page_table, table)
    assert snapshot(filled.cache) == before
    filled.append(rng, [20, 30])
    filled.check_contents()


# ---- counts on the device


@some_formats
@pytest.mark.parametrize("page_size", [0, 32])
def test_counts_of_the_device(cupy, rng, options, page_size):
    wanted, filled = (Filled(GPU, batch=3, page_size=page_size, **options) for _ in range(2))
    if page_size:
        filled.cache.reserve(300)
    seed = rng.integers(2**32)
    wanted.append(np.random.default_rng(seed), [150, 0, 33])
    k, v = wanted.tokens()
    filled.cache.append(k, v, counts=cupy.array([150, 0, 33], dtype=cupy.int32))
    q, o = wanted.attend(rng, 4, 1)
    assert on_host(filled.cache.attend(q)).tobytes() == o.tobytes()
    assert snapshot(filled.cache) == snapshot(wanted.cache)


@some_formats
@pytest.mark.parametrize("counts", [(3, 5), (5, 0), (-1, 2), (2, 7)])
def test_refused_by_the_device(cupy, rng, options, counts):
    filled = Filled(GPU, capacity=64, **options).append(rng, [60, 60])
    before = snapshot(filled.cache)
    q, o = filled.attend(rng, 4, 1)
    k, _ = filled.draw(rng, 2, 6, "float16")
    filled.cache.append(k, k, counts=cupy.array(counts, dtype=cupy.int32))
    np.testing.assert_array_equal(on_host(filled.cache.device_lengths), [60, 60])
    assert on_host(filled.cache.attend(q)).tobytes() == o.tobytes()
    with pytest.raises(ArgumentError):
        _ = filled.cache.lengths
    assert snapshot(filled.cache) == before
    # It goes on as if nothing had been.
    filled.append(rng, [4, 1])
    filled.check_contents()


# ---- libraries


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_pytorch_tensors(torch, rng, dtype):
    filled = Filled(GPU).append(rng, [70, 30], dtype=dtype)
    q, o = filled.attend(rng, 4, 2, dtype=dtype)

    def tensor(x):
        if dtype == "bfloat16":
            return torch.from_dlpack(x.view(np.uint16).view(np.int16)).view(torch.bfloat16)
        return torch.from_dlpack(x)

    again = Filled(GPU)
    k, v = (tensor(x) for x in filled.tokens(dtype))
    again.cache.append(k, v, counts=np.array([70, 30]))
    assert snapshot(again.cache) == snapshot(filled.cache)
    found, lse = again.cache.attend(tensor(q), return_lse=True)
    assert isinstance(found, torch.Tensor)
    assert isinstance(lse, torch.Tensor)
    np.testing.assert_array_equal(found.float().cpu().numpy(), o)
    out = torch.empty_like(found)
    assert again.cache.attend(tensor(q), out=out) is out
    assert torch.equal(out, found)


def test_callers_pages_may_be_moved(rng):
    """A table may be set again, as long as the pages in use stay where they are."""
    filled = Filled(GPU, capacity=256, page_size=64, **FORMATS["4 bits"])
    random_pages(rng, filled.cache)
    filled.append(rng, [100, 64])
    table = np.array(filled.cache.page_table)
    table[0, 2:], table[1, 1:3] = table[0, 2:][::-1].copy(), table[1, 1:3][::-1].copy()
    filled.cache.set_page_table(table)
    filled.append(rng, [100, 100])
    filled.check_contents()
    filled.attend(rng, 4, 1)


@every_format
@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_who_sees_it(rng, options, which, bad):
    place, tokens, queries, at = GPU, 300, 40, 280
    k, v = (rng.standard_normal((2, 2, tokens, 64), dtype=np.float32) for _ in range(2))
    q = rng.standard_normal((2, 4, queries, 64), dtype=np.float32)
    # The second group of channels, of the first head of K and V in the second sequence.
    {"q": q, "k": k, "v": v}[which][1, 0, at if which != "q" else 7, 40] = bad
    cache = cuattn.KVCache(2, 2, 64, tokens, smooth_k=False, **options)
    cache.append(place.array(k), place.array(v))
    o, lse = (on_host(x) for x in cache.attend(place.array(q), return_lse=True))
    wanted = np.zeros((2, 4, queries), bool)
    if which == "q":
        wanted[1, 0, 7] = True
    else:
        # Query i sees the first tokens - queries + 1 + i tokens.
        wanted[1, :2, at - tokens + queries :] = True
    np.testing.assert_array_equal(np.isnan(o).all(axis=-1), wanted)
    np.testing.assert_array_equal(np.isnan(o).any(axis=-1), wanted)
    np.testing.assert_array_equal(np.isnan(lse), wanted)
