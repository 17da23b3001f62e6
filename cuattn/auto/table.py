"""Times of the candidates of `scheme="auto"` on one GPU, as a JSON file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..common.output_files import Target
from ..common.typed_json import read, write
from ..errors import ArgumentError
from ..presets import AUTO
from ..records.rows import Shape, Timing, shape_of
from ..reference.layout import HEAD_DIMS

__all__ = ["CANDIDATES", "FORMAT", "KIND", "SpeedRow", "SpeedTable", "load", "save"]

FORMAT = 1
# Nothing was measured without these, so every row has them all.
CANDIDATES = AUTO["auto-block"]

# Of any size, more than any call has: logarithms of sizes are compared.
_MOST = 2**40
# Cases of a record with such calls: those that are timed for tables, and then all others.
KIND = "auto"
KINDS = (KIND, "prefill", "comparison", "model")


@dataclass(frozen=True, kw_only=True)
class SpeedRow(Shape):
    """One measured shape.

    Attributes
    ----------
    us : dict of str to float
        Microseconds of a call from float16 by the names of the candidates: medians of single calls
        from a cold L2 cache.
    """

    us: dict[str, float]

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if name not in ("is_causal", "us") and not 1 <= size <= _MOST:
                raise ArgumentError(name, size, f"from 1 to {_MOST}")
        if self.num_q_heads % self.num_kv_heads:
            expected = f"a multiple of num_kv_heads, which is {self.num_kv_heads}"
            raise ArgumentError("num_q_heads", self.num_q_heads, expected)
        if self.head_dim not in HEAD_DIMS:
            raise ArgumentError("head_dim", self.head_dim, f"one of {HEAD_DIMS}")
        if self.us.keys() != set(CANDIDATES) or not all(x > 0 for x in self.us.values()):
            raise ArgumentError("us", self.us, f"a positive number for each of {CANDIDATES}")

    def distance(self, call: Shape) -> float:
        """Return how far a call's sizes are from the row's, as factors' binary logarithms."""
        return math.hypot(*(math.log2(a / b) for a, b in self._pairs(call)))

    def reaches(self, call: Shape) -> bool:
        """Whether what is faster here is taken to be so in a call.

        The larger a call, the less of its time is quantization, and the sooner it fills the GPU; a
        call may fall short of the row by no more than half of a step of two.
        """
        return all(b >= a / math.sqrt(2) for a, b in self._pairs(call))

    def _pairs(self, call: Shape) -> Iterable[tuple[int, int]]:
        return zip(_gains(self), _gains(call), strict=True)


@dataclass(frozen=True, kw_only=True)
class SpeedTable:
    """What one GPU was measured to do.

    Attributes
    ----------
    format : int
        `FORMAT`.
    gpu : str
        Name of the GPU, as the driver gives it.
    compute_capability : str
        Without the dot, for example "90".
    digest : str
        Of the kernels, and of the modules that launch them: `cuattn.records.digest`.
    rows : list of SpeedRow
    """

    format: int
    gpu: str
    compute_capability: str
    digest: str
    rows: list[SpeedRow]

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ArgumentError("format", self.format, f"{FORMAT}, that of this version")

    @classmethod
    def of(
        cls, timings: Iterable[Timing], *, gpu: str, compute_capability: str, digest: str
    ) -> SpeedTable:
        """Return the table of rows of a record, of shapes at which all candidates were timed.

        Of a shape that was timed more than once the first times count, in the order of `KINDS`.
        Rows of options of scores do not.
        """
        found: dict[Shape, dict[str, float]] = {}
        of_kinds = [t for t in timings if t.case in KINDS and t.feature is None]
        for t in sorted(of_kinds, key=lambda t: KINDS.index(t.case)):
            ours = t.implementation == "cuattn" and t.scheme in CANDIDATES and t.state == "cold"
            if ours and t.head_dim in HEAD_DIMS and t.end_to_end_ms:
                us = found.setdefault(shape_of(t), {})
                us.setdefault(t.scheme, round(1e3 * t.end_to_end_ms, 2))
        rows = [
            SpeedRow(**asdict(shape), us={name: us[name] for name in CANDIDATES})
            for shape, us in found.items()
            if us.keys() == set(CANDIDATES)
        ]
        return cls(
            format=FORMAT,
            gpu=gpu,
            compute_capability=compute_capability,
            digest=digest,
            rows=sorted(rows, key=_order),
        )


def load(path: Path) -> SpeedTable:
    """Read what `save` wrote.

    Raises
    ------
    ArgumentError
        If the file cannot be read or is not JSON, or a field is missing, unknown or wrong; names
        the field.
    """
    table: SpeedTable = read(path, SpeedTable, "a table of cuattn bench --auto-table")
    return table


def save(table: SpeedTable, target: Target) -> None:
    """Write a table, whole or not at all."""
    write(asdict(table), target)


def _gains(shape: Shape) -> tuple[int, int, int, int]:
    """Return sizes of which larger ones only help a quantized scheme against float16.

    Heads of all sequences, query heads for each head of K and V, queries, and keys. Quantization
    takes time for each row of Q, K and V, attention for each pair of them.
    """
    return shape.batch * shape.num_q_heads, shape.group, shape.seqlen_q, shape.seqlen_kv


def _order(row: SpeedRow) -> tuple[float, ...]:
    return (row.head_dim, row.is_causal, row.seqlen_kv, row.seqlen_q, row.batch, row.num_kv_heads)
