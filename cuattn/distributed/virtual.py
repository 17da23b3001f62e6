"""Ranks that are threads of one process: the code of several processes, but for the transport.

One thread at a time runs on the host, until it waits for another one: nothing depends on how
threads are scheduled, and none of the package's state is used by two at once. On a GPU each rank
has a stream of its own.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, TypeVar

from ..arrays.caller import stream_at
from ..arrays.device import gpu_available
from ..arrays.view import cupy_module
from ..common.public import class_naming_keywords, naming_keywords
from ..errors import ArgumentError, DistributedError, RankTimeoutError
from .arrays import copy_bytes
from .group import Done, Group, Message, Transfer
from .side_stream import SideStream, is_on_gpu

__all__ = ["VirtualGroup", "run_virtual", "single"]

T = TypeVar("T")


@class_naming_keywords
class VirtualGroup(Group):
    """A rank of `run_virtual`; see `Group`.

    Parameters
    ----------
    rank : int
    hub : _Hub
        What all ranks share.
    timeout : float
    """

    def __init__(self, rank: int, hub: _Hub, timeout: float) -> None:
        super().__init__(rank, hub.size, timeout)
        self._hub = hub
        self._side: SideStream | None = None
        self._gathered = 0

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> _VirtualTransfer:
        """See `Group.exchange`; copies are enqueued when the transfer is waited for."""
        arrays = [x for x, _ in (*sends, *receives)]
        side = self._side_stream() if arrays and is_on_gpu(arrays[0]) else None
        letters = [_Letter(x, None if side is None else side.event()) for x, _ in sends]
        for letter, (_, to) in zip(letters, sends, strict=True):
            self._hub.boxes[self.rank, to].append(letter)
        self._hub.changed()
        return _VirtualTransfer(self, side, letters, receives)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """See `Group.gather_bytes`."""
        table = self._hub.tables.setdefault(self._gathered, {})
        table[self.rank] = data
        self._gathered += 1
        self._hub.changed()
        self.wait_for(lambda: len(table) == self.size, "not all ranks have called")
        self._hub.tables.pop(self._gathered - 2, None)  # which all have read
        return [table[rank] for rank in range(self.size)]

    def wait_for(self, is_done: Callable[[], bool], what: str) -> None:
        """Let other ranks run until something is done."""
        self._hub.wait_for(is_done, self.timeout, what)

    def letter_from(self, source: int) -> _Letter:
        """Return the next message from a rank, for which it waits."""
        box = self._hub.boxes[source, self.rank]
        self.wait_for(lambda: bool(box), f"rank {source} has sent nothing")
        return box.popleft()

    def _side_stream(self) -> SideStream:
        if self._side is None:
            self._side = SideStream()
        self._side.follow()
        return self._side


def single(timeout: float) -> Group:
    """Return a group of one rank, in the thread of the caller."""
    return SingleGroup(0, 1, timeout)


class SingleGroup(Group):
    """A rank without others."""

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> Transfer:
        """See `Group.exchange`; there is nobody."""
        return Done()

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """See `Group.gather_bytes`."""
        return [data]


class _Letter:
    """A message: the bytes, the event that they are ready at, and that at which they are copied."""

    def __init__(self, array: Any, ready: Any) -> None:
        self.array, self.ready = array, ready
        self.is_read = False
        self.copied: Any = None


class _VirtualTransfer:
    def __init__(
        self,
        group: VirtualGroup,
        side: SideStream | None,
        sent: Sequence[_Letter],
        receives: Sequence[Message],
    ) -> None:
        self._group, self._side, self._sent, self._receives = group, side, sent, receives

    def wait(self) -> None:
        """See `Transfer.wait`."""
        stream = nullcontext() if self._side is None else self._side.stream
        for array, source in self._receives:
            letter = self._group.letter_from(source)
            if letter.array.size != array.size:
                sizes = f"{letter.array.size} bytes where rank {self._group.rank} expects"
                raise DistributedError(f"rank {source} has sent {sizes} {array.size}")
            with stream:
                if self._side is not None:
                    self._side.stream.wait_event(letter.ready)
                copy_bytes(letter.array, array)
            letter.copied = None if self._side is None else self._side.event()
            letter.is_read = True
        self._group._hub.changed()
        self._group.wait_for(self._all_read, "a message has not been read")
        if self._side is not None:
            current = cupy_module().cuda.get_current_stream()
            current.wait_event(self._side.event())
            for letter in self._sent:
                current.wait_event(letter.copied)

    def _all_read(self) -> bool:
        return all(letter.is_read for letter in self._sent)


class _Hub:
    """What the ranks of one process share; a rank holds the lock while it runs."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.boxes: dict[tuple[int, int], deque[_Letter]] = {
            (one, other): deque() for one in range(size) for other in range(size)
        }
        self.tables: dict[int, dict[int, bytes]] = {}
        self.failed: BaseException | None = None
        self.waiting = 0
        self.running = size
        self._turn = threading.Condition()

    def __enter__(self) -> _Hub:
        self._turn.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._turn.release()

    def changed(self) -> None:
        """Have all ranks look whether what they wait for is there."""
        self._turn.notify_all()

    def wait_for(self, is_done: Callable[[], bool], timeout: float, what: str) -> None:
        """Let others run until something is done or a rank has failed."""
        if not self._turn.wait_for(lambda: is_done() or self.failed is not None, timeout):
            raise RankTimeoutError(f"{what} within {timeout:g} s: is another rank dead?")
        if not is_done():
            raise _OtherRankFailedError


class _OtherRankFailedError(DistributedError):
    """A rank stops because another one has raised, which is what the caller is told."""


@naming_keywords
def run_virtual(size: int, function: Callable[[Group], T], *, timeout: float = 300.0) -> list[T]:
    """Call a function once for each rank of a group in this process, and return all results.

    Parameters
    ----------
    size : int
        Ranks.
    function : callable
        Called as ``function(group)`` in a thread of its own for each rank. On a computer with a GPU
        its current streams of CuPy and PyTorch are the rank's own, which come after the caller's,
        and the caller's after them.
    timeout : float
        Of the group; ranks wait for each other while they run one after the other.

    Returns
    -------
    list
        By rank.

    Raises
    ------
    ArgumentError
        If there is no such group.
    Exception
        Whatever the first rank raised that did; the others end.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ArgumentError("size", size, "a number of ranks, at least 1")
    hub = _Hub(size)
    groups = [VirtualGroup(rank, hub, timeout) for rank in range(size)]
    results: dict[int, T] = {}
    streams = _Streams(size) if gpu_available() else None

    def work(group: VirtualGroup) -> None:
        with hub, ExitStack() as stack:
            try:
                if streams is not None:
                    stack.enter_context(streams.of(group.rank))
                results[group.rank] = function(group)
            except _OtherRankFailedError:
                pass
            except BaseException as error:  # raised in the thread of the caller
                hub.failed = hub.failed or error
            finally:
                hub.changed()

    threads = [threading.Thread(target=work, args=(group,), daemon=True) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if hub.failed is not None:
        raise hub.failed
    if streams is not None:
        streams.join()
    return [results[rank] for rank in range(size)]


# Of each GPU, by rank.
_of_ranks: dict[int, list[Any]] = {}


class _Streams:
    """Streams of ranks on the current GPU, after the caller's and before what it does next."""

    def __init__(self, size: int) -> None:
        cuda = cupy_module().cuda
        self._cuda, self._device = cuda, cuda.runtime.getDevice()
        # The same ones each time: CuPy keeps the memory of a stream for its next allocations.
        known = _of_ranks.setdefault(self._device, [])
        known += [cuda.Stream(non_blocking=True) for _ in range(size - len(known))]
        self._streams = known[:size]
        self._callers = [cuda.get_current_stream()]
        torch: Any = sys.modules.get("torch")
        self._torch = torch if torch is not None and torch.cuda.is_available() else None
        if self._torch is not None:
            address = self._torch.cuda.current_stream(self._device).cuda_stream
            self._callers.append(stream_at(address))
        for caller in self._callers:
            event = caller.record()
            for stream in self._streams:
                stream.wait_event(event)

    def of(self, rank: int) -> AbstractContextManager[Any]:
        """Make a rank's stream the current one of CuPy and PyTorch."""
        stack = ExitStack()
        stack.enter_context(self._cuda.Device(self._device))
        stack.enter_context(self._streams[rank])
        if self._torch is not None:
            own = self._torch.cuda.ExternalStream(self._streams[rank].ptr, self._device)
            stack.enter_context(self._torch.cuda.stream(own))
        return stack

    def join(self) -> None:
        """Let the caller's streams come after those of all ranks."""
        for stream in self._streams:
            event = stream.record()
            for caller in self._callers:
                caller.wait_event(event)
