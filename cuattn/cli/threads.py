"""Threads of the library behind NumPy's matrix products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

__all__ = ["one_blas_thread"]


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep matrix products in one thread if threadpoolctl is installed.

    Those of the emulation are small, and threads of OpenBLAS wait for each other in busy loops:
    where other processes run, that takes ten times as long.
    """
    try:
        limits = import_module("threadpoolctl").threadpool_limits
    except ImportError:
        return nullcontext()
    return limits(1, user_api="blas")  # type: ignore[no-any-return]
