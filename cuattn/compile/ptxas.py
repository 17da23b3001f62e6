"""What ptxas, run with -v, says about each kernel of a cubin."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["KernelInfo", "kernel_infos"]

_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SMEM = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class KernelInfo:
    """Resources of one kernel: registers per thread, and bytes of the rest.

    `smem` is static shared memory only; `stack` counts local arrays as well as spills.
    """

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    smem: int


def kernel_infos(log: str) -> dict[str, KernelInfo]:
    """Read the resources of every entry function from a compiler log."""
    # One section per entry; what comes before the first belongs to none.
    _, *sections = _ENTRY.split(log)
    return {name: _parse(text) for name, text in zip(sections[::2], sections[1::2], strict=True)}


def _parse(text: str) -> KernelInfo:
    frame = _FRAME.search(text)
    stack, stores, loads = map(int, frame.groups()) if frame else (0, 0, 0)
    return KernelInfo(_number(_USED, text), stack, stores, loads, _number(_SMEM, text))


def _number(pattern: re.Pattern[str], text: str) -> int:
    found = pattern.search(text)
    return int(found[1]) if found else 0
