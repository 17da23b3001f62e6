"""One thread for the matrix products of the reference.

The library behind NumPy's products (OpenBLAS, MKL, BLIS) starts a thread for each core, even for
blocks as small as those of the emulation, and threads that are done wait for the others in busy
loops. Where another process wants a core, most of the time is spent waiting. With the cores to
itself, a second thread gains little: exponentials and rounding, in one thread, take the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["one_blas_thread"]


# Held in all calls of threadpoolctl, whose own lock a fork could else leave locked in the child.
# Whatever interrupts a call (a signal, a finalizer) may call again.
_lock = RLock()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS in one thread, then restore the caller's setting; also a decorator."""
    with _lock:
        of_process, of_thread = _libraries()
        of_process.enter()
        limit = of_thread.limit(limits=1)
    try:
        yield
    finally:
        with _lock:
            limit.restore_original_limits()
            of_process.leave()


class _OfProcess:
    """The same for libraries whose setting is one of the process.

    Calls of several threads, and nested ones, are counted: the first to come in remembers the
    setting, the last to leave restores it. Calls of other threads that are no business of ours run
    in one thread meanwhile, too.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._inside = 0
        self._limit: Any = None

    def enter(self) -> None:
        self._inside += 1
        if self._limit is None:
            self._limit = self._controller.limit(limits=1)
            self._let_others_set()

    def leave(self) -> None:
        self._inside -= 1
        # Below 0 is a call during which the process was forked.
        if self._inside <= 0:
            self._inside = 0
            self._limit.restore_original_limits()
            self._limit = None
            self._let_others_set()

    def forget_others(self) -> None:
        """In a forked process no thread is inside; the next one restores what they would have."""
        self._inside = 0

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


def _after_fork() -> None:
    if _libraries.cache_info().currsize:
        _libraries()[0].forget_others()
    _lock.release()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_after_fork
    )
