"""Sequences of different lengths on a GPU: each as if it were alone, whatever lies around it."""

from contextlib import nullcontext

import numpy as np
import pytest
from helpers.gpu_cases import mma_family, on_gpu, on_host, runs_here
from helpers.varlen_cases import LENGTHS_K, LENGTHS_Q, bounds, one_of, packed

import cuattn
from cuattn import ScoreMod
from cuattn.presets import PRESETS
from cuattn.reference import exact, varlen
from cuattn.scheme import Scheme

pytestmark = pytest.mark.gpu

ALL = {
    **{name: PRESETS[name] for name in ("fp16", "int8", "int8-block", "int8-fast", "int8-token")},
    **{name: PRESETS[name] for name in ("int8-fp16", "int8-fp8", "int4", "fp8", "sage2-8")},
    "rotated": Scheme("rotated", rotate="qkv", k_scope="block", v_scope="channel"),
    "half block": Scheme("half block", k_scope="block", pv="fp16", p_range="row", p_block=64),
    "plain fp8": Scheme("plain fp8", pv="fp8", v_scope="tensor", p_range="row", smooth_k="none"),
}
SCHEMES = {name: scheme for name, scheme in ALL.items() if runs_here(scheme)}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
FEW = [name for name in ("fp16", "int8", "int8-fast", "int8-token") if name in SCHEMES]

HEAD_DIMS = (64, 128, 96, 256)
OPTIONS = (
    {},
    {"is_causal": True},
    {"window_size": (70, 20)},
    {"is_causal": True, "softcap": 3.0},
    {"is_causal": True, "sinks": np.linspace(-1, 2, 4, dtype=np.float32)},
    {"alibi_slopes": np.linspace(0.1, 0.4, 4, dtype=np.float32)},
)


def turn_of(scheme, part, parts=2, turns=6):
    """Return one of the turns of a scheme, which come to all turns with others' together."""
    return (list(SCHEMES).index(scheme) + part * turns // parts) % turns


def call(arrays, bounds_q, bounds_k, scheme, **options):
    """Attend, and return o and lse in host memory."""
    import cupy

    options = {name: cupy.asarray(x) if hasattr(x, "dtype") else x for name, x in options.items()}
    cu = {"cu_seqlens_q": cupy.asarray(bounds_q), "cu_seqlens_k": cupy.asarray(bounds_k)}
    o, lse = cuattn.attention(*arrays, scheme=scheme, return_lse=True, **cu, **options)
    return on_host(o), on_host(lse)


def alone(arrays, spans, scheme, **options):
    """Attend one sequence by a call without lengths, and return [token, head, ...]."""
    import cupy

    options = {name: cupy.asarray(x) if hasattr(x, "dtype") else x for name, x in options.items()}
    q, k, v = (one_of(x, *spans[i]) for x, i in zip(arrays, (0, 1, 1), strict=True))
    o, lse = cuattn.attention(q, k, v, scheme=scheme, layout="NHD", return_lse=True, **options)
    return on_host(o)[0], on_host(lse)[0]


def check_each(arrays, bounds_q, bounds_k, result, scheme, **options):
    o, lse = result
    for b in range(len(bounds_q) - 1):
        spans = [tuple(map(int, x[b : b + 2])) for x in (bounds_q, bounds_k)]
        rows = slice(*spans[0])
        if rows.start == rows.stop:
            continue
        expected, of_rows = alone(arrays, spans, scheme, **options)
        np.testing.assert_array_equal(o[rows], expected, err_msg=f"sequence {b}")
        np.testing.assert_array_equal(lse[:, rows], of_rows, err_msg=f"sequence {b}")


def check_all(rng, name, turn, lengths=(LENGTHS_Q, LENGTHS_K), heads=(4, 2)):
    scheme, options = SCHEMES[name], OPTIONS[turn % len(OPTIONS)]
    head_dim = HEAD_DIMS[turn % len(HEAD_DIMS)]
    inputs = packed(rng, *lengths, heads=heads, head_dim=head_dim, beyond=9)
    arrays = [on_gpu(x, "float16") for x in inputs]
    at = bounds(lengths[0]), bounds(lengths[1])
    result = call(arrays, *at, scheme, **options)
    check_each(arrays, *at, result, scheme, **options)
    return inputs, at, result, options


@every_scheme
@pytest.mark.parametrize("part", range(2))
def test_each_sequence_is_as_if_alone(rng, scheme, part):
    check_all(rng, scheme, turn_of(scheme, part))


@pytest.mark.parametrize("scheme", FEW)
@pytest.mark.parametrize("part", range(3))
def test_kernels_of_single_warps_do_it_too(rng, scheme, part):
    with mma_family():
        check_all(rng, scheme, turn_of(scheme, part, parts=3))


@pytest.mark.parametrize("scheme", FEW)
@pytest.mark.parametrize("turn", [0, 1])
def test_more_items_than_multiprocessors(rng, scheme, turn):
    lengths = (3000, 1, 0, 517, 2048, 130), (3000, 900, 64, 0, 4100, 1)
    check_all(rng, scheme, turn, lengths, (16, 4))


@pytest.mark.parametrize("scheme", FEW)
def test_long_sequences_have_statistics_of_their_own_chunks(rng, scheme):
    lengths = (5000, 100, 700), (5000, 100, 700)
    check_all(rng, scheme, 0, lengths, (4, 2))


def test_result_is_that_of_the_definition(rng):
    inputs, at, (o, lse), options = check_all(rng, "fp16", 1)
    arrays = [x.astype(np.float16) for x in inputs]
    cu = {"cu_seqlens_q": at[0], "cu_seqlens_k": at[1]}
    expected, of_rows = varlen.attention(*arrays, **cu, **options)
    end = at[0][-1]
    np.testing.assert_allclose(o[:end], expected[:end], atol=4e-3)
    np.testing.assert_allclose(lse[:, :end], of_rows[:, :end], atol=1e-3)


def slopes_of(text, slopes):
    """Return an expression with slopes [sequence, head]."""
    batch, heads = slopes.shape
    x = {"slopes": on_gpu(slopes, "float32")}
    return ScoreMod(text, arrays=x, numbers={"heads": heads, "batches": batch})


@pytest.mark.parametrize("family", ["wgmma", "mma"])
@pytest.mark.parametrize("scheme", [*FEW, "int8-block"])
@pytest.mark.parametrize(
    ("text", "others"),
    [
        # Linear in the key, and not.
        ("score - slopes[batch * heads + head] * (own - kv)", {"is_causal": True}),
        ("kv % 3 == q % 2 ? score + slopes[batch * heads + head] : score", {}),
        ("score * slopes[batch * heads + head]", {"mask_mod": "own / 70 == kv / 70"}),
    ],
)
def test_expressions_know_which_sequence_they_are_asked_of(rng, scheme, family, text, others):
    inputs = packed(rng, LENGTHS_Q, LENGTHS_K, head_dim=(64, 128)[len(others)])
    arrays = [on_gpu(x, "float16") for x in inputs]
    at = bounds(LENGTHS_Q), bounds(LENGTHS_K)
    slopes = (rng.integers(-8, 9, (len(LENGTHS_Q), 4)) / 8).astype(np.float32)
    with mma_family() if family == "mma" else nullcontext():
        how = {"score_mod": slopes_of(text, slopes), **others}
        o, lse = call(arrays, *at, SCHEMES[scheme], **how)
        for b in range(len(LENGTHS_Q)):
            spans = [tuple(map(int, x[b : b + 2])) for x in at]
            rows = slice(*spans[0])
            if rows.start == rows.stop:
                continue
            own = {"score_mod": slopes_of(text, slopes[b : b + 1]), **others}
            expected, of_rows = alone(arrays, spans, SCHEMES[scheme], **own)
            np.testing.assert_array_equal(o[rows], expected, err_msg=f"sequence {b}")
            np.testing.assert_array_equal(lse[:, rows], of_rows, err_msg=f"sequence {b}")


@every_scheme
def test_bounds_of_lengths_change_nothing(rng, scheme):
    inputs = packed(rng, (130, 40), (200, 300))
    arrays = [on_gpu(x, "bfloat16") for x in inputs]
    at = bounds((130, 40)), bounds((200, 300))
    tight = call(arrays, *at, SCHEMES[scheme], max_seqlen_q=130, max_seqlen_k=300)
    for x, y in zip(call(arrays, *at, SCHEMES[scheme]), tight, strict=True):
        np.testing.assert_array_equal(x, y)


@every_scheme
def test_nan_reaches_its_own_sequence_only(rng, scheme):
    lengths = (100, 65, 33), (70, 129, 200)
    q, k, v = packed(rng, *lengths, head_dim=128)
    at = bounds(lengths[0]), bounds(lengths[1])
    clean = call([on_gpu(x, "float16") for x in (q, k, v)], *at, SCHEMES[scheme])
    for x, i in ((q, 0), (k, 1), (v, 1)):
        x[at[i][1] : at[i][2]] = np.nan
    dirty = call([on_gpu(x, "float16") for x in (q, k, v)], *at, SCHEMES[scheme])
    first, last = slice(0, at[0][1]), slice(at[0][2], at[0][3])
    for rows in (first, last):
        np.testing.assert_array_equal(dirty[0][rows], clean[0][rows])
        np.testing.assert_array_equal(dirty[1][:, rows], clean[1][:, rows])


@pytest.mark.parametrize("scheme", FEW)
def test_tokens_of_no_sequence_stay(rng, scheme):
    import cupy

    q, k, v = packed(rng, (50, 20), (60, 90), beyond=30)
    arrays = [on_gpu(x, "float16") for x in (q, k, v)]
    cu = {f"cu_seqlens_{x}": cupy.asarray(bounds(n)) for x, n in (("q", (50, 20)), ("k", (60, 90)))}
    wide = cupy.full((100, 4, 128), 7, "float16")
    # A contiguous one, and one that takes a copy.
    for out in (cupy.full((100, 4, 64), 7, "float16"), wide[..., ::2]):
        o = cuattn.attention(*arrays, scheme=SCHEMES[scheme], out=out, **cu)
        assert o is out
        assert (on_host(out)[70:] == 7).all()
        assert np.isfinite(on_host(out)[:70]).all()


def test_without_any_key_rows_of_sequences_are_zeros(rng):
    import cupy

    for dtype in ("float16", "bfloat16", "float32"):
        q, k, v = (on_gpu(x, dtype) for x in packed(rng, (40, 10), (0, 0), beyond=10))
        out = on_gpu(np.full((60, 4, 64), 7, np.float32), dtype)
        cu = {"cu_seqlens_q": bounds((40, 10)), "cu_seqlens_k": bounds((0, 0))}
        cu = {name: cupy.asarray(x) for name, x in cu.items()}
        cuattn.attention(q, k[:0], v[:0], **cu, out=out)
        assert not on_host(out)[:50].any()
        assert (on_host(out)[50:] == 7).all()


@every_scheme
@pytest.mark.parametrize("is_packed", [True, False])
def test_graph_is_replayed_with_other_lengths(rng, scheme, is_packed):
    import cupy

    how, stream = SCHEMES[scheme], cupy.cuda.Stream(non_blocking=True)
    cases = [((130, 40, 0), (200, 1, 99)), ((1, 99, 70), (0, 150, 150))]
    pool = cupy.cuda.MemoryPool()
    if is_packed:
        inputs = packed(rng, (60, 60, 50), (100, 100, 100))
        lengths = [{"cu_seqlens_q": bounds(q), "cu_seqlens_k": bounds(k)} for q, k in cases]
    else:
        shapes = (3, 4, 90, 64), (3, 2, 300, 64), (3, 2, 300, 64)
        inputs = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
        lengths = [{"seqused_k": np.array(k, np.int32)} for _, k in cases]
    with stream, cupy.cuda.using_allocator(pool.malloc):
        arrays = [on_gpu(x, "float16") for x in inputs]
        out = cupy.zeros_like(arrays[0])
        given = {name: cupy.asarray(x) for name, x in lengths[0].items()}
        cuattn.attention(*arrays, scheme=how, out=out, **given)
        stream.begin_capture()
        cuattn.attention(*arrays, scheme=how, out=out, **given)
        graph = stream.end_capture()
        for each in (*lengths, lengths[0]):
            for name, x in each.items():
                given[name].set(x)
            graph.launch(stream)
            stream.synchronize()
            replayed = on_host(out)
            fresh = {name: cupy.asarray(x) for name, x in each.items()}
            expected = cuattn.attention(*arrays, scheme=how, **fresh)
            stream.synchronize()
            end = each["cu_seqlens_q"][-1] if is_packed else None
            np.testing.assert_array_equal(replayed[:end], on_host(expected)[:end])


@every_scheme
@pytest.mark.parametrize("part", range(2))
def test_padding_has_no_effect(rng, scheme, part):
    import cupy

    turn = turn_of(scheme, part, turns=4)
    head_dim, options = HEAD_DIMS[turn], OPTIONS[turn]
    used = np.array([0, 1, 130, 257, 300], np.int32)
    shapes = (5, 4, 150, head_dim), (5, 2, 300, head_dim), (5, 2, 300, head_dim)
    q, k, v = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    for b, n in enumerate(used):
        k[b, :, n:] = np.nan
        v[b, :, n:] = np.inf
    arrays = [on_gpu(x, "float16") for x in (q, k, v)]
    how = {"scheme": SCHEMES[scheme], "return_lse": True, **options}
    found = cuattn.attention(*arrays, seqused_k=cupy.asarray(used), **how)
    for b, n in enumerate(used):
        one = [arrays[0][b : b + 1], *(x[b : b + 1, :, :n] for x in arrays[1:])]
        expected = cuattn.attention(*one, **how)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_array_equal(on_host(x)[b], on_host(y)[0], err_msg=f"{n} keys")


@pytest.mark.parametrize("scheme", FEW)
def test_padding_and_a_mask(rng, scheme):
    import cupy

    used = np.array([70, 200], np.int32)
    shapes = (2, 4, 100, 64), (2, 2, 260, 64), (2, 2, 260, 64)
    inputs = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    mask = rng.random((100, 260)) < 0.5
    arrays = [on_gpu(x, "float16") for x in inputs]
    given = {"attn_mask": cupy.asarray(mask), "seqused_k": cupy.asarray(used)}
    o = on_host(cuattn.attention(*arrays, scheme=SCHEMES[scheme], **given))
    halves = [x.astype(np.float16) for x in inputs]
    expected, _ = exact.attention(*halves, attn_mask=mask, seqused_k=used)
    np.testing.assert_allclose(o, expected, atol=0.08)


@pytest.mark.parametrize("scheme", FEW)
def test_seqused_k_of_sequences_that_lie_end_to_end(rng, scheme):
    import cupy

    lengths = (100, 65), (170, 229)
    q, k, v = packed(rng, *lengths)
    k[130:170], v[130:170] = np.nan, np.nan
    arrays = [on_gpu(x, "float16") for x in (q, k, v)]
    at = bounds(lengths[0]), bounds(lengths[1])
    used = cupy.asarray(np.array([130, 229], np.int32))
    o, lse = call(arrays, *at, SCHEMES[scheme], seqused_k=used, is_causal=True)
    for rows, keys in (((0, 100), (0, 130)), ((100, 165), (170, 399))):
        expected, of_rows = alone(arrays, [rows, keys], SCHEMES[scheme], is_causal=True)
        np.testing.assert_array_equal(o[slice(*rows)], expected)
        np.testing.assert_array_equal(lse[:, slice(*rows)], of_rows)


@pytest.mark.parametrize("scheme", FEW)
def test_many_short_sequences(rng, scheme):
    lengths = rng.integers(0, 20, 300)
    inputs = packed(rng, lengths, lengths, heads=(2, 1))
    arrays = [on_gpu(x, "float16") for x in inputs]
    at = bounds(lengths)
    o, _ = call(arrays, at, at, SCHEMES[scheme], max_seqlen_q=20, max_seqlen_k=20)
    halves = [x.astype(np.float16) for x in inputs]
    expected, _ = varlen.attention(*halves, cu_seqlens_q=at, cu_seqlens_k=at)
    np.testing.assert_allclose(o, expected, atol=0.15)
