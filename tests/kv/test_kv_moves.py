"""Sequences of a KV cache that become others, share pages, lose pages: what a caller sees of it."""

import copy

import numpy as np
import pytest
from kv_cases import FORMATS, assert_same_contents, assert_unchanged, everything, options, tokens

from cuattn import ArgumentError, KVCache, UnsupportedError

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU

PAGED = {"page_size": 16, "num_pages": 12}


@pytest.fixture(params=["cpu", None], ids=["host", "gpu"])
def device(request, monkeypatch):
    if request.param is None:
        SimulatedGPU(monkeypatch)
    return request.param


def filled(rng, device="cpu", kv_format=FORMATS["8"], counts=(50, 0, 21), **others):
    """Return a cache with sequences of some tokens."""
    sizes = (3, 2, kv_format.head_dim, 80)
    cache = KVCache(*sizes, device=device, **options(kv_format), **others)
    cache.append(*tokens(rng, 3, 2, max(counts), kv_format.head_dim), counts=list(counts))
    return cache


def free_pages(cache):
    pages = cache._memory.host_state.pages
    return len(pages.returned) + cache._memory.geometry.num_pages - pages.unused


def shared_with(cache, b):
    """Return how many first pages of sequence b are those of sequence 0."""
    row, first = cache.page_table[b], cache.page_table[0]
    return int(np.cumprod((row == first) & (row != -1)).sum())


@pytest.mark.parametrize("others", [{}, PAGED], ids=["in one piece", "pages"])
@pytest.mark.parametrize("kv_format", [FORMATS["8"], FORMATS["nested"]], ids=["8", "nested"])
def test_a_fork_has_the_tokens_and_goes_its_own_way(device, rng, kv_format, others):
    cache = filled(rng, device, kv_format, **others)
    expected = cache.copy()
    cache.fork(0, 1)
    assert cache.lengths.tolist() == [50, 50, 21]
    (k, _), (wanted, _) = cache.gather(), expected.gather()
    np.testing.assert_array_equal(k[:2], wanted[[0, 0]])
    new = tokens(rng, 3, 2, 5, 64)
    cache.append(*new, counts=[0, 5, 0])
    expected.append(*new)
    assert_same = np.testing.assert_array_equal
    assert_same(cache.codes()[0].codes[0, :, :50], expected.codes()[0].codes[0, :, :50])
    assert cache.lengths.tolist() == [50, 55, 21]
    # It is rounded as one that has got all of its tokens itself.
    cache.append(*new, counts=[5, 0, 0])
    new_keys = cache.gather("float32")[0]
    assert np.abs(new_keys[1, :, 50:] - new[0][1]).max() < 0.3
    assert np.abs(new_keys[0, :, 50:] - new[0][0]).max() < 0.3


def test_a_prefix_of_many_sequences_is_kept_once(device, rng):
    cache = filled(rng, device, counts=(40, 0, 0), **PAGED)
    cache.fork(0, 1)
    cache.fork(0, 2)
    assert free_pages(cache) == 9
    assert [shared_with(cache, b) for b in (1, 2)] == [3, 3]
    # Each takes a page for its own end; the last one keeps what was shared.
    cache.append(*tokens(rng, 3, 2, 1, 64))
    assert free_pages(cache) == 7
    assert [shared_with(cache, b) for b in (1, 2)] == [2, 2]
    cache.truncate([0, 41, 0])
    assert free_pages(cache) == 9
    cache.reset()
    assert free_pages(cache) == 12


def test_a_full_page_is_never_copied(device, rng):
    cache = filled(rng, device, counts=(32, 0, 0), **PAGED)
    cache.fork(0, 1)
    cache.append(*tokens(rng, 3, 2, 1, 64), counts=[1, 1, 0])
    assert shared_with(cache, 1) == 2
    assert free_pages(cache) == 8


def test_too_few_pages_for_copies_change_nothing(device, rng):
    cache = filled(rng, device, counts=(40, 0, 0), page_size=16, num_pages=4)
    cache.reorder([0, 0, 0])
    before = everything(cache)
    new = tokens(rng, 3, 2, 1, 64)
    with pytest.raises(ArgumentError, match="such that the 1 free pages suffice, not 2"):
        cache.append(*new)
    assert_unchanged(cache, before)
    cache.append(*new, counts=[1, 0, 0])
    with pytest.raises(ArgumentError, match="such that the 0 free pages suffice, not 1"):
        cache.append(*new, counts=[0, 1, 0])
    cache.truncate([41, 0, 40])
    cache.append(*new, counts=[0, 0, 1])
    assert cache.lengths.tolist() == [41, 0, 41]


@pytest.mark.parametrize("others", [{}, PAGED], ids=["in one piece", "pages"])
def test_reordered_sequences_are_what_they_were(device, rng, others):
    cache = filled(rng, device, FORMATS["nested"], (50, 30, 21), **others)
    before = cache.gather()[0]
    cache.reorder([2, 0, 1])
    assert cache.lengths.tolist() == [21, 50, 30]
    np.testing.assert_array_equal(cache.gather()[0], before[[2, 0, 1]])
    cache.reorder([1, 1, 2])
    np.testing.assert_array_equal(cache.gather()[0], before[[0, 0, 1]])
    if others:
        assert free_pages(cache) == 12 - 4 - 2


@pytest.mark.parametrize("others", [{}, PAGED], ids=["in one piece", "pages"])
@pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 0], [2, 1, 1]])
def test_reordered_sequences_answer_as_before(device, rng, order, others):
    cache = filled(rng, device, FORMATS["4-group64-zero"], (20, 7, 0), **others)
    q = tokens(rng, 3, 4, 1, 64)[0][[0, 0, 0]]
    answers = cache.attend(q)
    cache.reorder(order)
    np.testing.assert_array_equal(cache.attend(q), answers[order])


def test_what_is_reordered_to_itself_is_left_alone(rng):
    cache = filled(rng)
    before = everything(cache)
    cache.reorder(range(3))
    cache.fork(1, 1)
    assert_unchanged(cache, before)


@pytest.mark.parametrize(
    ("call", "argument", "words"),
    [
        (lambda c: c.fork(3, 0), "src", "a sequence from 0 to 2"),
        (lambda c: c.fork(0, -1), "dst", "a sequence from 0 to 2"),
        (lambda c: c.fork(0, 1.0), "dst", "a sequence from 0 to 2"),
        (lambda c: c.reorder([0, 1]), "indices", "whole numbers of shape (3,)"),
        (lambda c: c.reorder([0, 1, 3]), "indices", "of sequences from 0 to 2"),
        (lambda c: c.evict(3, [0]), "sequence", "a sequence from 0 to 2"),
        (lambda c: c.evict(0, [3]), "pages", "from 0 to 2: before that of the last token"),
        (lambda c: c.evict(0, [1, 1]), "pages", "different places in the page table"),
        (lambda c: c.evict(0, 1), "pages", "a list of places in the page table"),
        (lambda c: c.evict(0, [0.5]), "pages", "whole numbers"),
        (lambda c: c.evict(1, [0]), "pages", "of which there are none"),
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(device, rng, call, argument, words):
    cache = filled(rng, device, **PAGED)
    before = everything(cache)
    with pytest.raises(ArgumentError) as error:
        call(cache)
    assert error.value.argument == argument
    assert words in str(error.value)
    assert_unchanged(cache, before)


def test_pages_of_the_caller_are_not_shared_or_given_back(device, rng):
    cache = filled(rng, device, **PAGED)
    cache.set_page_table(cache.page_table)
    for call in (lambda: cache.fork(0, 1), lambda: cache.evict(0, [0])):
        with pytest.raises(UnsupportedError, match="set_page_table has made them the caller's"):
            call()
    with pytest.raises(UnsupportedError, match="a cache with a page_size, which here is 0"):
        filled(rng, device).evict(0, [0])


@pytest.mark.parametrize("kv_format", [FORMATS["8"], FORMATS["nested"]], ids=["8", "nested"])
def test_what_remains_of_evicted_pages_is_attended(device, rng, kv_format):
    others = {"first": 16, "recent": 16} if kv_format.nested else {}
    cache = filled(rng, device, kv_format, (70, 60, 21), **PAGED, **others)
    k, v = cache.gather("float32")
    cache.evict(0, [3, 1])
    assert cache.lengths.tolist() == [38, 60, 21]
    assert cache.positions.tolist() == [70, 60, 21]
    left = np.r_[0:16, 32:48, 64:70]
    found = cache.gather("float32")
    np.testing.assert_array_equal(found[0][0, :, :38], k[0][:, left])
    np.testing.assert_array_equal(found[1][0, :, :38], v[0][:, left])
    np.testing.assert_array_equal(found[0][1, :, :60], k[1, :, :60])
    q = tokens(rng, 3, 2, 1, 64)[0]
    s = (q[0].astype(float) @ found[0][0, :, :38].swapaxes(1, 2)) / 8
    p = np.exp(s - s.max(axis=2, keepdims=True))
    wanted = p @ found[1][0, :, :38] / p.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(cache.attend(q)[0], wanted, atol=0.05)


def test_distances_across_what_is_gone_are_refused(device, rng):
    cache = filled(rng, device, **PAGED)
    q = tokens(rng, 3, 2, 1, 64)[0]
    cache.evict(0, [0])
    # What is left follows on each other.
    cache.attend(q, window_size=(8, 0), alibi_slopes=np.ones(2, np.float32))
    cache.evict(0, [1])
    for options_, name in (
        ({"window_size": (8, 0)}, "window_size"),
        ({"alibi_slopes": np.ones(2, np.float32)}, "alibi_slopes"),
    ):
        with pytest.raises(UnsupportedError, match=f"{name} counts tokens, of which sequence 0"):
            cache.attend(q, **options_)
    cache.attend(q, window_size=(-1, 0), softcap=5.0)
    cache.fork(1, 0)
    cache.attend(q, window_size=(8, 0))


def test_a_sequence_is_not_shortened_to_where_its_position_is_unknown(device, rng):
    cache = filled(rng, device, **PAGED)
    cache.evict(0, [1])
    before = everything(cache)
    with pytest.raises(ArgumentError, match="0 or more than 16 for sequence 0, behind whose first"):
        cache.truncate([16, 0, 21])
    assert_unchanged(cache, before)
    cache.truncate([17, 0, 21])
    assert cache.positions.tolist() == [33, 0, 21]
    cache.truncate([0, 0, 21])
    assert cache.positions.tolist() == [0, 0, 21]


@pytest.mark.parametrize(("sinks", "kept_sinks"), [(0, 0), (4, 16), (17, 32)])
def test_a_window_keeps_the_newest_tokens_and_the_first(device, rng, sinks, kept_sinks):
    kv_format = FORMATS["8"]
    cache = KVCache(
        *(1, 2, 64, 100),
        **options(kv_format),
        device=device,
        page_size=16,
        window=20,
        sink_tokens=sinks,
    )
    k, v = tokens(rng, 1, 2, 300, 64)
    at = 0
    while at < 300:
        count = min(1 + at % 7, 300 - at)
        cache.append(k[:, :, at : at + count], v[:, :, at : at + count])
        first = max((at - 19) // 16 * 16, kept_sinks)
        at += count
        left = np.r_[0 : min(kept_sinks, at), first:at]
        assert cache.lengths.tolist() == [len(left)]
        assert cache.positions.tolist() == [at]
        found = cache.gather("float32")[1][0]
        np.testing.assert_allclose(found, v[0][:, left], atol=0.05)
    assert free_pages(cache) >= 2


def test_a_window_of_nested_codes_keeps_their_first_tokens(device, rng):
    cache = KVCache(1, 2, 64, 400, bits=4, device=device, page_size=32, window=64)
    for _ in range(10):
        cache.append(*tokens(rng, 1, 2, 50, 64))
    assert cache.page_table[0, 0] == 0
    assert cache.positions.tolist() == [500]
    assert cache.lengths.tolist() == [32 + 500 - 384]
    with pytest.raises(ArgumentError, match="behind the first 16 tokens, which keep 8 bits"):
        cache.evict(0, [0])


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"window": 20}, "window"),
        ({"window": 0, "page_size": 16}, "window"),
        ({"window": 20.0, "page_size": 16}, "window"),
        ({"sink_tokens": 4, "page_size": 16}, "sink_tokens"),
        ({"sink_tokens": -4, "page_size": 16, "window": 20}, "sink_tokens"),
        ({"sink_tokens": 33, "page_size": 16, "window": 20}, "capacity"),
    ],
)
def test_windows_that_cannot_be_are_refused(given, argument):
    with pytest.raises(ArgumentError) as error:
        KVCache(3, 2, 64, 80, device="cpu", **given)
    assert error.value.argument == argument


def test_a_window_takes_no_pages_of_the_caller(rng):
    cache = filled(rng, **PAGED, window=20)
    with pytest.raises(ArgumentError, match="a cache without a window"):
        cache.set_page_table(cache.page_table)


@pytest.fixture
def gpu(monkeypatch):
    return SimulatedGPU(monkeypatch)


def test_a_graph_appends_to_pages_of_its_own(gpu, rng):
    cache = filled(rng, None, counts=(40, 0, 0), **PAGED)
    new = tokens(rng, 3, 2, 2, 64)
    cache.fork(0, 1)
    gpu.is_capturing = True
    with pytest.raises(UnsupportedError, match=r"sequences share .*: reserve\(\) gives them"):
        cache.append(*new)
    gpu.is_capturing = False
    cache.reserve(48)
    assert shared_with(cache, 1) == 2
    gpu.is_capturing = True
    cache.append(*new)
    gpu.is_capturing = False
    # From now on forks have their own last pages at once.
    cache.truncate([40, 40, 2])
    cache.fork(0, 2)
    assert shared_with(cache, 2) == 2
    assert (cache.page_table >= 0).sum(axis=1).tolist() == [3, 3, 3]


def test_appends_with_counts_of_the_gpu_copy_shared_pages_before(gpu, rng):
    cache = filled(rng, None, counts=(40, 0, 0), **PAGED)
    cache.fork(0, 1)
    new = tokens(rng, 3, 2, 2, 64)
    expected = cache.copy()
    expected.append(*new, counts=[1, 2, 0])
    cache.append(*new, counts=np.array([1, 2, 0]))
    assert shared_with(cache, 1) == 2
    assert_same_contents(cache, expected)


def test_a_graph_that_shortens_leaves_nothing_shared(gpu, rng):
    cache = filled(rng, None, counts=(40, 0, 0), page_size=16, num_pages=7)
    gpu.is_capturing = True
    cache.truncate(np.array([40, 40, 40]))
    gpu.is_capturing = False
    cache.fork(0, 1)
    assert shared_with(cache, 1) == 0
    assert_same_contents(cache, copy.copy(cache))
    np.testing.assert_array_equal(*cache.gather()[0][:2])
    before = everything(cache)
    with pytest.raises(ArgumentError, match="such that the 1 free pages suffice, not 3"):
        cache.fork(0, 2)
    assert_unchanged(cache, before)
    with pytest.raises(UnsupportedError, match="a graph that shortens sequences"):
        cache.evict(0, [0])


def test_lengths_of_the_gpu_shorten_no_shared_or_evicted_pages(gpu, rng):
    cache = filled(rng, None, counts=(40, 0, 0), **PAGED)
    cache.fork(0, 1)
    with pytest.raises(ArgumentError, match="in host memory while sequences share pages"):
        cache.truncate(np.array([30, 30, 0]))
    cache.truncate([40, 0, 0])
    cache.evict(0, [0])
    with pytest.raises(ArgumentError, match="in host memory where pages are evicted"):
        cache.truncate(np.array([20, 0, 0]))


def test_moves_are_not_captured(gpu, rng):
    cache = filled(rng, None, **PAGED)
    before = everything(cache)
    gpu.is_capturing = True
    for call in (lambda: cache.fork(0, 1), lambda: cache.evict(0, [0])):
        with pytest.raises(UnsupportedError, match="captured"):
            call()
    gpu.is_capturing = False
    assert_unchanged(cache, before)


def test_copy_is_that_of_the_module(device, rng):
    cache = filled(rng, device, **PAGED)
    cache.fork(0, 1)
    other = cache.copy()
    assert_same_contents(other, cache)
    np.testing.assert_array_equal(other.page_table, cache.page_table)
    other.append(*tokens(rng, 3, 2, 3, 64))
    assert shared_with(cache, 1) == 4
    assert shared_with(other, 1) == 3


@pytest.mark.parametrize("kv_format", [FORMATS["8"], FORMATS["nested"]], ids=["8", "nested"])
def test_a_file_knows_what_is_shared_and_what_is_gone(device, rng, tmp_path, kv_format):
    pytest.importorskip("safetensors")
    others = {"first": 16, "recent": 16} if kv_format.nested else {}
    cache = filled(rng, device, kv_format, (70, 0, 0), page_size=16, num_pages=7, **others)
    cache.fork(0, 1)
    cache.evict(1, [2])
    cache.fork(0, 2)
    cache.save(tmp_path / "cache.safetensors")
    loaded = KVCache.load(tmp_path / "cache.safetensors", device)
    for one in (cache, loaded):
        one.append(*tokens(np.random.default_rng(5), 3, 2, 5, 64), counts=[0, 5, 5])
    assert_same_contents(loaded, cache)
    assert loaded.positions.tolist() == cache.positions.tolist() == [70, 75, 75]
    assert free_pages(loaded) == free_pages(cache) == 0
    for b in (1, 2):
        assert shared_with(loaded, b) == shared_with(cache, b)


def test_a_file_has_all_tokens_of_a_page_that_one_shares_in_part(rng, tmp_path):
    pytest.importorskip("safetensors")
    cache = filled(rng, counts=(40, 0, 0), **PAGED)
    cache.reorder([0, 0, 0])
    for lengths in ([40, 35, 20], [40, 35, 10]):
        cache.truncate(lengths)
        cache.save(tmp_path / "cache.safetensors")
        assert_same_contents(KVCache.load(tmp_path / "cache.safetensors", "cpu"), cache)
    cache.reorder([2, 1, 0])
    cache.save(tmp_path / "cache.safetensors")
    assert_same_contents(KVCache.load(tmp_path / "cache.safetensors", "cpu"), cache)


def test_a_cache_emptied_after_an_eviction_is_saved(rng, tmp_path):
    pytest.importorskip("safetensors")
    cache = KVCache(1, 2, 64, 80, page_size=16, device="cpu")
    # Few tokens first: then the first 128 keys have no offset.
    for count in (1, 40):
        cache.append(*tokens(rng, 1, 2, count, 64))
    cache.evict(0, [0])
    cache.reset()
    cache.save(tmp_path / "cache.safetensors")
    assert KVCache.load(tmp_path / "cache.safetensors", "cpu").positions.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pages", lambda x: np.where(x == 1, 9, x)),
        ("pages", lambda x: np.where(x == 1, 0, x)),
        ("pages", lambda x: np.maximum(x, 0)),
        ("evicted", lambda x: x + 100),
        ("evicted", lambda x: x - 1),
    ],
)
def test_files_with_other_pages_are_refused(rng, tmp_path, name, change):
    library = pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    from cuattn.kv.files import checksum

    path = tmp_path / "cache.safetensors"
    cache = filled(rng, counts=(40, 0, 0), **PAGED)
    cache.fork(0, 1)
    cache.evict(1, [1])
    cache.save(path)
    with library.safe_open(path, "numpy") as file:
        metadata = file.metadata()
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    arrays[name] = change(arrays[name]).astype(arrays[name].dtype)
    metadata["sha256"] = checksum(metadata["geometry"], arrays)
    save_file(arrays, path, metadata)
    with pytest.raises(ArgumentError, match=rf"the file of a sound cache \({name} must be"):
        KVCache.load(path, "cpu")
