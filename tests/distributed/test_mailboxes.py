"""Short messages through memory that ranks write to: words come in any order, at any time."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from cuattn.compile.params import record
from cuattn.compile.sources import sources
from cuattn.distributed import mailboxes, run_virtual
from cuattn.distributed.mailboxes import Mailboxes, MailboxSpec, opened

pytest.importorskip("cupy")
import cupy
from helpers.compile_check import complaints
from helpers.spec_structs import begins_with_its_fields
from simulated_gpu import GPU, SimulatedGPU
from simulated_gpu.gpu import KERNELS
from simulated_gpu.memory import compact


def test_struct_and_spec_agree():
    spec = MailboxSpec()
    begins_with_its_fields(spec, spec.params_file)
    assert record(spec.params, spec.params_file).itemsize % 8 == 0
    assert f"memory[{spec.ranks}]" in sources()[spec.source]
    assert re.search(rf"\b{spec.function}\(const {spec.params}& ", sources()[spec.source])


@pytest.mark.parametrize("arch", ["80", "90a"])
def test_words_are_read_as_other_gpus_have_left_them(arch):
    """Two words of 8 bytes at a time, each as a whole, and from no cache of this GPU's cores."""
    wanted = {"require": ("LDG.E.128.STRONG.SYS", "STG.E.128.STRONG.SYS"), "max_registers": 64}
    assert complaints([MailboxSpec()], arch, lambda spec: wanted) == ""


class Bytes:
    """An array of bytes as CuPy has it, in host memory."""

    def __init__(self, array):
        self.array, self.size = array, array.size
        self.data = SimpleNamespace(ptr=array.ctypes.data)


def exchange(values, spec, grid):
    """The kernel, thread by thread and word by word, of which any may come next."""
    assert grid == (1,)
    rank, ranks, words, capacity = (
        int(values[name]) for name in ("rank", "ranks", "words", "capacity")
    )
    assert words % 2 == 0
    assert 0 < words <= capacity
    counter = compact(values["exchanges"], (1,), "<u4")
    number = counter[0] + np.uint32(1)
    own = compact(values["own"], (words,), "<u4")
    every = compact(values["every"], (ranks, words), "<u4")
    boxes = [compact(x["boxes"], (2, ranks, capacity), "<u8") for x in values["memory"][:ranks]]
    half = int(number) % 2

    def send(i):
        for n in range(1, ranks):
            boxes[(rank + n) % ranks][half, rank, i] = int(number) << 32 | int(own[i])
            yield
        every[rank, i] = own[i]

    def receive(i):
        for n in range(1, ranks):
            sender = (rank + n) % ranks
            while int(boxes[rank][half, sender, i]) >> 32 != number:
                yield
            every[sender, i] = int(boxes[rank][half, sender, i]) & 0xFFFFFFFF
            yield

    def thread(i):
        yield from send(i)
        yield from receive(i)

    threads = [thread(i) for i in range(words)]

    def step(rng):
        """Go on with a thread, and say whether the kernel goes on."""
        if threads:
            one = int(rng.integers(len(threads)))
            if next(threads[one], StopIteration) is StopIteration:
                del threads[one]
            return True
        counter[0] = number
        return False

    return step


@pytest.mark.parametrize("ranks", [2, 3])
def test_messages_arrive_whatever_comes_first(monkeypatch, rng, ranks):
    """A rank may be one exchange ahead of another one, and words overtake each other."""
    SimulatedGPU(monkeypatch)
    begun = []
    monkeypatch.setitem(KERNELS, "exchange", lambda *given: begun.append(exchange(*given)))
    monkeypatch.setattr(mailboxes, "current_device", lambda: GPU)
    monkeypatch.setattr(mailboxes, "cupy_module", lambda: NUMPY)
    memory = [np.zeros(Mailboxes.nbytes(ranks) // 8, np.uint64) for _ in range(ranks)]
    of_ranks = [Mailboxes(rank, [x.ctypes.data for x in memory]) for rank in range(ranks)]
    sizes = [16, 8, 24, 24, 8, 16]
    messages = rng.integers(0, 256, (len(sizes), ranks, max(sizes)), np.uint8)
    results = [np.zeros((len(sizes), ranks * max(sizes)), np.uint8) for _ in range(ranks)]
    queues, sent = [], []
    for rank, boxes in enumerate(of_ranks):
        for number, size in enumerate(sizes):
            send = Bytes(np.array(messages[number, rank, :size]))
            into = Bytes(results[rank][number, : ranks * size])
            queues.append((rank, boxes, send, into))
            sent.append(send)  # lives on
    running, stream = {}, SimpleNamespace(ptr=0)
    while queues or running:
        rank = int(rng.integers(ranks))
        if rank not in running:
            mine = [x for x in queues if x[0] == rank]
            if not mine:
                continue
            queues.remove(mine[0])
            mine[0][1].exchange(*mine[0][2:], stream)
            running[rank] = begun.pop()
        if not running[rank](rng):
            del running[rank]
    for number, size in enumerate(sizes):
        wanted = messages[number, :, :size].reshape(-1)
        for of_rank in results:
            np.testing.assert_array_equal(of_rank[number, : ranks * size], wanted)


def test_messages_that_are_taken():
    taken = [n for n in (0, 4, 8, 12, 8448, 32768, 32776) if Mailboxes.takes(n)]
    assert taken == [8, 8448, 32768]
    assert Mailboxes.nbytes(2) == 2**21
    assert Mailboxes.nbytes(16) == 2**21


class Pinned:
    def __init__(self, nbytes):
        self._array = np.full(nbytes, 0xFF, np.uint8)
        self.ptr = self._array.ctypes.data


NUMPY = SimpleNamespace(
    zeros=lambda *given: Bytes(np.zeros(*given)),
    cuda=SimpleNamespace(
        alloc_pinned_memory=Pinned,
        get_current_stream=lambda: SimpleNamespace(synchronize=lambda: None),
    ),
)


@pytest.mark.parametrize("wrong", [None, "no memory", "not mapped", "elsewhere"])
def test_all_ranks_have_mailboxes_or_none(monkeypatch, wrong):
    """Of two ranks the second lacks something."""

    def work(group):
        failing = wrong if group.rank == 1 else None

        def failed(*given):
            raise cupy.cuda.runtime.CUDARuntimeError(1)

        runtime = SimpleNamespace(
            CUDARuntimeError=cupy.cuda.runtime.CUDARuntimeError,
            memset=lambda *given: None,
            deviceSynchronize=lambda: None,
            ipcGetMemHandle=lambda ptr: failed() if failing == "no memory" else bytes([ptr]) * 64,
            ipcOpenMemHandle=lambda x: failed() if failing == "not mapped" else 1000 + x[0],
        )
        cuda = SimpleNamespace(
            **vars(NUMPY.cuda),
            runtime=runtime,
            memory=cupy.cuda.memory,
            Memory=lambda nbytes: SimpleNamespace(ptr=10 + group.rank),
        )
        names = ["here", "there" if wrong == "elsewhere" else "here"]
        monkeypatch.setattr(mailboxes, "cupy_module", lambda: fakes[group.rank])
        fakes[group.rank] = SimpleNamespace(zeros=NUMPY.zeros, cuda=cuda)
        gather = group.gather_bytes

        def gather_bytes(data):
            found = gather(data)
            # Ranks are threads, of which another one has run meanwhile.
            monkeypatch.setattr(mailboxes, "cupy_module", lambda: fakes[group.rank])
            return found

        group.gather_bytes = gather_bytes
        monkeypatch.setattr(mailboxes.platform, "node", lambda: names[group.rank])
        return opened(group)

    fakes = {}
    found = run_virtual(2, work)
    if wrong is not None:
        assert found == [None, None]
        return
    assert [x._boxes for x in found] == [(10, 1011), (1010, 11)]
    for boxes in found:
        assert mailboxes._flag(boxes._closed.ptr).value == 0
        boxes.close()
        assert mailboxes._flag(boxes._closed.ptr).value == 1
