"""NCCL through CuPy: one process for each GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..arrays.streams import is_capturing
from ..arrays.view import cupy_module
from ..common.public import class_naming_keywords
from ..errors import ArgumentError, DistributedError, UnsupportedError
from .group import Done, Group, Message, Transfer, poll
from .mailboxes import Mailboxes, opened
from .side_stream import OnStream, SideStream, is_on_gpu

__all__ = ["Control", "NCCLGroup", "nccl_module"]

# Bytes of a message of ranks that have nothing but NCCL to compare their arguments through.
_SMALL = 8192


class Control(Protocol):
    """How ranks of NCCL tell each other a few bytes of host memory: MPI's group, or a store's."""

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """See `Group.gather_bytes`."""

    def barrier(self) -> None:
        """See `Group.barrier`; a rank may end behind it."""


@class_naming_keywords
class NCCLGroup(Group):
    """Ranks that have a GPU each; the current one of CuPy, when it is made.

    Parameters
    ----------
    rank, size : int
    unique_id : bytes
        Of ``cupy.cuda.nccl.get_unique_id()`` on rank 0, which the others have been told.
    control : Control, optional
        What arguments are compared through. Without, through NCCL, for which the host waits until
        the messages of calls before have arrived.
    timeout : float
        As for `Group`. NCCL cannot be told to stop waiting: a GPU whose peer is dead goes on until
        this process closes the group or ends. `synchronize`, and calls with a timeout, notice.

    Attributes
    ----------
    mailboxes : Mailboxes or None
        What equal messages of a few kilobytes are gathered through, from the first one on: where
        all ranks are processes of one computer that can map each other's memory.

    Raises
    ------
    UnsupportedError
        If CuPy finds no NCCL.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        unique_id: bytes,
        *,
        control: Control | None = None,
        timeout: float = 300.0,
    ) -> None:
        super().__init__(rank, size, timeout)
        self._nccl = nccl_module()
        self._control = control
        self._device = cupy_module().cuda.runtime.getDevice()
        self._comm = self._nccl.NcclCommunicator(size, unique_id, rank)
        self._side = SideStream()
        self._last: Any = None
        self._kept: object = None
        self._asked = False
        self.mailboxes: Mailboxes | None = None

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> Transfer:
        """See `Group.exchange`."""
        if not sends and not receives:
            return Done()
        kind, stream = self._begun([x for x, _ in (*sends, *receives)])
        self._nccl.groupStart()
        try:
            for x, to in sends:
                self._comm.send(x.data.ptr, x.size, kind, to, stream)
            for x, source in receives:
                self._comm.recv(x.data.ptr, x.size, kind, source, stream)
        finally:
            self._nccl.groupEnd()
        return self._ended()

    def all_gather_equal(self, send: Any, into: Any) -> Transfer:
        """See `Group.all_gather_equal`: one operation of NCCL, or of short messages `Mailboxes`."""
        if not send.size:
            return Done()
        boxes = self._boxes_for(send.size) if is_on_gpu(send) else None
        kind, stream = self._begun([send, into])
        if boxes is not None:
            boxes.exchange(send, into, self._side.stream)
        else:
            self._comm.allGather(send.data.ptr, into.data.ptr, send.size, kind, stream)
        return self._ended()

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """See `Group.gather_bytes`."""
        if self._control is not None:
            return self._control.gather_bytes(data)
        cupy = cupy_module()
        if len(data) > _SMALL - 8:
            raise DistributedError(f"{len(data)} bytes of arguments are more than {_SMALL - 8}")
        own = np.zeros(_SMALL, np.uint8)
        own[:8] = np.frombuffer(np.int64(len(data)).tobytes(), np.uint8)
        own[8 : 8 + len(data)] = np.frombuffer(data, np.uint8)
        with self._side.stream:
            send, every = cupy.asarray(own), cupy.empty((self.size, _SMALL), np.uint8)
            kind = self._nccl.NCCL_UINT8
            self._comm.allGather(send.data.ptr, every.data.ptr, _SMALL, kind, self._side.stream.ptr)
            self._last = self._side.event()
            self.synchronize()
            found = every.get()
        sizes = found[:, :8].copy().view(np.int64)[:, 0]
        return [x[8 : 8 + size].tobytes() for x, size in zip(found, sizes, strict=True)]

    def synchronize(self, timeout: float | None = None) -> None:
        """See `Group.synchronize`."""
        event = self._last
        if event is None:
            return

        def is_done() -> bool:
            self._check_errors()
            return bool(event.done)

        seconds = self.timeout if timeout is None else timeout
        poll(is_done, seconds, "messages of NCCL have not arrived")

    def barrier(self) -> None:
        """See `Group.barrier`."""
        if self._control is None:
            super().barrier()
        else:
            self._control.barrier()

    def keep(self, x: object) -> None:
        """Let something live as long as the group."""
        self._kept = x

    def close(self) -> None:
        """End NCCL's part without waiting for other ranks."""
        if self.mailboxes is not None:
            self.mailboxes.close()
        self._comm.abort()

    def _boxes_for(self, nbytes: int) -> Mailboxes | None:
        """Return what takes messages of so many bytes, if they are short; the first opens it."""
        if not self._asked and Mailboxes.takes(nbytes):
            if is_capturing(cupy_module().cuda.get_current_stream().ptr):
                return None
            self._asked, self.mailboxes = True, opened(self)
        return self.mailboxes if Mailboxes.takes(nbytes) else None

    def _begun(self, arrays: Sequence[Any]) -> tuple[int, int]:
        """Check arrays, and return NCCL's name of bytes and the stream, which is ready for them."""
        if not all(is_on_gpu(x) for x in arrays):
            expected = "on a GPU, as the group is NCCL's; those of MPI and gloo take others"
            raise ArgumentError("q", "an array in host memory", expected)
        self._check_errors()
        self._side.follow()
        return self._nccl.NCCL_UINT8, self._side.stream.ptr

    def _ended(self) -> Transfer:
        event = self._side.event()
        if not is_capturing(self._side.stream.ptr):  # else nobody may ask whether it is over
            self._last = event
        return OnStream(event)

    def _check_errors(self) -> None:
        """Look for what NCCL has noticed since.

        Raises
        ------
        DistributedError
            If that is anything.
        """
        try:
            self._comm.check_async_error()
        except self._nccl.NcclError as error:
            raise DistributedError(f"NCCL: {error}; close the group") from error


def nccl_module() -> Any:
    """Return ``cupy.cuda.nccl``, having loaded the library that PyTorch brings if it must be.

    Raises
    ------
    UnsupportedError
        If there is none.
    """
    cupy_module()
    from cupy.cuda import nccl

    if getattr(nccl, "available", True):
        return nccl
    try:
        ctypes.CDLL(_library(), ctypes.RTLD_GLOBAL)
        from cupy_backends.cuda.libs import nccl as loaded
    except (ImportError, OSError) as error:
        raise UnsupportedError(
            f"CuPy finds no NCCL ({error}): install nvidia-nccl-cu12 or nvidia-nccl-cu13"
        ) from None
    return loaded


def _library() -> str:
    """Return where the wheel of NCCL has its library, or what the loader may know it as."""
    spec = find_spec("nvidia.nccl") if find_spec("nvidia") else None
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [path for folder in folders for path in Path(folder).glob("lib/libnccl.so*")]
    return str(found[0]) if found else "libnccl.so.2"
