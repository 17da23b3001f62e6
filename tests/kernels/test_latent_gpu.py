"""The latent cache on a GPU: contents bit for bit, attention against the reference on its codes."""

import numpy as np
import pytest
from helpers.gpu_cases import assert_close, assert_same_lse, on_gpu, on_host

import cuattn
from cuattn.reference.latent import decode_latent, quantize_latent

pytestmark = pytest.mark.gpu

SCALE = 192**-0.5


class Filled:
    """A cache, and the tokens that it was given, on the host."""

    def __init__(self, batch, capacity=700, **options):
        self.cache = cuattn.LatentKVCache(batch, capacity, **options)
        self.dtype = options.get("rope_dtype", "bfloat16")
        self.latent = np.zeros((batch, capacity, 512), np.float32)
        self.rope = np.zeros((batch, capacity, 64), np.float32)
        self.lengths = np.zeros(batch, np.int64)

    def append(self, rng, counts, dtype="float16"):
        batch = len(self.lengths)
        counts = np.broadcast_to(counts, (batch,))
        most = int(counts.max())
        drawn = rng.standard_normal((batch, most, 576), dtype=np.float32)
        drawn[..., 5] *= 8
        for b, count in enumerate(counts):
            drawn[b, count:] = np.nan  # whoever reads what is not real spreads it
        x = on_gpu(drawn, dtype)
        self.cache.append(x[..., :512], x[..., 512:], counts=counts.copy())
        values = on_host(x).astype(np.float32)
        for b, (n, count) in enumerate(zip(self.lengths, counts, strict=True)):
            self.latent[b, n : n + count] = values[b, :count, :512]
            self.rope[b, n : n + count] = values[b, :count, 512:]
        self.lengths = self.lengths + counts
        return self

    def check_contents(self):
        found = self.cache.codes()
        wanted = quantize_latent(self.latent, self.rope, self.dtype)
        np.testing.assert_array_equal(self.cache.lengths, self.lengths)
        for b, n in enumerate(self.lengths):
            for name in ("codes", "scale", "rope"):
                x, y = (getattr(of, name)[b, :n] for of in (found, wanted))
                np.testing.assert_array_equal(x, y)

    def attend(self, rng, heads, queries, dtype="float16", layout="HND", **options):
        shape = (len(self.lengths), heads, queries, 576)
        q = on_gpu(rng.standard_normal(shape, dtype=np.float32), dtype)
        values = on_host(q).astype(np.float32)
        given = q if layout == "HND" else q.swapaxes(1, 2)
        o, lse = self.cache.attend(given, scale=SCALE, layout=layout, return_lse=True, **options)
        assert o.dtype == q.dtype
        host = on_host(o) if layout == "HND" else on_host(o).swapaxes(1, 2)
        wanted, wanted_lse = decode_latent(
            values, self.cache.codes(), self.lengths, scale=SCALE, **options
        )
        for b in range(len(self.lengths)):
            assert_close(host[b].astype(np.float64), wanted[b], dtype)
            assert_same_lse(on_host(lse)[b].astype(np.float64), wanted_lse[b])
        return given, o


@pytest.mark.parametrize("page_size", [0, 64, 256])
@pytest.mark.parametrize("rope_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_it_matches_the_reference(rng, dtype, rope_dtype, page_size):
    filled = Filled(4, page_size=page_size, rope_dtype=rope_dtype)
    for counts in ([300, 0, 65, 128], [1, 1, 1, 1], [200, 0, 3, 64]):
        filled.append(rng, counts, dtype)
        filled.check_contents()
        filled.attend(rng, 16, 1, dtype)


@pytest.mark.parametrize("heads", [1, 7, 16, 17, 32, 33, 64, 100, 128])
def test_every_number_of_heads(rng, heads):
    filled = Filled(2).append(rng, [391, 64])
    filled.attend(rng, heads, 1)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 256, 500])
@pytest.mark.parametrize("heads", [16, 64])
def test_every_length(rng, length, heads):
    Filled(1).append(rng, length).attend(rng, heads, 1)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_several_queries(rng, is_causal, layout):
    filled = Filled(3).append(rng, [260, 2, 130])
    filled.attend(rng, 24, 3, layout=layout, is_causal=is_causal)
    filled.attend(rng, 128, 2, layout=layout, is_causal=is_causal)


@pytest.mark.parametrize("heads", [16, 128])
def test_a_long_sequence_is_shared_by_all_multiprocessors(rng, heads):
    filled = Filled(1, capacity=60000)
    for _ in range(7):
        filled.append(rng, 8192)
    filled.append(rng, 1001).attend(rng, heads, 1)


@pytest.mark.parametrize(("batch", "heads"), [(40, 128), (20, 16)])
def test_heads_of_many_sequences(rng, batch, heads):
    lengths = rng.integers(0, 700, batch)
    Filled(batch).append(rng, lengths).attend(rng, heads, 1)


@pytest.mark.parametrize(("batch", "heads"), [(1, 128), (7, 16)])
def test_whoever_merges_parts_has_the_same_bits(monkeypatch, rng, batch, heads):
    filled = (
        Filled(batch, capacity=9000)
        .append(rng, 5000)
        .append(rng, [3000 - 7 * b for b in range(batch)])
    )
    found = []
    for nbytes in (0, 1 << 40):
        monkeypatch.setattr("cuattn.latent.device._MERGED_BYTES", nbytes)
        filled.cache = filled.cache.copy()  # which has prepared no call
        q = on_gpu(np.random.default_rng(0).standard_normal((batch, heads, 1, 576)), "float16")
        o, lse = filled.cache.attend(q, scale=SCALE, return_lse=True)
        found.append(on_host(o).tobytes() + on_host(lse).tobytes())
    assert found[0] == found[1]


def test_runs_are_bit_identical(rng):
    filled = Filled(5, capacity=3000).append(rng, [3000, 1, 1700, 128, 640])
    for heads in (16, 128):
        q, o = filled.attend(rng, heads, 1)
        for _ in range(10):
            again = filled.cache.attend(q, scale=SCALE)
            assert on_host(again).tobytes() == on_host(o).tobytes()


def test_a_graph_follows_the_lengths(cupy, rng):
    filled = Filled(2, capacity=300).append(rng, [130, 5])
    tokens = [on_gpu(rng.standard_normal((2, 1, n)), "float16") for n in (512, 64)]
    q = on_gpu(rng.standard_normal((2, 128, 1, 576)), "float16")
    values = [on_host(x).astype(np.float32) for x in tokens]
    out = cupy.empty((2, 128, 1, 512), np.float16)
    cupy.cuda.Device().synchronize()  # what follows is on another stream
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            filled.cache.append(*tokens)
            filled.cache.attend(q, scale=SCALE, out=out)
            stream.begin_capture()
            filled.cache.append(*tokens)
            filled.cache.attend(q, scale=SCALE, out=out)
            graph = stream.end_capture()
        for n in range(2, 5):
            graph.launch(stream)
            stream.synchronize()
            np.testing.assert_array_equal(filled.cache.lengths, [130 + n, 5 + n])
            wanted, _ = decode_latent(
                on_host(q), filled.cache.codes(), filled.cache.lengths, scale=SCALE
            )
            assert_close(on_host(out).astype(np.float64), wanted, "float16")
    found = filled.cache.codes()
    made = quantize_latent(*values)
    np.testing.assert_array_equal(found.codes[0, 133], made.codes[0, 0])


def test_an_output_between_other_memory(cupy, rng):
    filled = Filled(2).append(rng, [100, 300])
    q, o = filled.attend(rng, 32, 2)
    for step in (513, 514, 520):
        room = cupy.zeros((2, 32, 2, step), np.float16)
        filled.cache.attend(q, scale=SCALE, out=room[..., :512])
        assert on_host(room[..., :512]).tobytes() == on_host(o).tobytes()
        assert not room[..., 512:].any()


def test_a_refused_append_changes_nothing(cupy, rng):
    filled = Filled(2, capacity=100).append(rng, [90, 3])
    counts = cupy.asarray([20, 1], np.int32)
    x = on_gpu(rng.standard_normal((2, 20, 576)), "float16")
    filled.cache.append(x[..., :512], x[..., 512:], counts=counts)
    with pytest.raises(cuattn.ArgumentError, match="the GPU has refused"):
        _ = filled.cache.lengths
    filled.check_contents()


@pytest.mark.parametrize("page_size", [0, 64])
def test_a_file_has_all_of_it(rng, tmp_path, page_size):
    pytest.importorskip("safetensors")
    filled = Filled(3, page_size=page_size).append(rng, [300, 0, 65])
    filled.cache.save(tmp_path / "cache.safetensors")
    q, o = filled.attend(rng, 16, 2)
    for device in (None, "cpu"):
        filled.cache = cuattn.LatentKVCache.load(tmp_path / "cache.safetensors", device)
        filled.check_contents()
        filled.cache.save(tmp_path / "cache.safetensors")
    filled.cache = cuattn.LatentKVCache.load(tmp_path / "cache.safetensors")
    again = filled.cache.attend(q, scale=SCALE)
    np.testing.assert_array_equal(on_host(again), on_host(o))
    filled.append(rng, [1, 70, 1]).check_contents()


@pytest.mark.parametrize("page_size", [0, 64])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tokens_end_to_end(cupy, rng, dtype, page_size):
    packed, filled = (Filled(4, page_size=page_size) for _ in range(2))
    packed.cache.reserve(500)
    steps = ([300, 0, 65, 1], [1, 1, 1, 1], [0, 130, 0, 63], [3, 0, 40, 0])
    for step, counts in enumerate(steps):
        drawn = rng.standard_normal((sum(counts) + 2, 576), dtype=np.float32)
        drawn[sum(counts) :] = np.nan
        x, ends = on_gpu(drawn, dtype), np.cumsum([0, *counts]).tolist()
        bounds = cupy.asarray(np.array(ends, np.int32)) if step == 1 else ends
        packed.cache.append(x[:, :512], x[:, 512:], cu_seqlens_k=bounds)
        assert packed.cache.lengths.tolist() == np.sum(steps[: step + 1], axis=0).tolist()
        apart = cupy.zeros((4, max(counts), 576), x.dtype)
        for b, count in enumerate(counts):
            apart[b, :count] = x[ends[b] : ends[b] + count]
        filled.cache.append(apart[..., :512], apart[..., 512:], counts=counts)
    x = on_gpu(rng.standard_normal((7, 576), dtype=np.float32), dtype)
    packed.cache.append(x[:, :512], x[:, 512:], cu_seqlens_k=[0, 5, 7], sequences=[2, 0])
    for b, rows in ((2, slice(0, 5)), (0, slice(5, 7))):
        counts = [rows.stop - rows.start if b == i else 0 for i in range(4)]
        apart = cupy.repeat(x[None, rows], 4, axis=0)
        filled.cache.append(apart[..., :512], apart[..., 512:], counts=counts)
    for name in ("codes", "scale", "rope"):
        found, wanted = (getattr(one.cache.codes(), name) for one in (packed, filled))
        np.testing.assert_array_equal(found, wanted)
