"""One thread for the matrix products of the reference.

The library behind NumPy's products (OpenBLAS, MKL, BLIS) starts a thread for each core, even for
blocks as small as those of the emulation, and threads that are done wait for the others in busy
loops. Where another process wants a core, most of the time is spent waiting. With the cores to
itself, a second thread gains little: exponentials and rounding, in one thread, take the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["one_blas_thread"]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS in one thread, then restore the caller's setting; also a decorator."""
    of_process, of_thread = _libraries()
    with of_process, of_thread.limit(limits=1):
        yield


class _OfProcess:
    """The same for libraries whose setting is one of the process.

    Calls of several threads, and nested ones, are counted: the first to come in remembers the
    setting, the last to leave restores it. Calls of other threads that are no business of ours run
    in one thread meanwhile, too.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._lock = Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit = self._controller.limit(limits=1)
                self._let_others_set()
            self._inside += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()
                self._let_others_set()

    def _let_others_set(self) -> None:
        """Give up what threadpoolctl 3.8 reserves for a thread that has set a limit: to set more.

        The thread that leaves last is to restore what the first has set. A context gives it up at
        its end.
        """
        with self._controller.limit():
            pass


@cache
def _libraries() -> tuple[_OfProcess, Any]:
    """Return the BLAS libraries whose setting is one of the process, and those of the thread.

    NumPy has loaded its own by the first call. The search goes through all libraries of the
    process, which takes about a millisecond; setting a limit takes microseconds.
    """
    blas = ThreadpoolController().select(user_api="blas")
    shared = [
        library["filepath"]
        for library in blas.info()
        if library["internal_api"] in ("openblas", "blis")
        and library["threading_layer"] != "openmp"
    ]
    others = [x["filepath"] for x in blas.info() if x["filepath"] not in shared]
    return _OfProcess(blas.select(filepath=shared)), blas.select(filepath=others)
