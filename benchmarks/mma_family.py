"""The kernels of mma.sync on a GPU that has faster ones, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from cuattn.plan import kernels
from cuattn.plan.prepared import forget_plans

__all__ = ["mma_family"]


@contextmanager
def mma_family() -> Iterator[None]:
    """Let the kernels of mma.sync serve all calls."""
    with patch.object(kernels, "wgmma_serves", lambda target, scheme: False):
        _forget()
        yield
    _forget()


def _forget() -> None:
    kernels.attention_spec.cache_clear()
    forget_plans()
