"""Windows, softcap, sinks, masks and ALiBi in decoding, on the host and on a GPU."""

import numpy as np
import pytest
from helpers.gpu_cases import assert_same_lse, relative_l1
from helpers.kv_contents_cases import (
    DTYPES,
    HOST,
    Filled,
    _kernels,  # noqa: F401
    every_format,
    every_place,
    random_pages,
    some_formats,
)
from helpers.kv_score_cases import (
    SETS,
    _feature_kernels,  # noqa: F401
    attend,
    eighths,
    in_library,
    of_tokens,
)

import cuattn
from cuattn.errors import ArgumentError
from cuattn.reference import exact

every_set = pytest.mark.parametrize("name", SETS)


@every_place
@some_formats
@every_set
def test_each_option_matches_the_reference(rng, place, options, name):
    filled = Filled(place, batch=3, **options).append(rng, [300, 128, 3])
    for q_heads, queries in ((2, 1), (8, 3)):
        attend(filled, rng, q_heads, queries, SETS[name](rng, 3, q_heads, queries))


@every_place
@every_format
def test_all_at_once_in_every_format(rng, place, options):
    filled = Filled(place, batch=3, head_dim=128, **options).append(rng, [300, 128, 3])
    for q_heads, queries in ((2, 2), (8, 9)):
        attend(filled, rng, q_heads, queries, SETS["everything"](rng, 3, q_heads, queries))


@every_place
@pytest.mark.parametrize("name", ["sliding", "bias"])
@pytest.mark.parametrize("head_dim", [96, 256])
def test_other_head_dims(rng, place, head_dim, name):
    filled = Filled(place, head_dim=head_dim).append(rng, [200, 77])
    attend(filled, rng, 4, 3, SETS[name](rng, 2, 4, 3))


@every_place
@pytest.mark.parametrize("of", DTYPES)
@pytest.mark.parametrize(("dtype", "layout"), [("bfloat16", "NHD"), ("float32", "HND")])
def test_every_type_and_layout(rng, place, of, dtype, layout):
    filled = Filled(place).append(rng, [140, 33], dtype=dtype)
    options = SETS["everything"](rng, 2, 4, 2)
    attend(filled, rng, 4, 2, options, dtype=dtype, of=of, layout=layout, scale=0.2)


@every_place
@pytest.mark.parametrize("length", [1, 15, 16, 17, 127, 128, 129, 300, 511])
def test_every_length(rng, place, length):
    filled = Filled(place, batch=1).append(rng, length)
    for left in (0, 15, 16, 17, 127, 128):
        attend(filled, rng, 2, 4, {"window_size": (left, 0)})
        attend(filled, rng, 2, 4, {"window_size": (left, -1), "is_causal": False})


@every_place
def test_the_answer_is_that_of_exact_attention(rng, place):
    filled = Filled(place, batch=3).append(rng, [300, 128, 3])
    queries, heads = 3, 4
    for name, make in SETS.items():
        options = make(rng, 3, heads, queries)
        q, o, lse = attend(filled, rng, heads, queries, options)
        rules = {"is_causal": True} | options
        if "attn_mask" in rules:
            rules["attn_mask"] = of_tokens(rules["attn_mask"], filled.lengths)
        k, v = (np.zeros((3, 2, 300, 64)) for _ in range(2))
        for b, n in enumerate(filled.lengths):
            k[b, :, :n], v[b, :, :n] = filled.k[b], filled.v[b]
        values = place.host(q).astype(np.float64)
        wanted, wanted_lse = exact.attention(values, k, v, seqused_k=filled.lengths, **rules)
        assert relative_l1(o, wanted) < 0.03, name
        np.testing.assert_allclose(lse, wanted_lse, atol=0.05, err_msg=name)


@every_place
@some_formats
@pytest.mark.parametrize("page_size", [16, 64])
def test_pages_give_the_same_bits(rng, place, options, page_size):
    seed = rng.integers(2**32)
    found = []
    for size in (0, page_size):
        filled = Filled(place, capacity=320, page_size=size, **options)
        if size:
            random_pages(rng, filled.cache)
        again = np.random.default_rng(seed)
        filled.append(again, [310, 57])
        found.append(attend(filled, again, 8, 2, {"window_size": (100, 0)})[1].tobytes())
    assert found[0] == found[1]


# ---- what is seen by nobody, and by nobody any more


@every_place
@pytest.mark.parametrize("with_sinks", [False, True])
def test_rows_that_see_nothing(rng, place, with_sinks):
    filled = Filled(place, batch=3).append(rng, [40, 0, 2])
    queries, heads = 5, 4
    sinks = eighths(rng, heads)
    mask = rng.random((queries, 30)) < 0.7
    mask[3] = False
    for options, blind in (
        ({"window_size": (3, 0)}, [[], range(5), [0, 1, 2]]),
        ({"window_size": (1, -1), "is_causal": False}, [[], range(5), []]),
        ({"window_size": (20, 0), "attn_mask": mask}, [[3], range(5), [0, 1, 2, 3]]),
        ({"softcap": 3.0}, [[], range(5), [0, 1, 2]]),
    ):
        given = dict(options, sinks=sinks) if with_sinks else options
        _, o, lse = attend(filled, rng, heads, queries, given)
        assert np.isfinite(o).all()
        for b, rows in enumerate(blind):
            for i in rows:
                assert not o[b, :, i].any()
                np.testing.assert_array_equal(lse[b, :, i], sinks if with_sinks else -np.inf)


@every_place
@some_formats
def test_what_no_row_sees_has_no_effect(rng, place, options):
    queries, tokens = 3, 400
    k, v = rng.standard_normal((2, 2, 2, tokens, 64)).astype(np.float32)
    q = place.array(rng.standard_normal((2, 4, queries, 64)).astype(np.float32))
    seen = np.ones(tokens, bool)
    seen[[5, 130, 270, 399]] = False
    found = {}
    for bad in (0.0, np.nan, np.inf):
        for name, hidden, given in (
            ("window", slice(0, tokens - 150 - queries), {"window_size": (150, 0)}),
            ("mask", ~seen, {"attn_mask": place.array(seen, "bool")}),
            (
                "bias",
                ~seen,
                {"attn_mask": place.array(np.where(seen, 0, -np.inf).astype(np.float32))},
            ),
        ):
            x, y = k.copy(), v.copy()
            x[:, :, hidden] = y[:, :, hidden] = bad
            cache = cuattn.KVCache(2, 2, 64, tokens, smooth_k=False, device=place.device, **options)
            cache.append(place.array(x), place.array(y))
            o, lse = (place.host(x) for x in cache.attend(q, return_lse=True, **given))
            assert np.isfinite(o).all()
            found.setdefault(name, set()).add((o.tobytes(), lse.tobytes()))
    assert {name: len(bits) for name, bits in found.items()} == dict.fromkeys(found, 1)


# ---- what changes nothing


def neutral(place, batch, heads, queries, capacity):
    """Yield options that hide and change nothing of sequences of up to 300 tokens."""
    ones, zeros = np.ones((queries, 150), bool), np.zeros(heads, np.float32)
    least = np.full(heads, -np.inf, np.float32)
    yield {"window_size": (capacity, -1)}
    yield {"window_size": (299, -1)}
    yield {"softcap": 0}
    yield {"sinks": least}
    yield {"attn_mask": ones}
    yield {"attn_mask": zeros[:1]}
    yield {"attn_mask": ones[:, :0]}
    yield {"alibi_slopes": zeros}
    yield {"window_size": (299, 2), "sinks": least, "attn_mask": ones, "alibi_slopes": zeros}


@every_place
@some_formats
@pytest.mark.parametrize("is_causal", [False, True])
def test_neutral_options_change_no_bit(rng, place, options, is_causal):
    filled = Filled(place, batch=3, **options).append(rng, [300, 128, 3])
    q, _ = filled.draw(rng, 8, 3, "float16")

    def bits(**given):
        found = filled.cache.attend(q, return_lse=True, is_causal=is_causal, **given)
        return [place.host(x).tobytes() for x in found]

    wanted = bits()
    for given in neutral(place, 3, 8, 3, 512):
        assert bits(**in_library(place, given)) == wanted, given


@every_place
def test_a_window_is_a_mask_of_the_last_tokens(rng, place):
    filled = Filled(place, batch=2).append(rng, [300, 90])
    q, _ = filled.draw(rng, 4, 3, "float16")
    before_own = 297 + np.arange(3)[:, None] - np.arange(300)
    mask = place.array((before_own >= 0) & (before_own <= 20), "bool")
    by_window = filled.cache.attend(q, window_size=(20, 0), return_lse=True)
    by_mask = filled.cache.attend(q, attn_mask=mask, return_lse=True)
    for x, y in zip(by_window, by_mask, strict=True):
        x, y = place.host(x), place.host(y)
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


# ---- arrays


def layouts(x, place, dtype):
    """Yield arrays of one content that lie in memory in other ways."""
    array = place.array(x, dtype)
    yield array
    wide = place.array(np.repeat(x, 2, axis=-1), dtype)
    yield wide[..., ::2]
    yield place.array(x[..., ::-1].copy(), dtype)[..., ::-1]
    yield place.array(np.ascontiguousarray(x.T), dtype).T


@every_place
@pytest.mark.parametrize("name", ["tree", "bias", "alibi of sequences", "sinks"])
def test_arrays_are_read_through_their_strides(rng, place, name):
    filled = Filled(place, batch=3).append(rng, [300, 128, 3])
    options = SETS[name](rng, 3, 8, 3)
    q, _ = filled.draw(rng, 8, 3, "float16")
    (key,) = options.keys() & {"sinks", "alibi_slopes", "attn_mask"}
    x = options[key]
    found = set()
    for array in layouts(x, place, "bool" if x.dtype == bool else "float32"):
        result = filled.cache.attend(q, return_lse=True, **(options | {key: array}))
        found.add(tuple(place.host(y).tobytes() for y in result))
    assert len(found) == 1


@every_place
def test_axes_of_one_element_are_those_of_all(rng, place):
    filled = Filled(place, batch=3).append(rng, [300, 128, 3])
    q, _ = filled.draw(rng, 8, 3, "float16")
    row = rng.random(70) < 0.5
    row[-1] = True
    whole = place.array(np.broadcast_to(row, (3, 8, 3, 70)).copy(), "bool")
    expanded = place.xp.broadcast_to(whole[:1, :1, :1], whole.shape)
    found = set()
    for mask in (whole, expanded, place.array(row, "bool"), whole[:1, :1], whole[0, 0]):
        found.add(place.host(filled.cache.attend(q, attn_mask=mask)).tobytes())
    assert len(found) == 1


@every_place
def test_a_mask_is_of_the_last_tokens(rng, place):
    filled = Filled(place, batch=2).append(rng, [200, 9])
    q, _ = filled.draw(rng, 4, 2, "float16")

    def attended(mask):
        mask = place.array(np.asarray(mask, bool), "bool")
        return place.host(filled.cache.attend(q, attn_mask=mask)).tobytes()

    last = np.array([True, False, True, True])
    wanted = attended(last)
    assert attended(np.concatenate([np.ones(30, bool), last])) == wanted
    assert attended(np.concatenate([np.ones(396, bool), last])) == wanted
    # Columns that a sequence has no tokens for mean nothing to it.
    hidden = np.concatenate([np.zeros(12, bool), np.ones(6, bool), last])
    mask = place.array(hidden, "bool")
    o = place.host(filled.cache.attend(q, attn_mask=mask))
    plain = place.host(filled.cache.attend(q, attn_mask=place.array(last, "bool")))
    assert (o[1] == plain[1]).all()
    assert (o[0] != plain[0]).any()


@every_place
@pytest.mark.parametrize("name", ["sinks", "alibi_slopes", "attn_mask"])
def test_an_output_over_an_array_is_refused(rng, place, name):
    filled = Filled(place, batch=1).append(rng, 40)
    q = place.array(np.ones((1, 2, 1, 64), np.float32), "float32")
    memory = place.array(np.zeros((1, 2, 1, 64), np.float32), "float32")
    given = {
        "sinks": memory[0, :, 0, 5],
        "alibi_slopes": memory[:, :, 0, 63],
        "attn_mask": memory[..., :7],
    }
    with pytest.raises(ArgumentError, match=f"out must be in memory apart from that of {name}"):
        filled.cache.attend(q, out=memory, **{name: given[name]})
    assert not place.host(memory).any()
    apart = place.array(np.zeros((1, 2, 1, 64), np.float32), "float32")
    filled.cache.attend(q, out=apart, **{name: given[name]})
    assert place.host(apart).any()


@every_place
def test_what_is_refused_changes_nothing(rng, place):
    filled = Filled(place, batch=2).append(rng, [40, 3])
    q, _ = filled.draw(rng, 4, 2, "float16")
    out = place.array(np.full((2, 4, 2, 64), 7, np.float32))
    for given, message in (
        ({"window_size": (-2, 0)}, "window_size must be"),
        ({"softcap": -1.0}, "softcap must be"),
        ({"sinks": [1.0] * 4}, "sinks must be an array"),
        ({"sinks": place.array(np.zeros(3, np.float32))}, "sinks.shape"),
        ({"alibi_slopes": place.array(np.zeros((1, 4), np.float32))}, "alibi_slopes.shape"),
        ({"attn_mask": place.array(np.ones((2, 513), bool), "bool")}, "attn_mask.shape"),
        ({"attn_mask": place.array(np.ones((2, 9), np.int8), "int8")}, "attn_mask.dtype"),
        ({"sliding_window": 5}, "sliding_window"),
    ):
        with pytest.raises(ArgumentError, match=message):
            filled.cache.attend(q, out=out, **given)
    assert (place.host(out) == 7).all()


def test_bfloat16_is_read_as_it_is(rng):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    filled = Filled(HOST).append(rng, [140, 33])
    mask = eighths(rng, (2, 50))
    mask[:, ::3] = float(ml_dtypes.finfo(ml_dtypes.bfloat16).min)
    hidden = np.where(mask < -1e38, -np.inf, mask).astype(np.float32)
    q, _ = filled.draw(rng, 4, 2, "float16")
    o, lse = filled.cache.attend(q, attn_mask=mask.astype(ml_dtypes.bfloat16), return_lse=True)
    wanted, wanted_lse = filled.cache.attend(q, attn_mask=hidden, return_lse=True)
    np.testing.assert_array_equal(o, wanted)
    assert_same_lse(lse, wanted_lse)
