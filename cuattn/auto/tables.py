"""The tables that there are: those that come with the package, and the user's own."""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..arrays.device import Device
from ..compile.cache_folder import directory
from ..errors import ArgumentError
from ..records.digest import ATTENTION, digest
from .table import SpeedTable, load

__all__ = ["ANEW", "SHIPPED", "Found", "origin_of", "own_file", "shipped", "table_for"]

# Made of the committed records: `make figures`.
SHIPPED = Path(__file__).parent / "tables"
# What makes a table of the GPU at hand.
ANEW = "cuattn bench --auto-table"


@dataclass(frozen=True)
class Found:
    """A table, and where it is from in words."""

    table: SpeedTable
    origin: str


def origin_of(table: SpeedTable) -> str:
    """Say where a table is from that comes with the package."""
    return f"the table of {table.gpu} that comes with cuattn"


def own_file(gpu: str) -> Path:
    """Return where the user's table of a GPU belongs, by its name: beside the compiled kernels."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return directory() / "auto" / f"{name}.json"


def table_for(device: Device) -> Found | None:
    """Return the table by which calls on a GPU are chosen, the same one in all of a process.

    That is the user's own; else the one that comes with the package for such a GPU, or else for
    another one with its compute capability.

    Warns
    -----
    RuntimeWarning
        Once, if the user's own cannot be used.
    """
    return _table_for(device.name, device.compute_capability, own_file(device.name))


@cache
def shipped() -> tuple[SpeedTable, ...]:
    """Return the tables that come with the package."""
    return tuple(load(path) for path in sorted(SHIPPED.glob("*.json")))


@cache
def _table_for(gpu: str, compute_capability: str, own: Path) -> Found | None:
    # Not Path.exists, which raises where a folder may not be looked into.
    if os.path.exists(own) and (table := _usable(own, gpu)) is not None:
        return Found(table, str(own))
    alike = [table for table in shipped() if table.compute_capability == compute_capability]
    for table in sorted(alike, key=lambda table: table.gpu != gpu):
        return Found(table, origin_of(table))
    return None


def _usable(own: Path, gpu: str) -> SpeedTable | None:
    try:
        table = load(own)
    except ArgumentError as error:
        reason = str(error)
    else:
        if table.gpu == gpu and table.digest == digest(ATTENTION):
            return table
        reason = f"it is of {table.gpu}" if table.gpu != gpu else "kernels have changed since"
    warnings.warn(
        f"{own} is not used, as {reason}; make it anew: {ANEW}", RuntimeWarning, stacklevel=2
    )
    return None
