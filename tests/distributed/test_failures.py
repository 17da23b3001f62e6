"""What goes wrong on one rank: all are told the same, and none waits for ever."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from ring_cases import inputs, sharded

from cuattn.distributed import (
    DistributedKVCache,
    nodes,
    ring_attention,
    run_virtual,
    ulysses_attention,
    usp_attention,
)
from cuattn.distributed.store import StoreControl
from cuattn.errors import (
    ArgumentError,
    CuattnError,
    DistributedError,
    MismatchError,
    RankTimeoutError,
)


def every_error(size, function):
    """Return what each rank raises."""

    def work(group):
        with pytest.raises(CuattnError) as caught:
            function(group)
        return caught.value

    return run_virtual(size, work)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"scheme": "int8-block"}, "scheme must be equal on all ranks"),
        ({"placement": "striped"}, "placement must be equal on all ranks, got 'zigzag' on rank 0"),
        ({"is_causal": True}, r"window_size must be equal .* got \[-1, -1\] on rank 0"),
        ({"wire": "int4"}, "wire must be equal on all ranks"),
        ({"scale": -1.0}, "rank 1: scale must be at least 0"),
        ({"scheme": "int9"}, "rank 1: scheme must be"),
        ({"wire": "int5"}, "rank 1: wire must be one of"),
        ({"wire": "int4", "scheme": "fp8"}, "rank 1: wire must be None with scheme 'fp8'"),
    ],
)
def test_ranks_that_differ_are_all_told(rng, odd, message):
    arrays = inputs(rng, 24)

    def work(group):
        ring_attention(*sharded(arrays, group, "zigzag"), group, **(odd if group.rank == 1 else {}))

    errors = every_error(3, work)
    assert {type(error) for error in errors} == {MismatchError}
    assert len({str(error) for error in errors}) == 1
    with pytest.raises(MismatchError, match=message):
        raise errors[0]


def test_arrays_that_differ(rng):
    arrays = inputs(rng, 24)

    def work(group):
        q, k, v = sharded(arrays, group, "zigzag")
        if group.rank == 0:
            k, v = k[:, :1], v[:, :1]
        ring_attention(q, k, v, group)

    for error in every_error(2, work):
        assert str(error) == (
            "num_kv_heads must be equal on all ranks, got 1 on rank 0 and 2 on rank 1"
        )


def test_lengths_that_are_not_those_of_the_placement(rng):
    q, k, v = inputs(rng, 24)

    def work(group):
        own = [x[:, :, : 10 + 4 * group.rank] for x in (q, k, v)]
        ring_attention(*own, group, is_causal=True)

    for error in every_error(2, work):
        assert "must have [12, 12] tokens on the ranks" in str(error)


def test_a_call_of_another_kind(rng):
    arrays = inputs(rng, 24)

    def work(group):
        attend = ulysses_attention if group.rank else ring_attention
        attend(*sharded(arrays, group, "contiguous"), group)

    for error in every_error(2, work):
        assert "call must be equal on all ranks" in str(error) or "ranks must be" in str(error)


def test_heads_that_ranks_cannot_share(rng):
    arrays = inputs(rng, 24)
    for error in every_error(
        3, lambda group: ulysses_attention(*sharded(arrays, group, "contiguous"), group)
    ):
        assert "num_kv_heads must be a multiple of the 3 ranks" in str(error)


def test_one_node_tells_the_other(rng):
    arrays = inputs(rng, 24)

    def work(group):
        inner, outer = nodes(group, 2)
        own = sharded(arrays, group, "contiguous")
        usp_attention(*own, inner, outer, scale=-1 if group.rank == 3 else None)

    for error in every_error(4, work):
        assert isinstance(error, MismatchError)
        assert "scale must be at least 0" in str(error)


def test_a_rank_that_is_gone_ends_in_a_timeout(rng):
    arrays = inputs(rng, 24)

    def work(group):
        if group.rank != 1:
            with pytest.raises(RankTimeoutError, match=r"within 0.2 s"):
                ring_attention(*sharded(arrays, group, "zigzag"), group)

    run_virtual(3, work, timeout=0.2)


def test_what_one_rank_raises_ends_all():
    def work(group):
        if group.rank == 2:
            raise KeyError("of rank 2")
        group.barrier()

    with pytest.raises(KeyError, match="of rank 2"):
        run_virtual(3, work)


def test_check_once_asks_once(rng):
    arrays = inputs(rng, 24)

    def work(group):
        asked = []
        ask = group.gather_bytes
        group.gather_bytes = lambda data: asked.append(1) or ask(data)
        for check in ("always", "once", "once", "always"):
            ring_attention(*sharded(arrays, group, "zigzag"), group, check=check)
        return len(asked)

    assert run_virtual(2, work) == [2, 2]


def test_a_cache_says_what_is_wrong_on_all_ranks():
    def work(group):
        DistributedKVCache(group, 1, 2, 64, 100, interleave=group.rank, device="cpu")

    for error in every_error(2, work):
        assert "interleave must be a number of tokens, at least 1" in str(error)


def test_a_spread_cache_has_no_window():
    def work(group):
        options = {"page_size": 16, "window": 20, "device": "cpu"}
        DistributedKVCache(group, 1, 2, 64, 100, **options)

    for error in every_error(2, work):
        assert "window must be None: a rank would not know" in str(error)


def test_a_cache_refuses_what_does_not_fit():
    def work(group):
        cache = DistributedKVCache(group, 1, 2, 64, 8, interleave=4, device="cpu")
        k = np.zeros((1, 2, 9, 64), np.float32)
        with pytest.raises(ArgumentError, match="no sequence has more than 8 tokens"):
            cache.append(k, k)
        with pytest.raises(ArgumentError, match="counts must be"):
            cache.append(k, k, counts=[10])
        return int(cache.lengths[0])

    assert run_virtual(2, work) == [0, 0]


def test_nodes_are_whole():
    def work(group):
        with pytest.raises(ArgumentError, match="size must be a divisor of the 3 ranks"):
            nodes(group, 2)

    run_virtual(3, work)


def test_unknown_keywords_are_named(rng):
    arrays = inputs(rng, 8)
    with pytest.raises(TypeError, match="expected 'is_causal'"):
        run_virtual(1, lambda group: ring_attention(*arrays, group, causal=True))
    with pytest.raises(TypeError, match="no argument 'cu_seqlens_q'"):
        run_virtual(1, lambda group: ring_attention(*arrays, group, cu_seqlens_q=None))


class Store:
    """What ``torch.distributed`` calls a store, for threads; `asked` are the ranks that read."""

    def __init__(self, pause=0.0):
        self.values, self.asked, self.pause = {}, [], pause

    def of(self, rank):
        return SimpleNamespace(
            set=self.values.__setitem__,
            check=lambda keys: all(key in self.values for key in keys),
            get=lambda key: self.get(key, rank),
            delete_key=lambda key: self.values.pop(key, None),
        )

    def get(self, key, rank):
        if rank:
            time.sleep(self.pause)
        self.asked.append(rank)
        return self.values[key]


def test_rank_0_is_the_last_to_leave_the_store_it_has():
    store = Store(pause=0.05)

    def leave(rank):
        control = StoreControl(store.of(rank), rank, 3, 10.0)
        assert control.gather_bytes(b"%d" % rank) == [b"0", b"1", b"2"]
        control.barrier()
        store.asked.append(f"rank {rank} ends")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(leave, range(3)))
    end = store.asked.index("rank 0 ends")
    assert all(rank not in store.asked[end:] for rank in (0, 1, 2))
    assert len(store.values) < 12


def test_a_store_that_is_gone_is_an_error_of_ours():
    def gone(*_):
        raise RuntimeError("Connection reset by peer\nframe #0: ...")

    control = StoreControl(SimpleNamespace(set=gone), 1, 2, 10.0)
    with pytest.raises(DistributedError, match=r"store .* is gone: .*\(Connection reset by peer\)"):
        control.barrier()


def test_a_group_is_left_together_unless_by_an_error():
    def work(group):
        group.closed = 0

        def close():
            group.closed += 1

        group.close = close
        with group:
            pass
        with pytest.raises(ZeroDivisionError), group:
            assert 1 // (group.rank - group.rank)  # the others are not waited for
        return group.closed

    assert run_virtual(2, work) == [2, 2]
