"""Calls of a KV cache that fail in the middle: what the host knows and the memory go on agreeing.

An error is raised at each line of `cuattn.kv` that a call comes through, one after the other, as an
interrupt or a lack of memory may.
"""

import copy
import pickle
import sys
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from kv_cases import tokens

import cuattn.kv.cache
from cuattn import KVCache

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU

BATCH, HEADS, CAPACITY, NUM_PAGES = 3, 1, 80, 14
# Of the room, but for what turns tokens into bytes, which the simulated kernels do too.
ROOM = Path(cuattn.kv.cache.__file__).parent
FILES = {str(path) for path in ROOM.glob("*.py")} - {str(ROOM / "units.py")}

ERRORS = (KeyboardInterrupt, MemoryError)


@contextmanager
def fault(error, at):
    """Raise an error at a line of the room, counted from 0 as they are executed."""
    left, before = at, sys.gettrace()

    def trace(frame, event, _):
        nonlocal left
        if event == "call":
            return trace if frame.f_code.co_filename in FILES else None
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(before)
                raise error
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def new_tokens(count):
    return tokens(np.random.default_rng(count), BATCH, HEADS, count, 64)


def filled(device, page_size, reserved=0, **options):
    """Return a cache with sequences of 20, 37 and 0 tokens, whose pages are not in order."""
    num_pages = NUM_PAGES if page_size else None
    cache = KVCache(
        *(BATCH, HEADS, 64, CAPACITY),
        page_size=page_size,
        num_pages=num_pages,
        device=device,
        **options,
    )
    for count in ([40, 5, 20], [0, 32, 10]):
        cache.append(*new_tokens(max(count)), counts=count)
    cache.truncate([20, 37, 0])
    cache.reserve(reserved)
    return cache


def original_for(name, device, page_size=16):
    """Return a cache for a call; one whose table is replaced has pages behind its tokens."""
    options = {"bits": 4, "recent": 16} if name.endswith("nested codes") else {}
    cache = filled(device, page_size, 48 if name == "set_page_table" else 0, **options)
    if name in SHARING:
        cache.fork(1, 2)
    return cache


def moved(cache):
    """Return a page table with the same pages for the tokens that there are, and others behind."""
    table = cache.page_table
    free = sorted(set(range(NUM_PAGES)) - set(table.ravel().tolist()))
    table[0, 2:5], table[2, :3] = free[:3], table[2, 2::-1].copy()
    return table


# On the simulated GPU every array is the GPU's.
CALLS = {
    "append": lambda cache: cache.append(*new_tokens(14)),
    "append what fits": lambda cache: cache.append(*new_tokens(2), counts=[2, 1, 0]),
    "append with counts of the GPU": lambda cache: cache.append(
        *new_tokens(9), counts=np.array([9, 1, 0])
    ),
    "truncate": lambda cache: cache.truncate([3, 17, 0]),
    "truncate to lengths of the GPU": lambda cache: cache.truncate(np.array([3, 17, 0])),
    "reset": lambda cache: cache.reset(),
    "reserve": lambda cache: cache.reserve(50),
    "set_page_table": lambda cache: cache.set_page_table(moved(cache)),
    "fork": lambda cache: cache.fork(1, 0),
    "reorder": lambda cache: cache.reorder([2, 0, 1]),
    "evict": lambda cache: cache.evict(1, [0]),
    "fork nested codes": lambda cache: cache.fork(1, 0),
    "reorder nested codes": lambda cache: cache.reorder([1, 0, 0]),
    "evict nested codes": lambda cache: cache.evict(1, [1]),
    "append to shared pages": lambda cache: cache.append(*new_tokens(14), counts=[0, 1, 14]),
    "append to shared pages with counts of the GPU": lambda cache: cache.append(
        *new_tokens(2), counts=np.array([1, 2, 2])
    ),
    "truncate to shared pages": lambda cache: cache.truncate([20, 20, 3]),
    "reserve with shared pages": lambda cache: cache.reserve(50),
}
# Of which sequences 1 and 2 are the same before.
SHARING = {name for name in CALLS if "shared pages" in name} | {"reorder"}
PAGED = ("set_page_table", "evict", "evict nested codes")
# Of a cache in one piece.
PLAIN = [name for name in CALLS if name not in (*PAGED, *SHARING)] + ["reorder"]
every_call = pytest.mark.parametrize("name", CALLS)


def assert_agreement(cache):
    """What the host knows, what the memory has, and which pages are free."""
    memory, host_state = cache._memory, cache._memory.host_state
    np.testing.assert_array_equal(memory.limits, host_state.limits)
    if host_state.is_known:
        np.testing.assert_array_equal(memory.lengths, host_state.lengths)
    assert (memory.lengths <= memory.limits).all()
    pages = host_state.pages
    if pages is None:
        return
    given = []
    for b, count in enumerate(pages.counts.tolist()):
        np.testing.assert_array_equal(memory.pages[b, :count], pages.table[b, :count])
        given += memory.pages[b, :count].tolist()
    assert 0 <= memory.pages.min() <= memory.pages.max() < NUM_PAGES
    extra = np.zeros(NUM_PAGES, int) if pages.extra is None else pages.extra
    page, times = np.unique(np.array(given, int), return_counts=True)
    np.testing.assert_array_equal(extra[page], times - 1)
    if pages.is_own:
        free = [*pages.returned.tolist(), *range(pages.unused, NUM_PAGES)]
        assert sorted([*page.tolist(), *free]) == list(range(NUM_PAGES))
        assert not extra[free].any()


def state(cache):
    """All that a caller can see of a cache, but for pages in use by no token."""
    k, v = cache.codes()
    parts = [k.codes, k.scale, k.vector[cache.lengths > 0], v.codes, v.scale]
    host_state = cache._memory.host_state
    return [cache.lengths, host_state.limits, np.array(host_state.reserved), *parts]


def all_of(cache):
    """All that a copy of a cache has of it, once it is settled."""
    memory = cache._memory
    assert not memory.undo
    return pickle.dumps([memory.host_state, *map(np.asarray, memory.arrays())])


def same(x, y):
    return all(np.array_equal(a, b) for a, b in zip(x, y, strict=True))


def copy_of(cache):
    """Return a copy that need not plan its calls again."""
    other = copy.deepcopy(cache)
    if hasattr(cache._memory, "_remembered"):
        other._memory._remembered = cache._memory._remembered
    return other


@pytest.mark.parametrize(("page_size", "name"), [*product([0], PLAIN), *product([16], CALLS)])
def test_a_fault_at_any_line_leaves_all_in_agreement(device, name, page_size):
    call, original = CALLS[name], original_for(name, device, page_size)
    before, done = state(original), copy_of(original)
    call(done)
    assert not done._memory.undo
    after = state(done)
    go_on(done)
    end, undone, contents = state(done), 0, set()
    for cache in interrupted(call, original):
        if not cache._memory.undo:
            assert_agreement(cache)
        found = state(cache)  # a call, before which all is settled
        assert_agreement(cache)
        is_undone = same(found, before)
        assert is_undone or same(found, after)
        undone += is_undone
        # What a call does follows from these contents: those that were there before need no other.
        if (content := all_of(cache)) in contents:
            continue
        contents.add(content)
        if is_undone:
            call(cache)
        # Whatever happened, it goes on like one to which nothing did.
        go_on(cache)
        assert_agreement(cache)
        assert same(state(cache), end)
    assert undone > 10


def interrupted(call, original):
    """Yield copies whose call has met a fault, at one line after the other, to its last."""
    for at in range(10_000):
        cache, error = copy_of(original), ERRORS[at % 2]
        try:
            with fault(error, at):
                call(cache)
            return
        except error:
            yield cache


def go_on(cache):
    _ = cache.lengths
    cache.append(*new_tokens(3), counts=[3, 1, 1])


class Failing:
    """A copy of an array, until there is no memory left."""

    def __init__(self, calls):
        self._left = calls

    def __call__(self, x):
        self._left -= 1
        if self._left < 0:
            raise MemoryError
        return np.array(x)


NEXT = {
    "attend": lambda cache: cache.attend(new_tokens(1)[0]),
    "append": lambda cache: (cache.lengths, cache.append(*new_tokens(1))),
    "gather": lambda cache: cache.gather(),
}


@every_call
@pytest.mark.parametrize("then", NEXT)
@pytest.mark.parametrize("calls", range(4))
def test_what_cannot_be_undone_at_once_is_undone_by_the_next_call(
    device, name, calls, then, monkeypatch
):
    original = original_for(name, device)
    cache, expected = copy_of(original), copy_of(original)
    with monkeypatch.context() as patch:
        patch.setattr(cache._memory, "sent", Failing(calls))
        try:
            CALLS[name](cache)
        except MemoryError:
            if cache._memory.undo:
                with pytest.raises(MemoryError):
                    NEXT[then](cache)
        else:
            CALLS[name](expected)
    for one in (cache, expected):
        NEXT[then](one)
        assert_agreement(one)
    assert same(state(cache), state(expected))


def test_a_fault_where_a_window_moves_on_loses_nothing_inside(device):
    original = filled(device, 16, window=20)
    call = CALLS["append"]
    before, done = state(original), copy_of(original)
    call(done)
    rolled = copy_of(original)
    rolled.evict(1, [0])
    ends = [state(x) for x in (original, rolled, done)]
    found = []
    for cache in interrupted(call, original):
        now = state(cache)
        assert_agreement(cache)
        found.append(next(i for i, end in enumerate(ends) if same(now, end)))
        if found[-1] < 2:
            call(cache)
        assert same(state(cache), ends[2])
    assert same(before, ends[0])
    assert found == sorted(found)
    assert found.count(0) > 10
    assert found.count(1) > 10


def test_a_fault_in_a_capture_leaves_a_cache_that_can_be_used(monkeypatch):
    gpu = SimulatedGPU(monkeypatch)
    original = filled(None, 16)
    original.reserve(60)
    for at in range(10_000):
        cache = copy.deepcopy(original)
        gpu.is_capturing = True
        try:
            with fault(KeyboardInterrupt, at):
                cache.append(*new_tokens(2))
            break
        except KeyboardInterrupt:
            pass
        finally:
            gpu.is_capturing = False
        _ = cache.lengths
        assert_agreement(cache)
        cache.append(*new_tokens(14))
        assert_agreement(cache)
    assert at > 10


def test_a_refusal_is_not_lost_by_a_fault(monkeypatch):
    SimulatedGPU(monkeypatch)
    cache = filled(None, 0)
    cache.append(*new_tokens(60), counts=np.array([60, 60, 60]))
    with monkeypatch.context() as patch:
        patch.setattr(cache._memory, "to_host", Failing(1))
        with pytest.raises(MemoryError):
            _ = cache.lengths
    with pytest.raises(cuattn.ArgumentError, match="the GPU has refused"):
        _ = cache.lengths
    assert cache.lengths.tolist() == [20, 37, 0]


def test_a_fault_at_any_line_of_loading_leaves_nothing_behind(device, tmp_path):
    pytest.importorskip("safetensors")
    path, cache = tmp_path / "cache.safetensors", filled(device, 16)
    cache.save(path)
    for at in range(0, 10_000, 7):
        try:
            with fault(MemoryError, at):
                loaded = KVCache.load(path, device)
            break
        except MemoryError:
            pass
        assert list(tmp_path.iterdir()) == [path]
    assert at > 100
    assert_agreement(loaded)
    np.testing.assert_array_equal(loaded.lengths, cache.lengths)
    assert same(state(loaded)[3:], state(cache)[3:])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_launch_changes_nothing(monkeypatch, error):
    SimulatedGPU(monkeypatch)
    cache = filled(None, 16)
    before = state(cache)

    launch = sys.modules["cupy"].cuda.driver.launchKernel

    def failing(*arguments):
        launch(*arguments)
        raise error("after a launch")

    with monkeypatch.context() as patch:
        patch.setattr("cupy.cuda.driver.launchKernel", failing)
        for name in ("append", "append what fits", "append with counts of the GPU"):
            with pytest.raises(error, match="after a launch"):
                CALLS[name](cache)
            assert not cache._memory.undo
            assert_agreement(cache)
            assert same(state(cache), before)
