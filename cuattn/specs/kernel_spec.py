"""What all specs of kernels have in common: they become the template argument of a function."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, ClassVar

from .mods import ModSource

__all__ = ["KernelSpec", "joined_bytes"]


class KernelSpec:
    """Base of the dataclasses that mirror a struct of kernels_cu/."""

    # What C++ is told besides the fields, in the order of the struct.
    derived: ClassVar[tuple[str, ...]] = ("num_threads", "min_ctas", "smem_bytes")

    @property
    def prelude(self) -> str:
        """What the unit begins with, before the source."""
        return ""

    def cxx(self) -> str:
        """Render the spec as a C++20 literal: its fields in their order, then what is derived."""
        spec: Any = self
        names = [f.name for f in fields(spec) if f.name not in self.derived]
        values = [f".{x} = {_literal(getattr(self, x))}" for x in (*names, *self.derived)]
        return f"{type(self).__name__}{{{', '.join(values)}}}"


def _literal(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}::{value.value}"
    # What may be missing is a flag.
    if value is None or isinstance(value, ModSource):
        return "false" if value is None else value.cxx()
    if is_dataclass(value):
        members = [f".{f.name} = {_literal(getattr(value, f.name))}" for f in fields(value)]
        return f"{type(value).__name__}{{{', '.join(members)}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def joined_bytes(num_threads: int, head_dim: int, itemsize: int) -> int:
    """Return the bytes of `GroupMoments` in quant/moments.cuh, of sums alone.

    Parameters
    ----------
    num_threads : int
        Of a CTA, which share out rows in 16-byte chunks.
    head_dim, itemsize : int
        Elements of a row, and bytes of each.
    """
    groups = num_threads * 16 // (head_dim * itemsize)
    return groups * head_dim * 4
