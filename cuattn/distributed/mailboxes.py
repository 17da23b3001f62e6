"""Memory of each rank that the others write to: a way of short messages, without NCCL."""

from __future__ import annotations

import ctypes
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from ..arrays.device import current_device
from ..arrays.view import cupy_module
from ..common.sizes import round_up
from ..compile.chain import Chain
from ..compile.launch import Buffers, Launch
from ..specs.kernel_spec import KernelSpec
from .arrays import copy_bytes
from .group import Group

__all__ = ["MailboxSpec", "Mailboxes", "opened"]

# Bytes of a message. Of longer ones NCCL's bandwidth counts for more than its latency.
_MOST_BYTES = 32768
# Words are written two at a time, of 4 bytes each.
_GRANULE = 8

# Of memory that other processes map: less may have neighbours, which would be mapped as well.
_PAGE = 2 * 2**20

# Lengths of messages whose launches are kept.
_REMEMBERED = 64

# What another process has mapped must not be given back before that process does so, which nobody
# knows of one that has failed: it stays, and so does what is mapped here.
_shared: list[Any] = []


@dataclass(frozen=True)
class MailboxSpec(KernelSpec):
    """Template argument of `exchange`: a few kilobytes of every rank become known to all.

    It mirrors the struct of kernels_cu/mailboxes.cu.
    """

    derived: ClassVar[tuple[str, ...]] = ("ranks", "num_threads", "min_ctas", "smem_bytes")
    source: ClassVar[str] = "mailboxes.cu"
    entry: ClassVar[str] = "exchange"
    function: ClassVar[str] = "exchange"
    params: ClassVar[str] = "MailboxParams"
    params_file: ClassVar[str] = "mailboxes.cu"
    ranks: ClassVar[int] = 16
    # One CTA: threads have two words at a time, which are all of a usual step of decoding.
    num_threads: ClassVar[int] = 1024
    min_ctas: ClassVar[int] = 1
    smem_bytes: ClassVar[int] = 0


class Mailboxes:
    """Exchanges of short messages between GPUs that reach each other's memory.

    All ranks make the same ones, one after the other.

    Parameters
    ----------
    rank : int
    boxes : sequence of int
        Addresses, by rank, of memory of `nbytes` that is zeros at first.
    """

    def __init__(self, rank: int, boxes: Sequence[int]) -> None:
        cupy = cupy_module()
        self._rank, self._boxes = rank, tuple(boxes)
        self._exchanges = cupy.zeros(1, "uint32")
        cupy.cuda.get_current_stream().synchronize()  # others are used from now on
        # Kernels that wait look at it, like NCCL's, which nobody can stop otherwise.
        self._closed = cupy.cuda.alloc_pinned_memory(4)
        _flag(self._closed.ptr).value = 0
        self._prepared = lru_cache(_REMEMBERED)(self._prepare)

    @staticmethod
    def nbytes(ranks: int) -> int:
        """Return the bytes of memory of a rank: each word of 4 takes 8, in two mailboxes."""
        return round_up(2 * ranks * 2 * _MOST_BYTES, _PAGE)

    @staticmethod
    def takes(nbytes: int) -> bool:
        """Say whether messages of so many bytes are short enough."""
        return 0 < nbytes <= _MOST_BYTES and nbytes % _GRANULE == 0

    def exchange(self, send: Any, into: Any, stream: Any) -> None:
        """Enqueue an all-gather of equal messages.

        Parameters
        ----------
        send, into : array of uint8
            As for `Group.all_gather_equal`; `into` is memory of ours.
        stream : cupy.cuda.Stream
        """
        if send.data.ptr % _GRANULE:
            own = into[self._rank * send.size : (self._rank + 1) * send.size]
            with stream:
                copy_bytes(send, own)
            send = own
        given = send.data.ptr, into.data.ptr, self._exchanges.data.ptr, self._closed.ptr
        self._prepared(send.size)((*given, *self._boxes), stream.ptr)

    def close(self) -> None:
        """Let nobody on this GPU wait any more."""
        _flag(self._closed.ptr).value = 1

    def _prepare(self, nbytes: int) -> Chain:
        ranks = range(len(self._boxes))
        buffers = Buffers("own", "every", "exchanges", "closed", *map(str, ranks))
        values = {
            "memory": [{"boxes": buffers[str(rank)]} for rank in ranks],
            **{name: buffers[name] for name in ("own", "every", "exchanges", "closed")},
            "rank": self._rank,
            "ranks": len(self._boxes),
            "words": nbytes // 4,
            "capacity": _MOST_BYTES // 4,
        }
        return Chain([Launch(MailboxSpec(), current_device(), (1,), values)], buffers)


def opened(group: Group) -> Mailboxes | None:
    """Let all ranks of a group map each other's memory; None, on all, if one of them cannot.

    They are processes of one computer, each with a GPU of its own, which is the current one; the
    host waits until all are here.

    Parameters
    ----------
    group : Group
    """
    cuda = cupy_module().cuda
    runtime, nbytes = cuda.runtime, Mailboxes.nbytes(group.size)
    said: dict[str, Any] = {"computer": platform.node(), "handle": None}
    own = 0
    try:
        memory = cuda.Memory(nbytes)
        own = memory.ptr
        runtime.memset(own, 0, nbytes)
        runtime.deviceSynchronize()
        said["handle"] = runtime.ipcGetMemHandle(own).hex()
        _shared.append(memory)
    except (runtime.CUDARuntimeError, cuda.memory.OutOfMemoryError):
        pass  # which the others are told by what is missing
    every = [json.loads(x) for x in group.gather_bytes(json.dumps(said).encode())]
    boxes = []
    if group.size <= MailboxSpec.ranks and len({x["computer"] for x in every}) == 1:
        boxes = _mapped(group.rank, own, [x["handle"] for x in every])
    agreed = group.gather_bytes(b"mapped" if boxes else b"not mapped")
    return Mailboxes(group.rank, boxes) if set(agreed) == {b"mapped"} else None


def _mapped(rank: int, own: int, handles: Sequence[str | None]) -> list[int]:
    """Return where the memory of each rank is seen here; nothing if that of one is not."""
    runtime = cupy_module().cuda.runtime
    found = []
    for number, handle in enumerate(handles):
        if handle is None:
            return []
        if number == rank:
            found.append(own)
            continue
        try:
            found.append(runtime.ipcOpenMemHandle(bytes.fromhex(handle)))
        except runtime.CUDARuntimeError:
            return []
    return found


def _flag(address: int) -> ctypes.c_uint32:
    return ctypes.c_uint32.from_address(address)
