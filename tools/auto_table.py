"""The table of `scheme="auto"` that comes with the package, made of the committed record."""

from __future__ import annotations

from pathlib import Path

from benchmarks.phases import of_timing
from cuattn.auto.table import SpeedTable
from cuattn.auto.tables import SHIPPED
from cuattn.records.record import Record

__all__ = ["TABLE", "made"]

TABLE: Path = SHIPPED / "h200.json"
COMPUTE_CAPABILITY = "90"  # which records do not have


def made(record: Record) -> SpeedTable:
    """Return the table of a record's GPU: of all phases that have ended with the same kernels.

    These are the kernels of the phase that times for tables, or of `prefill` where a record has
    none.
    """
    ended = {name: run for name, run in record.phases.items() if run.failed is None}
    of = ended.get("auto") or ended["prefill"]
    alike = {name for name, run in ended.items() if run.digest == of.digest}
    return SpeedTable.of(
        [t for t in record.timings if of_timing(t) in alike],
        gpu=record.gpu,
        compute_capability=COMPUTE_CAPABILITY,
        digest=of.digest,
    )
