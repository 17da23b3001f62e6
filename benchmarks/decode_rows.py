"""The times of decoding in a record, by what they are about, and what they come to."""

from __future__ import annotations

from cuattn.bench.cases import Case
from cuattn.bench.decode import COPY, COPY_KIND, FP16, KIND
from cuattn.bench.series import Series
from cuattn.records.record import Timing


class DecodeRows:
    """Timings of a record. What it lacks reads as None.

    Names are those of schemes for our rows, those of implementations for baselines.
    """

    def __init__(self, timings: list[Timing]) -> None:
        self._rows = {(t.case, Series.of(t).name, *_sizes(t)): t for t in timings}

    def row(self, kind: str, name: str, case: Case) -> Timing | None:
        """Return the row of a kind of measurement, as `Timing.case` has it, and of a shape."""
        return self._rows.get((kind, name, *_sizes(case)))

    def gbps(self, kind: str, name: str, case: Case) -> float | None:
        """Return the bandwidth of that row."""
        t = self.row(kind, name, case)
        return t.gbps if t else None

    def names(self, case: Case) -> list[str]:
        """Return who was timed on a shape, in the order of the record."""
        return [key[1] for key in self._rows if key[0] == KIND and key[2:] == _sizes(case)]

    def share(self, name: str, case: Case) -> float | None:
        """Return a bandwidth over that of the copy that took turns with it."""
        return _ratio(self.gbps(KIND, name, case), self.gbps(COPY_KIND, COPY, case))

    def faster(self, name: str, case: Case) -> float | None:
        """Return how many times as fast as the fastest with float16 K and V."""
        mine = self.row(KIND, name, case)
        return _ratio(self.float16(case), mine.kernel_ms if mine else None)

    def float16(self, case: Case) -> float | None:
        """Return the milliseconds of the fastest with float16 K and V."""
        float16 = [
            t.kernel_ms
            for (kind, _, *sizes), t in self._rows.items()
            if kind == KIND and t.scheme == FP16 and tuple(sizes) == _sizes(case)
        ]
        return min((ms for ms in float16 if ms), default=None)

    def beside(self, kind: str, other: str, name: str, case: Case) -> float | None:
        """Return the bandwidth in a kind of measurement over that in another, of one name."""
        return _ratio(self.gbps(kind, name, case), self.gbps(other, name, case))


def _sizes(t: Timing | Case) -> tuple[int, int, int, int]:
    return t.batch, t.num_kv_heads, t.seqlen_kv, t.head_dim


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None
