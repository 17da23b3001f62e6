"""What a KV cache holds after any sequence of calls, on the host and on a GPU."""

import numpy as np
import pytest
from helpers.kv_contents_cases import (
    FORMATS,
    GPU,
    HOST,
    Filled,
    _kernels,  # noqa: F401
    every_format,
    every_place,
    random_pages,
    snapshot,
    some_formats,
)
from hypothesis import given, note, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import cuattn
from cuattn.errors import ArgumentError


@every_place
@every_format
def test_gather_returns_what_is_represented(rng, place, options):
    filled = Filled(place, **options).append(rng, [70, 33])
    wanted = [x.dequantize() for x in filled.cache.codes()]
    for dtype, rtol in (("float32", 2.0**-22), ("float16", 2.0**-10)):
        found = filled.cache.gather(dtype)
        for x, y in zip(found, wanted, strict=True):
            assert x.shape == (2, 2, 70, 64)
            assert x.dtype == dtype
            x = place.host(x)
            assert not x[1, :, 33:].any()
            for b, n in enumerate((70, 33)):
                # Sums of a product and an offset: the error is relative to the larger.
                np.testing.assert_allclose(x[b, :, :n], y[b, :, :n], rtol=rtol, atol=8 * rtol)


@every_place
@some_formats
@pytest.mark.parametrize("page_size", [0, 32])
def test_truncated_sequences_go_on(rng, place, options, page_size):
    filled = Filled(place, page_size=page_size, **options).append(rng, [200, 65])
    filled.truncate([130, 3])
    filled.check_contents()
    filled.attend(rng, 4, 2)
    filled.append(rng, [5, 70])
    filled.check_contents()
    filled.attend(rng, 4, 2)


@every_place
@pytest.mark.parametrize("page_size", [0, 16])
def test_a_reset_cache_is_as_new(rng, place, page_size):
    filled = Filled(place, page_size=page_size).append(rng, [200, 65])
    filled.cache.reset()
    np.testing.assert_array_equal(filled.cache.lengths, [0, 0])
    again = Filled(place, page_size=page_size)
    again.cache = filled.cache
    again.append(rng, [40, 41])
    again.check_contents()
    again.attend(rng, 4, 1)


@every_place
@some_formats
@pytest.mark.parametrize("page_size", [0, 16])
def test_refused_appends_leave_everything(rng, place, options, page_size):
    filled = Filled(place, capacity=64, page_size=page_size, **options).append(rng, [60, 20])
    before = snapshot(filled.cache)
    k = place.array(rng.standard_normal((2, 2, 5, 64), dtype=np.float32))
    wrong = [
        ((k, k), {}),
        ((k, k), {"counts": np.array([5, 1])}),
        ((k, k), {"counts": np.array([1, 6])}),
        ((k, k), {"counts": np.array([-1, 1])}),
        ((k, k), {"counts": np.array([1, 1, 1])}),
        ((k, k), {"layout": "DNH"}),
        ((k, k[:, :, :4]), {"counts": 1}),
        ((k[:, :1], k[:, :1]), {"counts": 1}),
        ((k[..., :32], k[..., :32]), {"counts": 1}),
    ]
    for arrays, options_of_call in wrong:
        with pytest.raises(ArgumentError):
            filled.cache.append(*arrays, **options_of_call)
        assert snapshot(filled.cache) == before
    filled.append(rng, [4, 4])
    filled.check_contents()


@every_place
def test_too_few_pages_are_refused(rng, place):
    filled = Filled(place, capacity=64, page_size=16, num_pages=5).append(rng, [33, 20])
    before = snapshot(filled.cache)
    k = place.array(rng.standard_normal((2, 2, 16, 64), dtype=np.float32))
    with pytest.raises(ArgumentError):
        filled.cache.append(k, k)
    assert snapshot(filled.cache) == before
    filled.append(rng, [15, 12])
    filled.check_contents()


@every_place
def test_wrong_page_tables_are_refused(rng, place):
    filled = Filled(place, capacity=64, page_size=16)
    random_pages(rng, filled.cache)
    filled.append(rng, [33, 20])
    before = snapshot(filled.cache)
    sound = np.array(filled.cache.page_table)
    outside, negative, twice = sound.copy(), sound.copy(), sound.copy()
    outside[0, 1], negative[0, 1], twice[1, 0] = 8, -3, sound[0, 0]
    for table in (outside, negative, twice, sound[:1], sound[:, :1], sound.astype(np.float32)):
        with pytest.raises(ArgumentError):
            filled.cache.set_page_table(table)
        assert snapshot(filled.cache) == before


@every_place
@some_formats
@pytest.mark.parametrize("page_size", [0, 64])
def test_files_hold_the_same_everywhere(rng, place, options, page_size, tmp_path):
    """What was saved here is loaded on the host, goes on there, and is the same as here."""
    filled = Filled(place, page_size=page_size, **options).append(rng, [140, 0])
    filled.cache.save(tmp_path / "here.safetensors")
    other = Filled(HOST, page_size=page_size, **options)
    other.cache = cuattn.KVCache.load(tmp_path / "here.safetensors", device="cpu")
    assert snapshot(other.cache) == snapshot(filled.cache)
    k = rng.standard_normal((2, 2, 30, 64), dtype=np.float32).astype(np.float16)
    for some in (filled, other):
        given = some.place.array(k)
        some.cache.append(given, given, counts=np.array([30, 0]))
        some.cache.save(tmp_path / f"{id(some)}.safetensors")
    here, there = (load_file(tmp_path / f"{id(some)}.safetensors") for some in (filled, other))
    assert here.keys() == there.keys()
    for name, x in here.items():
        np.testing.assert_array_equal(x, there[name])


@every_place
@every_format
def test_memory_is_known_beforehand(place, options):
    for page_size in (0, 16):
        sizes = (3, 2, 128, 200)
        wanted = cuattn.KVCache.bytes_needed(*sizes, page_size=page_size, **options)
        cache = cuattn.KVCache(*sizes, page_size=page_size, device=place.device, **options)
        assert cache.nbytes == wanted


@every_place
@every_format
def test_poison_stays_with_its_token(rng, place, options):
    filled = Filled(place, smooth_k=False, **options)
    drawn = rng.standard_normal((2, 2, 2, 50, 64), dtype=np.float32)
    drawn[0, 0, 1, 7, 3], drawn[1, 1, 0, 9, 60] = np.nan, np.inf
    (k, k_values), (v, v_values) = (filled.given(x, "float16") for x in drawn)
    filled.cache.append(k, v)
    filled.remember(k_values, v_values, [50, 50])
    filled.check_contents()


FUZZED = [FORMATS[name] for name in ("8 bits", "groups and zero points", "K of 4, V of 8")]


@st.composite
def stories(draw):
    """What a cache may be asked for in its life."""
    batch = draw(st.integers(1, 3))
    counts = st.lists(st.integers(0, 150), min_size=batch, max_size=batch)
    turn = st.tuples(st.sampled_from(["append", "append", "token", "attend", "truncate"]), counts)
    return {
        "options": draw(st.sampled_from(FUZZED)) | {"smooth_k": draw(st.booleans())},
        "batch": batch,
        "heads": draw(st.integers(1, 3)),
        "page_size": draw(st.sampled_from([0, 16, 32, 256])),
        "capacity": draw(st.integers(1, 400)),
        "group": draw(st.sampled_from([1, 3, 4, 8, 20])),
        "layout": draw(st.sampled_from(["HND", "NHD"])),
        "spare": draw(st.integers(0, 3)),
        "turns": draw(st.lists(turn, min_size=1, max_size=8)),
        "queries": draw(st.integers(1, 6)),
        "is_causal": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@pytest.mark.gpu
@settings(max_examples=100)
@given(story=stories())
def test_any_story_on_the_gpu(story):
    live(GPU, story)


@settings(max_examples=15)
@given(story=stories())
def test_any_story_on_the_host(story):
    live(HOST, story)


def live(place, story):
    """Go through a story; an append that does not fit is refused and changes nothing."""
    note(story)
    rng = np.random.default_rng(story["seed"])
    sizes = {name: story[name] for name in ("batch", "heads", "capacity", "page_size")}
    filled = Filled(place, **sizes, **story["options"])
    layout = story["layout"]
    for what, numbers in story["turns"]:
        if what == "attend":
            q_heads = story["group"] * story["heads"]
            filled.attend(
                rng, q_heads, story["queries"], is_causal=story["is_causal"], layout=layout
            )
        elif what == "truncate":
            filled.truncate(np.minimum(numbers, filled.lengths))
        else:
            counts = np.array(numbers) if what == "append" else np.ones(story["batch"], int)
            if (filled.lengths + counts <= story["capacity"]).all():
                filled.append(rng, counts, layout=layout, spare=story["spare"])
            else:
                before = snapshot(filled.cache)
                with pytest.raises(ArgumentError):
                    filled.append(rng, counts, layout=layout)
                assert snapshot(filled.cache) == before
    filled.check_contents()
    filled.attend(rng, story["group"] * story["heads"], 1, layout=layout)
