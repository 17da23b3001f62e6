"""Short messages between two ranks that are streams of one GPU."""

import time

import numpy as np
import pytest

from cuattn.distributed.mailboxes import Mailboxes

pytestmark = pytest.mark.gpu


@pytest.fixture
def ranks(cupy):
    """Mailboxes of two ranks, and the stream of each."""
    memory = [cupy.zeros(Mailboxes.nbytes(2), cupy.uint8) for _ in range(2)]
    boxes = [Mailboxes(rank, [x.data.ptr for x in memory]) for rank in range(2)]
    for one in boxes:
        one._prepared(8448)  # a kernel that is loaded while another one waits would wait for it
    yield [(one, cupy.cuda.Stream(non_blocking=True)) for one in boxes]
    for one in boxes:
        one.close()
    cupy.cuda.Device().synchronize()
    del memory


@pytest.mark.parametrize("is_captured", [False, True])
def test_messages_arrive(cupy, rng, ranks, is_captured):
    size = 8448
    messages = [cupy.asarray(rng.integers(0, 256, size, np.uint8)) for _ in ranks]
    results = [cupy.zeros(2 * size, cupy.uint8) for _ in ranks]
    cupy.cuda.Device().synchronize()
    graphs = []
    for (boxes, stream), send, into in zip(ranks, messages, results, strict=True):
        if is_captured:
            stream.begin_capture()
            for _ in range(5):
                boxes.exchange(send, into, stream)
            graphs.append(stream.end_capture())
            graphs[-1].upload(stream)
            stream.synchronize()
    for number in range(20):
        for x in messages:
            x += np.uint8(number)
        cupy.cuda.Device().synchronize()
        for rank, (boxes, stream) in enumerate(ranks):
            if is_captured:
                graphs[rank].launch(stream)
            else:
                boxes.exchange(messages[rank], results[rank], stream)
        for _, stream in ranks:
            stream.synchronize()
        wanted = np.concatenate([x.get() for x in messages])
        for into in results:
            np.testing.assert_array_equal(into.get(), wanted)


def test_who_waits_for_nobody_can_be_told_to_stop(cupy, ranks):
    boxes, stream = ranks[0]
    send, into = cupy.zeros(8448, cupy.uint8), cupy.zeros(2 * 8448, cupy.uint8)
    cupy.cuda.Device().synchronize()
    boxes.exchange(send, into, stream)
    event = cupy.cuda.Event(disable_timing=True)
    event.record(stream)
    time.sleep(0.05)
    assert not event.done
    boxes.close()
    stream.synchronize()
