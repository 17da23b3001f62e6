"""Arrays of a GPU on their way through host memory, for transports that know only that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .group import Message, Transfer
from .side_stream import SideStream, is_on_gpu

__all__ = ["StagedTransfer", "Staging"]

HostMessage = tuple[NDArray[np.uint8], int]


class Staging:
    """Copies to and from the host, on a stream of their own; nothing if arrays are there already.

    The host waits for them. It is meant for several processes that share a GPU, which NCCL refuses,
    and for computers whose GPUs have no other way to each other.
    """

    def __init__(self) -> None:
        self._side: SideStream | None = None

    def fetched(self, sends: Sequence[Message]) -> list[HostMessage]:
        """Return messages that are to be sent, in host memory."""
        if not any(is_on_gpu(x) for x, _ in sends):
            return [(np.ascontiguousarray(x), rank) for x, rank in sends]
        side = self._stream()
        side.follow()
        with side.stream:
            return [(x.get(), rank) for x, rank in sends]

    def received_in(self, receives: Sequence[Message]) -> list[HostMessage]:
        """Return where messages are to be received, in host memory."""
        return [(np.empty(x.size, np.uint8) if is_on_gpu(x) else x, rank) for x, rank in receives]

    def deliver(self, received: Sequence[HostMessage], receives: Sequence[Message]) -> None:
        """Copy what has come to where it was wanted."""
        pairs = [(x, to) for (x, _), (to, _) in zip(received, receives, strict=True) if x is not to]
        if not pairs:
            return
        side = self._stream()
        side.follow()
        with side.stream:
            for x, to in pairs:
                to.set(x)
        side.stream.synchronize()

    def _stream(self) -> SideStream:
        if self._side is None:
            self._side = SideStream()
        return self._side


class StagedTransfer:
    """A transfer through host memory.

    Parameters
    ----------
    under_way : Transfer
        Of the host's arrays.
    staging : Staging
    received : sequence of HostMessage
        Where they come to.
    receives : sequence of Message
        Where they are wanted.
    """

    def __init__(
        self,
        under_way: Transfer,
        staging: Staging,
        received: Sequence[HostMessage],
        receives: Sequence[Message],
    ) -> None:
        self._under_way, self._staging = under_way, staging
        self._received, self._receives = received, receives

    def wait(self) -> None:
        """See `Transfer.wait`; the host waits."""
        self._under_way.wait()
        self._staging.deliver(self._received, self._receives)
