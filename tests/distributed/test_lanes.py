"""In which order calls and messages of a ring may be executed, on streams that only note it."""

from types import SimpleNamespace

import numpy as np
import pytest

from cuattn.distributed import lanes, side_stream
from cuattn.distributed.call import Held
from cuattn.distributed.lanes import Lanes
from cuattn.distributed.placement import Run
from cuattn.distributed.ring import go_round


class Stream:
    """Knows what has been done by the time that it gets to what is enqueued next."""

    current = None

    def __init__(self, **options):
        self.done = set()
        self.ptr = id(self)

    def wait_event(self, event):
        self.done |= event.done

    def __enter__(self):
        self.before, Stream.current = Stream.current, self

    def __exit__(self, *error):
        Stream.current = self.before


class Event:
    def __init__(self, **options):
        self.done = set()

    def record(self, stream):
        self.done = set(stream.done)


@pytest.fixture
def caller(monkeypatch):
    """A stream that is the current one of a GPU that computes nothing."""
    stream = Stream.current = Stream()
    cuda = SimpleNamespace(
        Stream=Stream,
        Event=Event,
        get_current_stream=lambda: Stream.current,
        runtime=SimpleNamespace(getDevice=lambda: 0),
    )
    for module in (lanes, side_stream):
        monkeypatch.setattr(module, "cupy_module", lambda: SimpleNamespace(cuda=cuda))
    lanes._beside.cache_clear()
    yield stream
    lanes._beside.cache_clear()


def test_streams_take_turns(caller):
    caller.done.add("packed")
    of_ring = Lanes(True, np.zeros(1))
    used = []
    for number in range(3):
        with of_ring.next():
            used.append(Stream.current)
            assert "packed" in Stream.current.done
            Stream.current.done.add(number)
    assert used[0] is used[2]
    assert caller not in used
    assert 0 not in used[1].done
    of_ring.join()
    assert caller.done == {"packed", 0, 1, 2}
    again = Lanes(True, np.zeros(1))
    with again.next():
        assert Stream.current is used[0]


def test_streams_that_have_nothing_are_not_waited_for(caller):
    """Who captures a graph may not wait for a stream that is no part of it."""
    of_ring = Lanes(True, np.zeros(1))
    with of_ring.next():
        other = lanes._beside(0, caller.ptr)[1].stream
        other.done.add("of somebody else")
    of_ring.join()
    assert not caller.done
    host = Lanes(False, np.zeros(1))
    with host.next():
        assert Stream.current is caller
    host.join()


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("pieces", [1, 2])
def test_calls_of_a_ring_come_after_what_they_read(caller, size, pieces):
    """And nothing is written to where a call that may still run reads."""
    rank, own = 0, np.zeros(2 * pieces, np.uint8)
    begun, readers = [], []

    def attend(states, q, queries, held):
        done, source = Stream.current.done, int(held.codes[0])
        assert source == rank or ("arrived", source) in done
        done.add(held.order)
        begun.append(held.order)
        readers.append((held.codes, held.order))

    def send_receive(send, receive, to, source):
        done = Stream.current.done
        assert send[0] == rank or ("arrived", int(send[0])) in done
        for codes, order in readers:
            assert order in done or not np.shares_memory(codes, receive)
        receive[:] = came = (int(send[0]) - 1) % size
        return SimpleNamespace(wait=lambda: Stream.current.done.add(("arrived", came)))

    def seen(rows, keys, codes, step):
        return [Held((step, i), piece, codes[2 * i :][:2]) for i, piece in enumerate(keys)]

    call = SimpleNamespace(
        on_gpu=True,
        xp=np,
        sizes=lambda keys: [2] * len(keys),
        sees=lambda rows, keys: True,
        seen=seen,
        attend=attend,
    )
    group = SimpleNamespace(rank=rank, size=size, send_receive=send_receive)
    go_round(call, None, own, [()] * size, [[Run(0, 1, 8)] * pieces] * size, own, group)
    every = [(step, i) for step in range(size) for i in range(pieces)]
    assert sorted(begun) == every
    assert caller.done >= set(every)
    assert begun[0] == (0, 0)
    assert begun[-1] == ((0, 1) if pieces == 2 else (size - 1, 0))
