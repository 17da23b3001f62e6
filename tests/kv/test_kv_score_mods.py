"""A caller's expressions in attention to a cache, on the host and on a GPU."""

import numpy as np
import pytest
from helpers.gpu_cases import ROUNDING, assert_same_lse, relative_l1, tolerance
from helpers.kv_contents_cases import (
    DTYPES,
    HOST,
    Filled,
    every_place,
    random_pages,
    some_formats,
)
from helpers.kv_score_cases import attend, eighths, in_library, of_tokens
from helpers.mod_cases import MODS, as_functions

import cuattn
from cuattn import MaskMod, ScoreMod
from cuattn.errors import ArgumentError, UnsupportedError
from cuattn.kv.rows import MANY_ROWS
from cuattn.reference import exact
from cuattn.reference.prefill import prefill

# Of two heads that four of Q share, so many queries are many.
MANY = MANY_ROWS // 2
LENGTHS = [300, 128, 3]

every_mod = pytest.mark.parametrize("name", MODS)


def mods_of(name, rng, batch, heads, queries, tokens=300):
    """Return options without sinks beside which what a row sees, far away, would be nothing."""
    options = MODS[name](rng, batch, heads, queries, tokens)
    return {key: x for key, x in options.items() if key != "sinks" or name != "both"}


def check_near(found, wanted, softcap=0.0):
    """Compare o and lse with those of kernels, or of functions, that do the same otherwise."""
    allowed = tolerance("int8", softcap)
    (o, lse), (o_wanted, lse_wanted) = (
        [np.asarray(x, np.float64) for x in pair] for pair in (found, wanted)
    )
    off, norm = (np.sqrt(np.mean(x**2)) for x in (o - o_wanted, o_wanted))
    assert off <= (2 * allowed.rms + ROUNDING["float16"]) * norm
    assert_same_lse(lse, lse_wanted, allowed._replace(lse_atol=2 * allowed.lse_atol))


@every_place
@every_mod
def test_each_matches_the_reference(rng, place, name):
    filled = Filled(place, batch=3, bits=(8, 4)[len(name) % 2]).append(rng, LENGTHS)
    for q_heads, queries in ((2, 1), (8, 3)):
        attend(filled, rng, q_heads, queries, mods_of(name, rng, 3, q_heads, queries))


@every_place
@some_formats
@pytest.mark.parametrize(("of", "head_dim"), [*zip(DTYPES, (96, 128, 256), strict=True)])
def test_every_format_and_type(rng, place, options, of, head_dim):
    filled = Filled(place, head_dim=head_dim, **options).append(rng, [200, 77], dtype=of)
    attend(filled, rng, 4, 3, mods_of("both", rng, 2, 4, 3, 200), dtype=of, layout="NHD")


@every_place
@every_mod
@some_formats
def test_the_answer_is_that_of_exact_attention(rng, place, options, name):
    filled = Filled(place, batch=3, **options).append(rng, LENGTHS)
    mods = {"is_causal": True} | mods_of(name, rng, 3, 4, 3)
    q, o, lse = attend(filled, rng, 4, 3, mods)
    rules = as_functions(mods)
    if "attn_mask" in rules:
        rules["attn_mask"] = of_tokens(rules["attn_mask"], filled.lengths)
    k, v = (np.zeros((3, 2, 300, 64)) for _ in range(2))
    for b, n in enumerate(filled.lengths):
        k[b, :, :n], v[b, :, :n] = filled.k[b], filled.v[b]
    values = place.host(q).astype(np.float64)
    wanted, wanted_lse = exact.attention(values, k, v, seqused_k=filled.lengths, **rules)
    assert relative_l1(o, wanted) < (0.03 if options["bits"] == 8 else 0.4)
    if options["bits"] == 8:
        np.testing.assert_allclose(lse, wanted_lse, atol=0.05)


def slopes_of(place, slopes):
    return ScoreMod(
        "score - slopes[head] * abs(own - kv)",
        arrays={"slopes": place.array(slopes, "float32")},
        reference=lambda score, head, own, kv, slopes: score - slopes[head] * abs(own - kv),
    )


CAPPED = ScoreMod(
    "c * tanhf(score / c)",
    numbers={"c": 3.0},
    reference=lambda score, c: c * np.tanh(score / c),
)
NEAR = MaskMod(
    "own - kv <= n && kv <= own",
    numbers={"n": 20},
    reference=lambda own, kv, n: (own - kv <= n) & (kv <= own),
)


@every_place
@some_formats
def test_expressions_can_say_what_options_say(rng, place, options):
    filled = Filled(place, batch=3, **options).append(rng, LENGTHS)
    q, _ = filled.draw(rng, 8, 3, "float16")
    slopes = 2.0 ** -np.arange(1, 9, dtype=np.float32)
    alibi = {"alibi_slopes": place.array(slopes, "float32")}
    same = ScoreMod("score", reference=lambda score: score)
    for mods, wanted in (
        ({"score_mod": CAPPED}, {"softcap": 3.0}),
        ({"score_mod": slopes_of(place, slopes)}, alibi),
        ({"score_mod": slopes_of(place, slopes), "softcap": 3.0}, {"softcap": 3.0, **alibi}),
        ({"score_mod": same}, {}),
        ({"mask_mod": NEAR, "is_causal": False}, {"window_size": (20, 0)}),
        ({"mask_mod": NEAR, "score_mod": CAPPED}, {"window_size": (20, 0), "softcap": 3.0}),
    ):
        found = filled.cache.attend(q, return_lse=True, **mods)
        other = filled.cache.attend(q, return_lse=True, **wanted)
        check_near(*([place.host(x) for x in pair] for pair in (found, other)))


@every_place
@some_formats
@pytest.mark.parametrize("others", [{}, {"softcap": 3.0, "window_size": (100, 0)}])
def test_logits_that_stay_as_they_are_keep_their_bits(rng, place, options, others):
    filled = Filled(place, **options).append(rng, [300, 90])
    q, _ = filled.draw(rng, 8, 3, "float16")
    seen = rng.random((3, 300)) < 0.7
    array = {"seen": place.array(seen, "bool")}
    same = ScoreMod("score", reference=lambda score: score)
    hides = ScoreMod(
        "seen[q * 300 + kv] ? score : -INFINITY",
        arrays=array,
        reference=lambda score, q, kv, seen: np.where(seen[q, kv], score, -np.inf),
    )
    shows = MaskMod("seen[q * 300 + kv]", arrays=array, reference=lambda q, kv, seen: seen[q, kv])
    for mods, wanted in (({"score_mod": same}, {}), ({"score_mod": hides}, {"mask_mod": shows})):
        found, expected = (
            [place.host(x) for x in filled.cache.attend(q, return_lse=True, **given, **others)]
            for given in (mods, wanted)
        )
        if place is HOST:  # whose functions add in float64 what smoothing took
            check_near(found, expected)
        else:
            assert [x.tobytes() for x in found] == [x.tobytes() for x in expected]


@every_place
@some_formats
@pytest.mark.parametrize("queries", [3, MANY])
def test_a_mask_that_hides_nothing_changes_nothing(rng, place, options, queries):
    filled = Filled(place, **options).append(rng, [300, 90])
    q, _ = filled.draw(rng, 4, queries, "float16")
    seen = MaskMod("true", reference=lambda: True)
    plain, masked = (
        [place.host(x) for x in filled.cache.attend(q, return_lse=True, **mods)]
        for mods in ({}, {"mask_mod": seen})
    )
    if queries == MANY:  # kernels look at each key, by products in another order
        check_near(masked, plain)
    else:
        assert [x.tobytes() for x in masked] == [x.tobytes() for x in plain]


@every_place
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("queries", [5, MANY])
def test_rows_that_see_nothing(rng, place, with_sinks, queries):
    filled = Filled(place, batch=3).append(rng, [40, 0, 2])
    q, _ = filled.draw(rng, 4, queries, "float16")
    sinks = eighths(rng, 4)
    others = {"sinks": place.array(sinks, "float32")} if with_sinks else {}
    for mods in (
        {"mask_mod": MaskMod("false", reference=lambda: False)},
        {"score_mod": ScoreMod("-INFINITY", reference=lambda: -np.inf)},
    ):
        found = filled.cache.attend(q, return_lse=True, **mods, **others)
        o, lse = (place.host(x) for x in found)
        assert not o.any()
        wanted = np.broadcast_to(sinks[:, None] if with_sinks else -np.inf, lse.shape)
        np.testing.assert_array_equal(lse, wanted)


@every_place
@some_formats
def test_what_no_row_sees_has_no_effect(rng, place, options):
    k, v = rng.standard_normal((2, 2, 2, 400, 64)).astype(np.float32)
    q = place.array(rng.standard_normal((2, 4, 3, 64)).astype(np.float32))
    found = set()
    for bad in (0.0, np.nan, np.inf):
        k[:, :, :200] = v[:, :, :200] = bad
        cache = cuattn.KVCache(2, 2, 64, 400, smooth_k=False, device=place.device, **options)
        cache.append(place.array(k), place.array(v))
        for mods in (
            {"mask_mod": MaskMod("kv >= 200", reference=lambda kv: kv >= 200)},
            {
                "score_mod": ScoreMod(
                    "kv >= 200 ? score : -INFINITY",
                    reference=lambda score, kv: np.where(kv >= 200, score, -np.inf),
                )
            },
        ):
            result = [place.host(x) for x in cache.attend(q, return_lse=True, **mods)]
            assert np.isfinite(result[0]).all()
            found.add((mods.keys() <= {"mask_mod"}, *(x.tobytes() for x in result)))
    assert len(found) == 2


@every_place
@pytest.mark.parametrize("page_size", [16, 64])
def test_pages_give_the_same_bits(rng, place, page_size):
    seed, found = rng.integers(2**32), []
    for size in (0, page_size):
        again = np.random.default_rng(seed)
        filled = Filled(place, capacity=320, page_size=size, bits=4)
        if size:
            random_pages(rng, filled.cache)
        filled.append(again, [310, 57])
        found.append(attend(filled, again, 8, 2, mods_of("both", again, 2, 8, 2, 310))[1].tobytes())
    assert found[0] == found[1]


# ---- many queries


@every_place
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["distances", "relative", "hiding", "both"])
def test_many_queries_match_the_reference(rng, place, name, bits):
    filled = Filled(place, batch=3, bits=bits, smooth_k=bits == 4, nested=False)
    filled.append(rng, LENGTHS)
    mods = mods_of(name, rng, 3, 4, MANY)
    q, values = filled.draw(rng, 4, MANY, "float16")
    found = filled.cache.attend(q, return_lse=True, **in_library(place, mods))
    how = {"k_bits": bits, "v_bits": bits}
    wanted = prefill(values, *filled.cache.codes(), filled.lengths, **how, **as_functions(mods))
    check_near([place.host(x) for x in found], wanted, mods.get("softcap", 0.0))


@every_place
@pytest.mark.parametrize("name", ["distances", "relative", "both"])
def test_packed_queries_are_those_of_each_sequence(rng, place, name):
    filled = Filled(place, batch=3).append(rng, LENGTHS)
    q, values = filled.draw(rng, 4, MANY, "float16")
    mods = mods_of(name, rng, 3, 4, MANY)
    options = in_library(place, mods)
    o, lse = (place.host(x) for x in filled.cache.attend(q, return_lse=True, **options))
    tokens = place.array(np.concatenate(list(values.swapaxes(1, 2))))
    bounds = place.array(MANY * np.arange(4, dtype=np.int32), "int32")
    found, of_rows = filled.cache.attend(tokens, cu_seqlens_q=bounds, return_lse=True, **options)
    for b in range(3):
        here = slice(b * MANY, (b + 1) * MANY)
        np.testing.assert_array_equal(place.host(found)[here].swapaxes(0, 1), o[b])
        np.testing.assert_array_equal(place.host(of_rows)[:, here], lse[b])


@every_place
@pytest.mark.parametrize("name", ["recency", "relative"])
def test_few_and_many_queries_agree(rng, place, name):
    """The last rows of a call of many, decoded."""
    filled = Filled(place, batch=2).append(rng, [300, 280])
    q, _ = filled.draw(rng, 4, MANY, "float16")
    mods = in_library(place, mods_of(name, rng, 2, 4, MANY))
    whole = place.host(filled.cache.attend(q, **mods)).astype(np.float32)
    for kept in (1, 20):
        few = place.host(filled.cache.attend(q[:, :, -kept:], **mods)).astype(np.float32)
        off = np.sqrt(np.mean((whole[:, :, -kept:] - few) ** 2))
        assert off < 0.02 * np.sqrt(np.mean(few**2))


# ---- what is refused


@every_place
def test_what_is_refused_changes_nothing(rng, place):
    filled = Filled(place).append(rng, [40, 3])
    q, _ = filled.draw(rng, 4, 2, "float16")
    out = place.array(np.full((2, 4, 2, 64), 7, np.float32))
    many = {name: place.array(np.ones(1, np.float32), "float32") for name in "abcdefghi"}
    wide = ScoreMod("score", arrays=many, reference=lambda score: score)
    for mods, message in (
        ({"score_mod": 5}, "score_mod must be text, a cuattn.ScoreMod"),
        ({"mask_mod": CAPPED}, "mask_mod must be text, a cuattn.MaskMod"),
        ({"score_mod": "score +"}, "score_mod"),
        ({"score_mod": "score # 2"}, r"score_mod\.text"),
        ({"score_mod": wide}, "arrays must be at most 8"),
        ({"score_mod": ScoreMod("x[0]", arrays={"x": [1]})}, r"score_mod\.x"),
        (
            {"mask_mod": MaskMod("x[0]", arrays={"x": out}, reference=lambda x: True)},
            r"out must be in memory apart from that of mask_mod\.x",
        ),
    ):
        with pytest.raises((ArgumentError, cuattn.CompileError), match=message):
            filled.cache.attend(q, out=out, **mods)
    assert (place.host(out) == 7).all()
    with pytest.raises(ArgumentError, match="score_mod"):
        cuattn.LatentKVCache.attend(None, q, score_mod="score")


@every_place
def test_places_are_those_of_tokens_that_are_there(rng, place):
    """Distances are what they were without the first ones, and not without some of the middle."""
    filled = Filled(place, batch=1, capacity=320, page_size=16).append(rng, 300)
    q, _ = filled.draw(rng, 4, 1, "float16")
    slopes = 2.0 ** -np.arange(4, dtype=np.float32)
    mods = {"score_mod": slopes_of(place, slopes)}
    filled.cache.evict(0, [0, 1, 2])
    found = place.host(filled.cache.attend(q, **mods)).astype(np.float32)
    alibi = filled.cache.attend(q, alibi_slopes=place.array(slopes, "float32"))
    np.testing.assert_allclose(found, place.host(alibi).astype(np.float32), atol=0.02)
    filled.cache.evict(0, [5])
    for name, mod in (*mods.items(), ("mask_mod", NEAR)):
        with pytest.raises(UnsupportedError, match=f"^{name} counts tokens"):
            filled.cache.attend(q, **{name: mod})
