"""`StoreControl`: a few bytes between ranks through a store that one of them may have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..errors import CuattnError, DistributedError
from .group import poll

__all__ = ["StoreControl"]


class StoreControl:
    """A few bytes of host memory through a store of ``torch.distributed``, such as torchrun's.

    Parameters
    ----------
    store : torch.distributed.Store
    rank, size : int
    timeout : float
        Seconds.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self._store, self._rank, self._size, self._timeout = store, rank, size, timeout
        self._calls = 0

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """See `Group.gather_bytes`."""
        call, self._calls = self._calls, self._calls + 1
        keys = [f"{call}/{rank}" for rank in range(self._size)]
        with _of_store():
            self._store.set(keys[self._rank], data or b"\0")
            poll(partial(self._store.check, keys), self._timeout, "not all ranks have called")
            found = [bytes(self._store.get(key)) for key in keys]
            if call > 1:  # all have read what came two calls before
                self._store.delete_key(f"{call - 2}/{self._rank}")
        return found

    def barrier(self) -> None:
        """See `Group.barrier`. Rank 0, who may have the store, is the last to know."""
        self.gather_bytes(b"")
        call, self._calls = self._calls, self._calls + 1
        keys = [f"{call}/{rank}" for rank in range(1, self._size)]
        with _of_store():
            if self._rank:
                self._store.set(f"{call}/{self._rank}", b"\0")  # its last question is answered
            elif keys:
                poll(
                    lambda: bool(self._store.check(keys)), self._timeout, "not all ranks have read"
                )


@contextmanager
def _of_store() -> Iterator[None]:
    """Raise what goes wrong with a store as an error of ours."""
    try:
        yield
    except CuattnError:
        raise
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise DistributedError(
            f"the store that ranks share is gone: is rank 0? ({first})"
        ) from error
