"""Tokens of several sequences end to end: the same as appending each sequence by itself."""

import numpy as np
import pytest
from kv_cases import FORMATS, HEADS, assert_unchanged, cache_of, everything, units_of

from cuattn import Rope
from cuattn.errors import ArgumentError, UnsupportedError
from cuattn.kv.append_spec import AppendSpec
from cuattn.kv.packed_tokens import PackedTokens
from cuattn.kv_format import UNIT_TOKENS

BATCH, CAPACITY = 3, 80
FORMAT = FORMATS["8-rotated"]

# Of steps the tokens of each sequence: prompts, some that begin with few, single tokens, none.
STEPS = ([20, 0, 7], [1, 1, 1], [0, 0, 0], [3, 40, 0], [1, 0, 33])


def drawn(rng, counts, head_dim, dtype=np.float16, behind=0):
    """Return keys and values of all sequences end to end, their bounds, and rows beyond them."""
    total = int(np.sum(counts))
    k, v = (rng.standard_normal((total + behind, HEADS, head_dim)).astype(dtype) for _ in "kv")
    for x in (k, v):
        x[total:] = np.nan  # whoever reads it spreads it
    return k, v, np.cumsum([0, *counts]).astype(np.int32)


def append_apart(cache, k, v, bounds, sequences=(0, 1, 2), rope=None, positions=None):
    """Append each part by itself, in the ordinary layout."""
    for i, b in enumerate(sequences):
        rows = slice(bounds[i], bounds[i + 1])
        counts = np.zeros(BATCH, np.int64)
        counts[b] = rows.stop - rows.start
        both = (np.repeat(x[None, rows].swapaxes(1, 2), BATCH, axis=0) for x in (k, v))
        at = None if positions is None else np.repeat(positions[None, rows], BATCH, axis=0)
        cache.append(*both, counts=counts, rope=rope, positions=at)


def assert_same_bytes(cache, expected):
    """The same lengths, units and offsets, wherever they are."""
    np.testing.assert_array_equal(cache.lengths, expected.lengths)
    for b in range(BATCH):
        np.testing.assert_array_equal(units_of(cache, b), units_of(expected, b))
    for name in ("k_offset", "bare", "fine", "coarse"):
        x, y = (getattr(one._memory, name) for one in (cache, expected))
        if x is not None and name != "k_offset":
            np.testing.assert_array_equal(x, y)
    for x, y in zip(cache.codes(), expected.codes(), strict=True):
        for part in ("codes", "scale", "zero", "vector"):
            np.testing.assert_array_equal(getattr(x, part), getattr(y, part))


def turns(rope_dim=24, positions=CAPACITY):
    angles = np.outer(np.arange(positions), 100.0 ** -(np.arange(0, rope_dim, 2) / rope_dim))
    return Rope(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))


@pytest.mark.parametrize("rope", [None, turns()], ids=["plain", "rope"])
@pytest.mark.parametrize("device", ["cpu", None])
@pytest.mark.parametrize("kind", FORMATS)
def test_is_the_same_as_appending_each_sequence(gpu, rng, kind, device, rope):
    kv_format = FORMATS[kind]
    others = {"page_size": 16} if len(kind) % 2 else {}
    cache, expected = cache_of(kv_format, device=device, **others), cache_of(kv_format, **others)
    for counts in STEPS:
        k, v, bounds = drawn(rng, counts, kv_format.head_dim, behind=2)
        cache.append(k, v, cu_seqlens_k=bounds.tolist(), rope=rope)
        append_apart(expected, k, v, bounds, rope=rope)
    assert cache.lengths.tolist() == np.sum(STEPS, axis=0).tolist()
    assert_same_bytes(cache, expected)
    if device is None:
        assert all(spec.packed and not getattr(spec, "single", False) for spec in gpu.specs)
        assert gpu.launched.count("append") == len(STEPS)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_bounds_on_the_gpu_are_checked_there(gpu, rng, dtype):
    cache, expected = cache_of(FORMAT, device=None), cache_of(FORMAT)
    for counts in STEPS:
        k, v, bounds = drawn(rng, counts, 64, behind=3)
        spread = np.zeros(2 * len(bounds), dtype)[::2]
        spread[...] = bounds
        cache.append(k, v, cu_seqlens_k=bounds.astype(dtype) if counts[0] else spread)
        append_apart(expected, k, v, bounds)
    assert not cache._memory.host_state.is_known
    assert_same_bytes(cache, expected)
    k, v, _ = drawn(rng, [10, 10, 10], 64)
    for wrong in (
        [0, 10, 5, 30],
        [-1, 10, 20, 30],
        [0, 10, 20, 31],
        [0, 2**31 - 1, -(2**31), 30],
        [0, 10, 30, 20],
    ):
        cache.append(k, v, cu_seqlens_k=np.array(wrong, dtype))
        with pytest.raises(ArgumentError, match="an append that the GPU has refused"):
            _ = cache.lengths
    k, v, _ = drawn(rng, [0, 0, 80], 64)  # more than the sequence has room for
    cache.append(k, v, cu_seqlens_k=np.array([0, 0, 0, 80], dtype))
    with pytest.raises(ArgumentError, match="an append that the GPU has refused"):
        _ = cache.lengths
    assert_same_bytes(cache, expected)


@pytest.mark.parametrize("device", ["cpu", None])
@pytest.mark.parametrize("sequences", [[2, 0], [1], [], [2, 1, 0]])
def test_parts_may_be_of_some_sequences(gpu, rng, device, sequences):
    cache, expected = cache_of(FORMAT, device=device), cache_of(FORMAT)
    for n in (18, 1, 5):
        counts = [n + i for i in range(len(sequences))]
        k, v, bounds = drawn(rng, counts, 64, behind=1)
        cache.append(k, v, cu_seqlens_k=bounds, sequences=sequences)
        append_apart(expected, k, v, bounds, sequences)
    assert_same_bytes(cache, expected)


def test_bounds_of_the_gpu_and_sequences_of_the_host(gpu, rng):
    cache, expected = cache_of(FORMAT, device=None), cache_of(FORMAT)
    k, v, bounds = drawn(rng, [5, 20], 64)
    cache.append(k, v, cu_seqlens_k=bounds, sequences=(2, 1))
    append_apart(expected, k, v, bounds, (2, 1))
    assert_same_bytes(cache, expected)


@pytest.mark.parametrize("device", ["cpu", None])
def test_arrays_are_read_where_they_are(gpu, rng, device):
    cache, expected = cache_of(FORMAT, device=device), cache_of(FORMAT)
    counts = [17, 0, 30]
    k, v, bounds = drawn(rng, counts, 64)
    # As models have it: one array of Q, K and V of all heads, each token in a row.
    both = np.full((bounds[-1], 5 * HEADS, 64), np.nan, np.float16)
    both[:, 2 * HEADS : 3 * HEADS], both[:, 4 * HEADS :] = k, v
    cache.append(
        both[:, 2 * HEADS : 3 * HEADS], both[:, 4 * HEADS :], cu_seqlens_k=bounds, layout="NHD"
    )
    append_apart(expected, k, v, bounds)
    assert_same_bytes(cache, expected)


@pytest.mark.parametrize("device", ["cpu", None])
def test_positions_are_of_rows(gpu, rng, device):
    rope, counts = turns(64, 500), [6, 0, 11]
    k, v, bounds = drawn(rng, counts, 64, behind=1)
    at = rng.integers(0, 500, len(k))
    at[-1] = 500  # of no token
    expected = cache_of(FORMAT)
    append_apart(expected, k, v, bounds, rope=rope, positions=at)
    for positions in (at.tolist(), at.astype(np.int32), np.repeat(at, 2)[::2]):
        cache = cache_of(FORMAT, device=device)
        cache.append(k, v, cu_seqlens_k=bounds.tolist(), rope=rope, positions=positions)
        assert_same_bytes(cache, expected)


@pytest.mark.parametrize("device", ["cpu", None])
def test_a_window_moves_on_and_tokens_keep_their_positions(gpu, rng, device):
    rope, others = turns(64, 200), {"page_size": 16, "window": 20}
    cache, expected = cache_of(FORMAT, device=device, **others), cache_of(FORMAT, **others)
    for step in range(6):
        counts = [17, 3 * step, 0 if step % 2 else 30]
        k, v, bounds = drawn(rng, counts, 64, behind=1)
        cache.append(k, v, cu_seqlens_k=bounds.tolist(), rope=rope)
        append_apart(expected, k, v, bounds, rope=rope)
    assert cache.positions.tolist() == [102, 45, 90]
    assert cache.lengths.max() < 60
    assert_same_bytes(cache, expected)


def test_a_graph_takes_bounds_of_the_gpu(gpu, rng):
    cache, expected = cache_of(FORMAT, device=None), cache_of(FORMAT)
    k, v, bounds = drawn(rng, [3, 0, 9], 64)
    gpu.is_capturing = True
    for given in (
        {"cu_seqlens_k": bounds.tolist()},
        {"cu_seqlens_k": bounds, "sequences": [2, 1, 0]},
        {"cu_seqlens_k": bounds, "rope": turns(), "positions": list(range(12))},
    ):
        with pytest.raises(UnsupportedError, match="cannot be captured into a graph"):
            cache.append(k, v, **given)
    cache.append(k, v, cu_seqlens_k=bounds, sequences=[0, 1, 2])
    gpu.is_capturing = False
    append_apart(expected, k, v, bounds)
    assert_same_bytes(cache, expected)


BOUNDS = [0, 4, 4, 10]
K = np.zeros((10, HEADS, 64), np.float16)
WRONG = (
    ({"counts": [1, 1, 1]}, r"^counts must be None, as cu_seqlens_k is given"),
    ({"cu_seqlens_k": None, "sequences": [0]}, r"^sequences must be None without cu_seqlens_k"),
    ({"cu_seqlens_k": None}, r"^k\.shape must be"),
    ({"cu_seqlens_k": [0, 4, 10]}, r"^cu_seqlens_k must be whole numbers of shape \(4,\)"),
    ({"cu_seqlens_k": [0, 4.0, 4, 10]}, "^cu_seqlens_k must be whole numbers"),
    ({"cu_seqlens_k": [0, 5, 4, 10]}, "^cu_seqlens_k must be bounds from 0 to 10"),
    ({"cu_seqlens_k": [-1, 4, 4, 10]}, "^cu_seqlens_k must be bounds from 0 to 10"),
    ({"cu_seqlens_k": [0, 4, 4, 11]}, "^cu_seqlens_k must be bounds from 0 to 10"),
    ({"sequences": [0, 1]}, r"^cu_seqlens_k must be whole numbers of shape \(3,\)"),
    ({"sequences": [0, 1, 1]}, "^sequences must be different sequences, from 0 to 2"),
    ({"sequences": [0, 1, 3]}, "^sequences must be different sequences"),
    ({"sequences": [0, 1, -1]}, "^sequences must be different sequences"),
    ({"sequences": 1}, "^sequences must be whole numbers"),
    ({"sequences": np.array(1)}, "^sequences must be whole numbers"),
    ({"sequences": [0.5, 1, 2]}, "^sequences must be whole numbers"),
    (
        {"k": K[None].swapaxes(1, 2)},
        r"^k\.shape must be \[token, head, head_dim\], as cu_seqlens_k",
    ),
    ({"v": K[:9]}, r"^v\.shape must be \(10, 2, 64\), as the cache has it"),
    ({"k": K[:, :1]}, r"^k\.shape must be \(10, 2, 64\)"),
    ({"v": K.astype(np.float32)}, r"^v\.dtype"),
    ({"layout": "BSHD"}, "^layout must be one of"),
    ({"rope": turns(), "positions": [[0] * 4] * 3}, r"^positions .*shape \(10,\)"),
    ({"rope": turns(), "positions": [80] * 10}, "^positions must be from 0 to 79"),
    ({"cu_seqlens_k": [0, 0, 0, 10]}, "^k must be of at most 8 tokens for sequence 2"),
)


@pytest.mark.parametrize("device", ["cpu", None])
def test_what_is_wrong_is_named_and_changes_nothing(gpu, rng, device):
    cache = cache_of(FORMAT, capacity=80, device=device)
    k, v, bounds = drawn(rng, [20, 0, 72], 64)
    cache.append(k, v, cu_seqlens_k=bounds.tolist())
    before, launched = everything(cache), len(gpu.launched)
    for given, message in WRONG:
        with pytest.raises(ArgumentError, match=message):
            cache.append(**{"k": K, "v": K, "cu_seqlens_k": BOUNDS} | given)
    if device is None:
        for wrong in (np.zeros(3, np.int32), np.zeros(4, np.float32)):
            with pytest.raises(ArgumentError, match=r"^cu_seqlens_k must be int32 or int64 \[4\]"):
                cache.append(K, K, cu_seqlens_k=wrong)
    assert_unchanged(cache, before)
    assert len(gpu.launched) == launched


def test_shares_are_enough_wherever_tokens_begin(rng):
    units = AppendSpec.num_threads // 64
    share = units * UNIT_TOKENS
    for _ in range(200):
        counts = rng.integers(0, rng.choice([2, 20, 300]), rng.integers(1, 9))
        bounds = np.cumsum([int(rng.integers(0, 40)), *counts])
        ends = []
        for i, n in enumerate(counts.tolist()):
            begin = bounds[i] // share + 2 * i
            assert not ends or begin >= ends[-1]
            ends.append(begin + AppendSpec.pieces(n))
        assert ends[-1] <= AppendSpec.shares(int(bounds[-1]), len(counts))


def test_rows_are_whose_the_bounds_say(rng):
    packed = PackedTokens(4, 9, np.array([3, 1, 0]), np.array([1, 4, 4, 8]))
    assert packed.counts.tolist() == [4, 0, 0, 3]
    assert packed.parts_of.tolist() == [2, 1, -1, 0]
    assert packed.counted.tolist() == [False] + [True] * 7 + [False]
    assert packed.places(np.array([5, 0, 0, 90])).tolist() == [0, 90, 91, 92, 5, 6, 7, 8, 0]
    rows = np.arange(10, 19)
    assert packed.by_sequence(rows).tolist() == [
        [14, 15, 16, 17],
        [0] * 4,
        [0] * 4,
        [11, 12, 13, 0],
    ]
    assert PackedTokens(2, 0, np.arange(2), np.zeros(3, np.int64)).parts_of is None
