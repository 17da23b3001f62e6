"""Ranks of MPI, through mpi4py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..common.public import class_naming_keywords
from ..errors import UnsupportedError
from .group import Group, Message, Transfer, poll
from .staging import StagedTransfer, Staging

__all__ = ["MPIGroup", "mpi_module"]

_TAG = 8


@class_naming_keywords
class MPIGroup(Group):
    """Ranks of an MPI communicator; arrays of a GPU go through host memory.

    Several processes may so share a GPU. Between GPUs of one process each, `NCCLGroup` is the fast
    way.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        A duplicate of it is used; by default of all processes.
    timeout : float
        As for `Group`. MPI itself may end all processes where one dies.

    Raises
    ------
    UnsupportedError
        If mpi4py is missing.
    """

    def __init__(self, comm: Any = None, *, timeout: float = 300.0) -> None:
        self._mpi = mpi_module()
        self._comm = (self._mpi.COMM_WORLD if comm is None else comm).Dup()
        super().__init__(self._comm.Get_rank(), self._comm.Get_size(), timeout)
        self._staging = Staging()

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> Transfer:
        """See `Group.exchange`."""
        received = self._staging.received_in(receives)
        fetched = self._staging.fetched(sends)
        requests = [self._comm.Irecv(self._of_bytes(x), source, _TAG) for x, source in received]
        requests += [self._comm.Isend(self._of_bytes(x), to, _TAG) for x, to in fetched]
        under_way = _Requests(self._mpi, requests, [*fetched, *received], self)
        return StagedTransfer(under_way, self._staging, received, receives)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """See `Group.gather_bytes`."""
        sizes = np.zeros(self.size, np.int64)
        self._done(self._comm.Iallgather(np.array([len(data)], np.int64), sizes))
        every = np.empty(int(sizes.sum()), np.uint8)
        starts = np.cumsum(sizes) - sizes
        own = np.frombuffer(data, np.uint8)
        into = [every, (sizes.tolist(), starts.tolist()), self._mpi.BYTE]
        self._done(self._comm.Iallgatherv([own, self._mpi.BYTE], into))
        pairs = zip(starts, sizes, strict=True)
        return [every[start : start + size].tobytes() for start, size in pairs]

    def close(self) -> None:
        """Free the communicator, which all ranks do."""
        self._comm.Free()

    def _done(self, request: Any) -> None:
        poll(request.Test, self.timeout, "not all ranks have called")

    def _of_bytes(self, x: Any) -> list[Any]:
        return [x, self._mpi.BYTE]


class _Requests:
    def __init__(self, mpi: Any, requests: list[Any], kept: list[Any], group: MPIGroup) -> None:
        self._mpi, self._requests, self._kept, self._group = mpi, requests, kept, group

    def wait(self) -> None:
        """See `Transfer.wait`."""
        poll(self._all_done, self._group.timeout, "messages have not arrived")
        self._kept.clear()

    def _all_done(self) -> bool:
        return bool(self._mpi.Request.Testall(self._requests))


def mpi_module() -> Any:
    """Return mpi4py's module MPI, which starts MPI if it is not.

    Raises
    ------
    UnsupportedError
        If it is missing.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UnsupportedError(f"no MPI: install mpi4py and mpich or openmpi ({error})") from None
    return MPI
