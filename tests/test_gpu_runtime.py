"""Streams, threads, graphs, other libraries' arrays, and values that are not finite, on a GPU."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gpu_cases import SCHEMES, _kernels, every_preset, make, on_gpu, on_host  # noqa: F401

import cuattn
from cuattn.errors import ArgumentError
from cuattn.reference import exact

pytestmark = pytest.mark.gpu


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return torch


@pytest.fixture
def jax(monkeypatch):
    # Leaves memory to CuPy; has an effect only if no test before has started JAX.
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = pytest.importorskip("jax")
    try:
        jax.devices("cuda")
    except RuntimeError as error:
        pytest.skip(f"this JAX has no CUDA: {error}")
    return jax


def arrays(rng, dtype="float16", **sizes):
    sizes = {"heads": (4, 2), "seqlens": (200, 300), "head_dim": 64} | sizes
    return [on_gpu(x, dtype) for x in make(rng, **sizes)]


def delay(cupy, stream, seconds=0.05):
    """Keep a stream busy, so that whoever does not wait for it reads too early."""
    spin = cupy.RawKernel(
        r"""extern "C" __global__ void spin(long long cycles) {
          for (const long long end = clock64() + cycles; clock64() < end;) {}
        }""",
        "spin",
    )
    with stream:
        spin((1,), (1,), (np.int64(seconds * 1.5e9),))


# ---- streams


@every_preset
def test_work_is_ordered_on_the_current_stream(cupy, rng, scheme):
    q, k, v = arrays(rng)
    expected = on_host(cuattn.attention(q, k, v, scheme=scheme))
    stream = cupy.cuda.Stream(non_blocking=True)
    late = [cupy.zeros_like(x) for x in (q, k, v)]
    cupy.cuda.Device().synchronize()
    delay(cupy, stream)
    with stream:
        for to, x in zip(late, (q, k, v), strict=True):
            to[...] = x
        o = cuattn.attention(*late, scheme=scheme)
        found = on_host(o)
    np.testing.assert_array_equal(found, expected)


def test_nothing_waits_for_the_gpu(cupy, rng):
    q, k, v = arrays(rng)
    stream = cupy.cuda.Stream(non_blocking=True)

    def call_everything():
        for scheme in SCHEMES.values():
            cuattn.attention(q, k, v, scheme=scheme, return_lse=True)
            cuattn.attention(q, k, v, scheme=scheme, out=cupy.empty_like(q))
        cuattn.quantize(q, operand="q")

    with stream:
        call_everything()  # loads kernels and fills the stream's part of the memory pool
        stream.synchronize()
        delay(cupy, stream, seconds=0.5)
        call_everything()
        # The stream is still at its first kernel, so no call has waited for the end of its own.
        assert not stream.done
        stream.synchronize()


def test_explicit_stream_waits_for_cupys_current_one(cupy, rng):
    q, k, v = arrays(rng)
    expected = on_host(cuattn.attention(q, k, v))
    producer, consumer = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    late = [cupy.zeros_like(x) for x in (q, k, v)]
    cupy.cuda.Device().synchronize()
    delay(cupy, producer)
    with producer:
        for to, x in zip(late, (q, k, v), strict=True):
            to[...] = x
        results = [
            cuattn.attention(*late, stream=consumer),
            cuattn.attention(*late, stream=consumer.ptr),
        ]
    consumer.synchronize()
    for o in results:
        np.testing.assert_array_equal(on_host(o), expected)


def test_inputs_may_be_freed_while_they_are_in_use(cupy, rng):
    """Of arrays on another stream their library does not know that the GPU still reads them."""
    given = arrays(rng)
    expected = on_host(cuattn.attention(*given))
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    delay(cupy, stream)
    o = cuattn.attention(*given, stream=stream)
    sizes = [x.nbytes for x in given]
    del given
    for nbytes in sizes * 4:
        cupy.full(nbytes, 0x7F, cupy.uint8)
    stream.synchronize()
    np.testing.assert_array_equal(on_host(o), expected)


def test_wrong_stream_is_named(rng):
    q, k, v = arrays(rng)
    with pytest.raises(ArgumentError, match=r"^stream must be"):
        cuattn.attention(q, k, v, stream="the usual one")


# ---- threads


def test_threads_share_prepared_calls(cupy, rng):
    given = {name: [arrays(np.random.default_rng(seed)) for seed in range(4)] for name in SCHEMES}
    expected = {
        (name, i): on_host(cuattn.attention(*x, scheme=SCHEMES[name]))
        for name, some in given.items()
        for i, x in enumerate(some)
    }
    cupy.cuda.Device().synchronize()
    barrier = threading.Barrier(8)

    def work(worker):
        barrier.wait()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            for turn in range(40):
                i = (worker + turn) % 4
                name = list(SCHEMES)[(worker * 3 + turn) % len(SCHEMES)]
                o = cuattn.attention(*given[name][i], scheme=SCHEMES[name])
                stream.synchronize()
                np.testing.assert_array_equal(on_host(o), expected[name, i])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


# ---- graphs


@every_preset
def test_call_is_captured_and_replayed(cupy, rng, scheme):
    first, second = (arrays(rng) for _ in range(2))
    q, k, v = (x.copy() for x in first)
    out = cupy.empty_like(q)
    expected = [on_host(cuattn.attention(*x, scheme=scheme)) for x in (first, second)]
    pool = cupy.cuda.MemoryPool()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        cuattn.attention(q, k, v, scheme=scheme, out=out)
        _, lse = cuattn.attention(q, k, v, scheme=scheme, return_lse=True)
        graph = stream.end_capture()
        for inputs, wanted in zip((first, second, first), (*expected, expected[0]), strict=True):
            for to, x in zip((q, k, v), inputs, strict=True):
                to[...] = x
            out.fill(np.nan)
            lse.fill(np.nan)
            graph.launch(stream)
            # What others do meanwhile with the default pool does not disturb the graph.
            with cupy.cuda.using_allocator(cupy.get_default_memory_pool().malloc):
                cuattn.attention(*second, scheme=scheme)
            stream.synchronize()
            np.testing.assert_array_equal(on_host(out), wanted)
            assert np.isfinite(on_host(lse)).all()


def test_call_is_captured_by_pytorch(cupy, torch, rng):
    inputs = [torch.from_dlpack(x) for x in arrays(rng)]
    expected = cuattn.attention(*inputs)
    held = [x.clone() for x in inputs]
    pool = cupy.cuda.MemoryPool()
    graph = torch.cuda.CUDAGraph()
    with cupy.cuda.using_allocator(pool.malloc):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            cuattn.attention(*held)  # so that the pool has what the capture needs
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side):
            o = cuattn.attention(*held)
    o.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(o, expected)


# ---- arrays of other libraries


@every_preset
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_pytorch_tensors(torch, rng, scheme, dtype):
    inputs = arrays(rng, dtype)
    expected, expected_lse = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    tensors = [as_torch(torch, x) for x in inputs]
    o, lse = cuattn.attention(*tensors, scheme=scheme, return_lse=True)
    assert isinstance(o, torch.Tensor)
    assert (o.dtype, o.device, o.shape) == (tensors[0].dtype, tensors[0].device, tensors[0].shape)
    assert lse.dtype == torch.float32
    np.testing.assert_array_equal(o.float().cpu().numpy(), on_host(expected))
    np.testing.assert_array_equal(lse.cpu().numpy(), on_host(expected_lse))
    out = torch.empty_like(tensors[0])
    assert cuattn.attention(*tensors, scheme=scheme, out=out) is out
    assert torch.equal(out, o)
    # Layout and strides as models have them.
    nhd = [x.transpose(1, 2) for x in tensors]
    again = cuattn.attention(*nhd, scheme=scheme, layout="NHD")
    assert torch.equal(again.transpose(1, 2), o)


def as_torch(torch, x):
    if x.dtype.name != "bfloat16":
        return torch.from_dlpack(x)
    return torch.from_dlpack(x.view(np.uint16).view(np.int16)).view(torch.bfloat16)


def test_pytorch_stream_is_followed(cupy, torch, rng):
    inputs = [torch.from_dlpack(x) for x in arrays(rng)]
    expected = cuattn.attention(*inputs)
    late = [torch.zeros_like(x) for x in inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    delay(cupy, cupy.cuda.Stream.from_external(stream))
    with torch.cuda.stream(stream):
        for to, x in zip(late, inputs, strict=True):
            to.copy_(x)
        o = cuattn.attention(*late)
        codes = cuattn.quantize(late[1])
        same = torch.equal(o, expected)
    assert same
    stream.synchronize()
    reference = cuattn.quantize(inputs[1])
    np.testing.assert_array_equal(codes.codes.get(), reference.codes.get())


def test_pytorch_memory_freed_early_is_not_reused(torch, rng):
    inputs = [torch.from_dlpack(x) for x in arrays(rng)]
    expected = cuattn.attention(*inputs)
    for _ in range(20):
        o = cuattn.attention(*(x.clone() for x in inputs))
        torch.full_like(inputs[0], 7.0)
        assert torch.equal(o, expected)


def test_pytorch_tensors_that_need_gradients_are_refused(torch, rng):
    q, k, v = (torch.from_dlpack(x) for x in arrays(rng))
    with pytest.raises(ArgumentError, match=r"^k must be an array that DLPack can share .*detach"):
        cuattn.attention(q, k.clone().requires_grad_(), v)


def test_pytorch_and_cupy_arrays_mix(torch, rng):
    q, k, v = arrays(rng)
    expected = on_host(cuattn.attention(q, k, v))
    o = cuattn.attention(torch.from_dlpack(q), k, torch.from_dlpack(v))
    assert isinstance(o, torch.Tensor)
    np.testing.assert_array_equal(o.cpu().numpy(), expected)
    out = torch.empty(q.shape, dtype=torch.float16, device="cuda")
    assert cuattn.attention(q, torch.from_dlpack(k), v, out=out) is out
    torch.cuda.synchronize()
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


@every_preset
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_jax_arrays(jax, rng, scheme, dtype):
    inputs = arrays(rng, dtype)
    expected, expected_lse = cuattn.attention(*inputs, scheme=scheme, return_lse=True)
    given = [jax.numpy.asarray(on_host(x)).astype(dtype) for x in inputs]
    o, lse = cuattn.attention(*given, scheme=scheme, return_lse=True)
    assert isinstance(o, jax.Array)
    assert o.dtype == given[0].dtype
    np.testing.assert_array_equal(np.asarray(o.astype("float32")), on_host(expected))
    np.testing.assert_array_equal(np.asarray(lse), on_host(expected_lse))


def test_jax_arrays_that_are_not_ready_yet(jax, rng):
    inputs = [on_host(x) for x in arrays(rng, "float32")]
    expected = on_host(cuattn.attention(*(on_gpu(x, "float32") for x in inputs)))

    @jax.jit
    def slowly(x):
        big = jax.numpy.ones((4096, 4096))
        for _ in range(20):
            big = big @ big * 1e-4
        return x + 0 * big[0, 0]

    for _ in range(5):
        # Neither waited for nor kept.
        o = cuattn.attention(*(slowly(jax.numpy.asarray(x)) for x in inputs))
        np.testing.assert_array_equal(np.asarray(o), expected)


def test_arrays_on_host_and_gpu_do_not_mix(rng):
    q, k, v = arrays(rng)
    with pytest.raises(ArgumentError, match=r"^k\.device must be"):
        cuattn.attention(q, on_host(k), v)
    with pytest.raises(ArgumentError, match=r"^out\.device must be"):
        cuattn.attention(q, k, v, out=on_host(q))
    with pytest.raises(ArgumentError, match=r"^k"):
        cuattn.attention(on_host(q), k, on_host(v))


# ---- what is written


@every_preset
def test_inputs_are_never_written(cupy, rng, scheme):
    inputs = arrays(rng, heads=(4, 2), seqlens=(129, 257), head_dim=72)
    before = [on_host(x) for x in inputs]
    for layout in ("HND", "NHD"):
        given = [x if layout == "HND" else x.transpose(0, 2, 1, 3) for x in inputs]
        cuattn.attention(*given, scheme=scheme, layout=layout, is_causal=True, return_lse=True)
    for x, was in zip(inputs, before, strict=True):
        assert on_host(x).tobytes() == was.tobytes()


@every_preset
def test_only_the_output_is_written(cupy, rng, scheme):
    q, k, v = arrays(rng, seqlens=(129, 257), head_dim=40)
    marker = 123.0
    around = cupy.full((q.shape[0], q.shape[1], q.shape[2] + 8, 56), marker, q.dtype)
    inside = around[:, :, 4:-4, 8:48]
    cuattn.attention(q, k, v, scheme=scheme, out=inside)
    np.testing.assert_array_equal(
        on_host(inside), on_host(cuattn.attention(q, k, v, scheme=scheme))
    )
    inside[...] = marker
    assert bool((around == marker).all())


def test_refused_calls_touch_nothing(cupy, rng):
    q, k, v = arrays(rng)
    out = cupy.full_like(q, 5)
    for call in (
        {"scale": -1.0},
        {"scheme": "int3"},
        {"is_causal": "no"},
        {"check_finite": True},
    ):
        given = (q, k, v) if "check_finite" not in call else (q, k, v * np.float16(np.inf))
        with pytest.raises(ArgumentError):
            cuattn.attention(*given, out=out, **call)
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of q"):
        cuattn.attention(k, k, v, out=k)
    assert bool((out == 5).all())


# ---- NaN and infinities


@every_preset
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_in_a_query_stays_in_its_row(rng, scheme, poison):
    q, k, v = arrays(rng)
    clean, clean_lse = map(on_host, cuattn.attention(q, k, v, scheme=scheme, return_lse=True))
    q[0, 1, 77, 5] = poison
    o, lse = map(on_host, cuattn.attention(q, k, v, scheme=scheme, return_lse=True))
    assert np.isnan(o[0, 1, 77]).all()
    assert np.isnan(lse[0, 1, 77])
    for x, y in ((o, clean), (lse, clean_lse)):
        x[0, 1, 77] = y[0, 1, 77]
        np.testing.assert_array_equal(x, y)


@every_preset
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_in_a_key_reaches_the_rows_that_see_it(rng, scheme, poison):
    q, k, v = arrays(rng, heads=(2, 2), seqlens=(600, 600))
    clean = on_host(cuattn.attention(q, k, v, scheme=scheme, is_causal=True))
    k[0, 0, 450, 2] = poison
    o = on_host(cuattn.attention(q, k, v, scheme=scheme, is_causal=True))
    how = SCHEMES[scheme]
    # A scale per block of 128 keys makes the whole block unusable.
    first = 384 if how.k_scope == "block" and how.qk == "int8" else 450
    hit = np.isnan(o[0, 0]).any(axis=1)
    if how.qk == "fp16" and poison == np.inf:
        # Unquantized, the logit is negative for some rows, which then give the key no weight.
        assert hit[first:].any()
        assert not hit[:first].any()
    else:
        np.testing.assert_array_equal(hit, np.arange(600) >= first)
    np.testing.assert_array_equal(o[0, 1], clean[0, 1])
    if how.smooth_k == "none":
        np.testing.assert_array_equal(o[0, 0, :first], clean[0, 0, :first])


@every_preset
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_in_a_value_reaches_as_far_as_its_scale(rng, scheme, poison):
    q, k, v = arrays(rng, heads=(2, 2), seqlens=(600, 600))
    v[0, 0, 450, 2] = poison
    o = on_host(cuattn.attention(q, k, v, scheme=scheme, is_causal=True))
    how = SCHEMES[scheme]
    bad = ~np.isfinite(o[0, 0])
    if how.pv == "int8" and how.v_scope == "tensor":
        assert bad.all()
    elif how.pv == "int8" and how.v_scope == "channel":
        assert bad[:, 2].all()
        assert not np.delete(bad, 2, axis=1).any()
    else:
        seen = np.arange(600) >= 450
        if how.pv == "int8":
            np.testing.assert_array_equal(bad, np.broadcast_to(seen[:, None], bad.shape))
        else:
            # 0 * NaN in the products of a tile of keys: rows of the same tile may be hit as well.
            assert bad[seen, 2].all()
            assert not bad[:384].any()
            assert not np.delete(bad, 2, axis=1).any()
    assert np.isfinite(o[0, 1]).all()


@every_preset
def test_poison_where_no_row_looks_has_no_effect(rng, scheme):
    q, k, v = arrays(rng, heads=(2, 2), seqlens=(300, 37))
    v[...] = np.nan
    o, lse = cuattn.attention(q, k, v, scheme=scheme, is_causal=True, return_lse=True)
    assert not on_host(o)[:, :, :200].any()
    assert (on_host(lse)[:, :, :263] == -np.inf).all()


def test_check_finite_names_the_input(rng):
    for dtype in ("float16", "float32", "bfloat16"):
        for which, name in enumerate("qkv"):
            given = arrays(rng, dtype)
            cuattn.attention(*given, check_finite=True)
            poisoned = on_host(given[which])
            poisoned[0, 1, 2, 3] = np.nan
            given[which] = on_gpu(poisoned, dtype)
            with pytest.raises(ArgumentError, match=f"^{name} must be without NaN and infinity"):
                cuattn.attention(*given, check_finite=True)


# ---- sizes


def test_many_heads_and_batches(rng):
    """Grids along all three axes, and more CTAs than the GPU holds at a time."""
    inputs = make(rng, batch=3, heads=(40, 20), seqlens=(130, 70), head_dim=32)
    o = on_host(cuattn.attention(*(on_gpu(x, "float16") for x in inputs)))
    rounded = [x.astype(np.float16) for x in inputs]
    truth, _ = exact.attention(*rounded)
    assert np.abs(o - truth).sum() <= 0.02 * np.abs(truth).sum()


def test_addresses_beyond_32_bits(cupy):
    """Eight gigabytes of V, of which the last head counts."""
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < 24 << 30:
        pytest.skip("takes 24 GiB")
    heads, n, d = 2048, 16384, 128
    kv = cupy.zeros((1, heads, n, d), cupy.float16)
    kv[0, -1] = cupy.asarray(np.random.default_rng(0).standard_normal((n, d)), cupy.float16)
    q = cupy.zeros((1, heads, 1, d), cupy.float16)
    q[0, -1] = cupy.asarray(np.random.default_rng(1).standard_normal((1, d)), cupy.float16)
    for scheme in ("int8", "int8-block", "fp16"):
        o = cuattn.attention(q, kv, kv, scheme=scheme)
        alone = cuattn.attention(q[:, -1:], kv[:, -1:], kv[:, -1:], scheme=scheme)
        np.testing.assert_array_equal(on_host(o[:, -1:]), on_host(alone))
        assert not bool(o[:, :-1].any())
        del o, alone
        cupy.get_default_memory_pool().free_all_blocks()
