"""`Group`: what ranks do with each other, on top of one primitive that adapters implement."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..common.public import class_naming_keywords, naming_keywords
from ..errors import ArgumentError, RankTimeoutError
from .arrays import copy_bytes
from .side_stream import is_on_gpu

__all__ = ["Done", "Group", "Message", "Subgroup", "Transfer", "check_timeout", "nodes", "poll"]

# Bytes, a one-dimensional array of uint8 of NumPy or CuPy, and the rank they go to or come from.
Message = tuple[Any, int]

# Between two looks at something that is not there yet, in seconds: at first, and at most.
_FIRST_LOOK, _LAST_LOOK = 20e-6, 2e-3


class Transfer(Protocol):
    """Messages that are under way."""

    def wait(self) -> None:
        """Let what follows come after it: on a GPU the current stream waits, else the host."""


class Done:
    """A transfer that is over."""

    def wait(self) -> None:
        """Return at once."""


@class_naming_keywords
class Group(ABC):
    """Ranks that attend together.

    Messages are bytes: arrays of uint8 with one axis, of CuPy on a GPU and of NumPy in host memory.
    On a GPU they are ordered after what is enqueued on CuPy's current stream when they begin, and
    travel on a stream of their own.

    Parameters
    ----------
    rank, size : int
        Number of this process, and of how many.
    timeout : float
        Seconds that the host waits for other ranks, before `RankTimeoutError`.

    Attributes
    ----------
    rank, size, timeout
        As given.
    agreed : dict
        By what ranks have agreed on before, what each has of its own; see
        `cuattn.distributed.agreement`.
    """

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size = rank, size
        self.timeout = check_timeout(timeout)
        self.agreed: dict[bytes, list[Any]] = {}

    @abstractmethod
    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> Transfer:
        """Begin to send and to receive messages, to and from other ranks, all at once.

        Between two ranks messages arrive in the order in which they were sent. Arrays must stay as
        they are until the transfer has been waited for.
        """

    @abstractmethod
    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return what each rank has given, a few hundred bytes of host memory, by rank.

        Raises
        ------
        RankTimeoutError
            If a rank does not answer in time.
        """

    def send_receive(self, send: Any, receive: Any, to: int, source: int) -> Transfer:
        """Begin to send bytes to one rank and to receive some from another; either may be empty."""
        sends = [(send, to)] if send.size else []
        receives = [(receive, source)] if receive.size else []
        return self.exchange(sends, receives) if sends or receives else Done()

    def all_gather(self, send: Any, receive: Sequence[Any]) -> Transfer:
        """Begin to give all ranks the same bytes, and to receive those of each.

        Parameters
        ----------
        send : array of uint8
        receive : sequence of array of uint8
            By rank, each as long as what that rank sends.
        """
        return self.all_to_all([send] * self.size, receive)

    def all_gather_equal(self, send: Any, into: Any) -> Transfer:
        """Begin to give all ranks as many bytes, and to receive those of all, in their order.

        Parameters
        ----------
        send : array of uint8
            As long on every rank; a view of its place of `into`, or apart from it.
        into : array of uint8
            Of all ranks.
        """
        size = send.size
        places = [into[i * size : (i + 1) * size] for i in range(self.size)]
        if _address(send) == _address(places[self.rank]):
            places[self.rank] = send
        return self.all_gather(send, places)

    def all_to_all(self, send: Sequence[Any], receive: Sequence[Any]) -> Transfer:
        """Begin to give each rank bytes of its own, and to receive some from each, by rank."""
        if send[self.rank] is not receive[self.rank]:
            copy_bytes(send[self.rank], receive[self.rank])
        others = [(self.rank + n) % self.size for n in range(1, self.size)]
        sends = [(send[n], n) for n in others if send[n].size]
        receives = [(receive[n], n) for n in others if receive[n].size]
        return self.exchange(sends, receives) if sends or receives else Done()

    def barrier(self) -> None:
        """Wait until all ranks are here.

        Raises
        ------
        RankTimeoutError
            If one does not come in time.
        """
        self.gather_bytes(b"")

    def synchronize(self, timeout: float | None = None) -> None:
        """Wait until all that has been sent and received has arrived.

        Parameters
        ----------
        timeout : float, optional
            Seconds; by default those of the group.

        Raises
        ------
        RankTimeoutError
            If a rank does not answer in time.
        DistributedError
            If the transport reports an error.
        """
        return  # transports whose host waits anyway have nothing more to wait for

    def leave(self) -> None:
        """Close the group once all ranks are here and nothing is under way: how a program ends.

        What one rank keeps for all, such as rank 0 the store that ``torchrun`` tells them of, goes
        no sooner than the others have done without. So ends ``with group:``, unless by an error.

        Raises
        ------
        RankTimeoutError
            If a rank does not come in time.
        """
        self.synchronize()
        self.barrier()
        self.close()

    def close(self) -> None:
        """Give back what the transport holds, now; the group cannot be used any more."""
        return

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.leave()
        else:
            self.close()


class Subgroup(Group):
    """Some ranks of a group, of which all make the same calls on subgroups at the same time.

    Parameters
    ----------
    group : Group
    ranks : sequence of int
        Of the group, this one among them: those of the subgroup in its order.
    """

    def __init__(self, group: Group, ranks: Sequence[int]) -> None:
        super().__init__(list(ranks).index(group.rank), len(ranks), group.timeout)
        self._group, self._ranks = group, tuple(ranks)

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> Transfer:
        """See `Group.exchange`."""
        return self._group.exchange(
            [(x, self._ranks[to]) for x, to in sends],
            [(x, self._ranks[source]) for x, source in receives],
        )

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """See `Group.gather_bytes`."""
        every = self._group.gather_bytes(data)
        return [every[rank] for rank in self._ranks]

    def synchronize(self, timeout: float | None = None) -> None:
        """See `Group.synchronize`."""
        self._group.synchronize(timeout)


@naming_keywords
def nodes(group: Group, size: int) -> tuple[Group, Group]:
    """Return this rank's node, and the ranks with its number in all nodes, as `usp_attention` has.

    Parameters
    ----------
    group : Group
        Ranks of a node follow each other.
    size : int
        Ranks of a node.

    Returns
    -------
    inner, outer : Group
        All ranks of the group make the same calls on them at the same time.

    Raises
    ------
    ArgumentError
        If the ranks do not make whole nodes.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or group.size % size:
        raise ArgumentError("size", size, f"a divisor of the {group.size} ranks")
    node, number = divmod(group.rank, size)
    inner = Subgroup(group, range(node * size, (node + 1) * size))
    return inner, Subgroup(group, range(number, group.size, size))


def _address(x: Any) -> int:
    return int(x.data.ptr if is_on_gpu(x) else x.ctypes.data)


def check_timeout(timeout: float) -> float:
    """Return a number of seconds.

    Raises
    ------
    ArgumentError
        If it is none that one could wait for.
    """
    fits = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not fits or not 0 < timeout < float("inf"):
        raise ArgumentError("timeout", timeout, "a number of seconds above 0")
    return float(timeout)


def poll(is_done: Callable[[], bool], timeout: float, what: str) -> None:
    """Look again and again until something is done.

    Parameters
    ----------
    is_done : callable
    timeout : float
        Seconds.
    what : str
        What did not happen, for the message.

    Raises
    ------
    RankTimeoutError
        If it is not by then.
    """
    end = time.monotonic() + timeout
    pause = _FIRST_LOOK
    while not is_done():
        if time.monotonic() > end:
            raise RankTimeoutError(f"{what} within {timeout:g} s: is another rank dead?")
        time.sleep(pause)
        pause = min(2 * pause, _LAST_LOOK)
