"""Wrong calls of `KVCache`: each is refused with the argument's name, and changes nothing."""

import numpy as np
import pytest
from kv_cases import HEADS, assert_unchanged, cache_of, everything, tokens

from cuattn import KVCache
from cuattn.errors import ArgumentError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.zeros((3, 2, 50, 64))}, "k.dtype"),
        ({"v": np.zeros((3, 2, 4, 64), np.float16)}, "v.shape"),
        ({"k": np.zeros((2, 2, 5, 64), np.float16)}, "k.shape"),
        ({"k": [1, 2]}, "k must be an array"),
        ({"layout": "DNH"}, "layout"),
        ({"counts": [5, 5]}, "counts"),
        ({"counts": [5, 5, 6]}, "counts"),
        ({"counts": [5, -1, 5]}, "counts"),
        ({"counts": [1.0, 1.0, 1.0]}, "counts"),
        ({"counts": [[1], [2, 3], [4]]}, r"counts must be whole numbers of shape \(3,\)"),
        ({"counts": 5}, "counts"),
        ({"stream": 0}, "stream"),
        (
            {"k": np.zeros((3, 2, 61, 64), np.float16), "v": np.zeros((3, 2, 61, 64), np.float16)},
            "at most 60 tokens for sequence 0, which has 20 of 80 and was to get 61",
        ),
        (
            {"k": np.zeros((3, 2, 45, 64), np.float16), "v": np.zeros((3, 2, 45, 64), np.float16)},
            "k must be such that the 4 free pages suffice, not 9",
        ),
    ],
)
def test_a_failed_append_changes_nothing(rng, change, message):
    k, v = tokens(rng, 3, HEADS, 20, 64)
    cache = cache_of(page_size=16, num_pages=9)
    cache.append(k, v, counts=[20, 10, 20])
    before = everything(cache)
    given = {"k": k[:, :, :5], "v": v[:, :, :5]} | change
    with pytest.raises(ArgumentError, match=message):
        cache.append(**given)
    assert_unchanged(cache, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((2, 2, 1, 64), np.float16)}, "q.shape"),
        ({"q": np.zeros((3, 3, 1, 64), np.float16)}, "num_q_heads"),
        ({"q": np.zeros((3, 2, 1, 128), np.float16)}, "q.shape"),
        ({"q": np.zeros((3, 2, 64), np.float16)}, "q.shape"),
        ({"q": np.zeros((3, 2, 1, 64))}, "q.dtype"),
        ({"q": 1.0}, "q must be an array"),
        ({"is_causal": 1}, "is_causal"),
        ({"return_lse": None}, "return_lse"),
        ({"scale": -1.0}, "scale"),
        ({"scale": np.nan}, "scale"),
        ({"scale": [1.0]}, "scale"),
        ({"layout": ["HND"]}, "layout"),
        ({"stream": 0}, "stream"),
    ],
)
def test_wrong_queries_are_refused(change, message):
    given = {"q": np.zeros((3, 2, 1, 64), np.float16)} | change
    with pytest.raises(ArgumentError, match=message):
        cache_of().attend(**given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": "3"}, "batch"),
        ({"num_kv_heads": 2.0}, "num_kv_heads"),
        *(({"head_dim": size}, "head_dim") for size in (0, 8, 72, 272, -64)),
        ({"capacity": 0}, "capacity"),
        ({"bits": 6}, "bits"),
        ({"bits": 8.0}, "bits"),
        ({"v_bits": 4.0}, "v_bits"),
        ({"head_dim": 64.0}, "head_dim"),
        ({"bits": 4, "group": 32.0}, "group"),
        ({"bits": 4, "head_dim": 96, "group": 64}, "group"),
        ({"bits": 4, "head_dim": 80, "group": 64}, "group"),
        ({"batch": 2**16}, "batch"),
        ({"batch": 2**15, "num_kv_heads": 2**6}, "batch"),
        ({"k_bits": 2}, "k_bits"),
        ({"group": 32}, "group"),
        ({"v_zero": True}, "v_zero"),
        ({"page_size": 24}, "page_size"),
        ({"page_size": None}, "page_size"),
        ({"num_pages": 8}, "num_pages"),
        ({"page_size": 16, "num_pages": 0}, "num_pages"),
        ({"smooth_k": 1}, "smooth_k"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_wrong_options_are_refused(change, message):
    given = {"batch": 3, "num_kv_heads": 2, "head_dim": 64, "capacity": 80} | change
    with pytest.raises(ArgumentError, match=f"^{message} must"):
        KVCache(**({"device": "cpu"} | given))
    with pytest.raises(ArgumentError, match=f"^{message} must"):
        KVCache.bytes_needed(**given)


@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        ("truncate", [21, 0, 0], "from 0 to 20 for sequence 0, not 21"),
        ("truncate", [0, -1, 0], "from 0 to 10 for sequence 1, not -1"),
        ("truncate", [[1], [2, 3], [4]], "lengths must be whole numbers"),
        ("truncate", None, "lengths must be whole numbers"),
        ("reserve", 81, "a whole number from 0 to 80"),
        ("reserve", 16.0, "a whole number"),
        ("reserve", 80, "the 4 free pages suffice, not 10"),
        ("set_page_table", [[0, 1], [2], [3]], "table must be whole numbers"),
        ("set_page_table", [[0, -1, -1, -1, -1]] * 3, "there twice"),
        ("set_page_table", [[9, -1, -1, -1, -1]] * 3, "of pages 0 to 8"),
        ("set_page_table", [[b, -1, -1, -1, -1] for b in range(3)], "the 20 tokens of sequence 0"),
        ("gather", "float64", "dtype must be one of"),
        ("attend", np.zeros((3, 3, 1, 64), np.float16), "num_q_heads"),
        ("save", None, "path must be that of a file"),
    ],
)
def test_wrong_calls_change_nothing(rng, method, argument, message):
    cache = cache_of(page_size=16, num_pages=9)
    cache.append(*tokens(rng, 3, HEADS, 20, 64), counts=[20, 10, 20])
    before, table = everything(cache), cache.page_table
    with pytest.raises(ArgumentError, match=message):
        getattr(cache, method)(argument)
    assert_unchanged(cache, before)
    np.testing.assert_array_equal(cache.page_table, table)


def test_what_is_in_host_memory_takes_no_stream():
    cache = cache_of(page_size=16)
    for call in (
        lambda: cache.reset(stream=0),
        lambda: cache.reserve(16, stream=0),
        lambda: cache.truncate([0, 0, 0], stream=0),
        lambda: cache.set_page_table(cache.page_table, stream=0),
    ):
        with pytest.raises(ArgumentError, match="stream must be None"):
            call()
