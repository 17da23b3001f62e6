"""Process groups of PyTorch: NCCL, or gloo in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np

from ..common.public import class_naming_keywords
from ..errors import ArgumentError, DistributedError, RankTimeoutError
from .group import Group, Message, Transfer, poll
from .side_stream import OnStream, SideStream, is_on_gpu
from .staging import StagedTransfer, Staging

__all__ = ["TorchGroup"]


@class_naming_keywords
class TorchGroup(Group):
    """Ranks of a process group of ``torch.distributed``.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup, optional
        By default the one of all processes. Of gloo, arrays of a GPU go through host memory. Of
        NCCL, ranks compare their arguments through a group of gloo that is made of the same ranks.
    timeout : float
        As for `Group`.

    Raises
    ------
    ArgumentError
        If ``torch.distributed`` has not been initialized.
    """

    def __init__(self, process_group: Any = None, *, timeout: float = 300.0) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            expected = "one that there is: call torch.distributed.init_process_group before"
            raise ArgumentError("process_group", process_group, expected)
        self._dist = dist
        self._group = dist.group.WORLD if process_group is None else process_group
        super().__init__(dist.get_rank(self._group), dist.get_world_size(self._group), timeout)
        self._ranks = dist.get_process_group_ranks(self._group)
        self._is_nccl = "nccl" in str(dist.get_backend(self._group))
        self._small = self._group
        if self._is_nccl:
            self._small = dist.new_group(
                self._ranks, backend="gloo", use_local_synchronization=True
            )
        self._staging = Staging()
        self._side: SideStream | None = None

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> Transfer:
        """See `Group.exchange`."""
        if self._is_nccl:
            if not all(is_on_gpu(x) for x, _ in (*sends, *receives)):
                expected = "on a GPU, as the process group's backend is NCCL; gloo takes others"
                raise ArgumentError("q", "an array in host memory", expected)
            return self._exchange_on_gpu(sends, receives)
        import torch

        received, fetched = self._staging.received_in(receives), self._staging.fetched(sends)
        under_way = _Works(self._begun(fetched, received, torch.from_numpy), self.timeout)
        return StagedTransfer(under_way, self._staging, received, receives)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """See `Group.gather_bytes`."""
        sizes = [int(x[0]) for x in self._gathered(np.array([len(data)], np.int64))]
        own = np.zeros(max(sizes), np.uint8)
        own[: len(data)] = np.frombuffer(data, np.uint8)
        every = self._gathered(own) if len(own) else [own] * self.size
        return [x[:size].tobytes() for x, size in zip(every, sizes, strict=True)]

    def synchronize(self, timeout: float | None = None) -> None:
        """See `Group.synchronize`."""
        if self._side is not None:
            event = self._side.event()
            seconds = self.timeout if timeout is None else timeout
            poll(lambda: bool(event.done), seconds, "messages have not arrived")

    def _gathered(self, own: Any) -> list[Any]:
        import torch

        every = [np.empty_like(own) for _ in range(self.size)]
        tensors = [torch.from_numpy(x) for x in every]
        with _errors(self.timeout):
            work = self._dist.all_gather(
                tensors, torch.from_numpy(own), group=self._small, async_op=True
            )
            work.wait(timedelta(seconds=self.timeout))
        return every

    def _exchange_on_gpu(self, sends: Sequence[Message], receives: Sequence[Message]) -> Transfer:
        import torch

        if self._side is None:
            self._side = SideStream()
        side = self._side
        side.follow()
        with side.stream, torch.cuda.stream(torch.cuda.ExternalStream(side.stream.ptr)):
            works = self._begun(sends, receives, torch.from_dlpack)
            with _errors(self.timeout):
                for work in works:
                    work.wait()  # lets the stream wait, not the host
        return OnStream(side.event())

    def _begun(
        self,
        sends: Sequence[Message],
        receives: Sequence[Message],
        tensor: Callable[[Any], Any],
    ) -> list[Any]:
        dist = self._dist
        both = [(dist.isend, x, to) for x, to in sends] + [
            (dist.irecv, x, to) for x, to in receives
        ]
        operations = [
            dist.P2POp(how, tensor(x), self._ranks[peer], self._group) for how, x, peer in both
        ]
        with _errors(self.timeout):
            return list(dist.batch_isend_irecv(operations)) if operations else []


class _Works:
    def __init__(self, works: list[Any], timeout: float) -> None:
        self._works, self._timeout = works, timeout

    def wait(self) -> None:
        """See `Transfer.wait`."""
        with _errors(self._timeout):
            for work in self._works:
                work.wait(timedelta(seconds=self._timeout))


@contextmanager
def _errors(timeout: float) -> Iterator[None]:
    """Raise errors of PyTorch's as ours."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            message = f"messages have not arrived within {timeout:g} s: is another rank dead?"
            raise RankTimeoutError(f"{message} ({first})") from error
        raise DistributedError(f"torch.distributed: {first}") from error
