"""What ``cuattn report`` found, as tables and as rows of JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...choice.error_report import ErrorReport
from ...reference.attribute import SOURCES
from ..inputs import Input
from ..table import Group, Table

__all__ = ["Measured", "across_inputs", "tables"]

Column = Callable[[ErrorReport], float | None]

ERRORS: dict[str, Column] = {
    "L1 %": lambda r: 100 * r.metrics["relative_l1"],
    "L2 %": lambda r: 100 * r.metrics["relative_l2"],
    "mean %": lambda r: 100 * r.metrics["mean_relative"],
    "1-cosine": lambda r: 1 - r.metrics["cosine"],
    "RMSE": lambda r: r.metrics["rmse"],
    "max": lambda r: r.metrics["max_abs"],
    "SNR dB": lambda r: r.metrics["snr_db"],
}

TIMES: dict[str, Column] = {
    "ms": lambda r: None if r.seconds is None else 1e3 * r.seconds,
    "TOPS": lambda r: r.tops,
}

# Of all other columns less is better.
MORE_IS_BETTER = ("SNR dB", "TOPS")


@dataclass(frozen=True, eq=False)
class Measured:
    """One input and the reports of the schemes on it."""

    input: Input
    reports: list[ErrorReport]

    def rows(self) -> list[dict[str, Any]]:
        """Return one object of JSON for each scheme."""
        return [
            {
                "input": self.input.name,
                "dtype": self.input.q.dtype.name,
                **asdict(report.shape),
                **self.input.options,
                "scheme": report.scheme.name,
                "backend": report.backend,
                "metrics": report.metrics,
                "by_source": report.by_source,
                "seconds": report.seconds,
                "tops": report.tops,
            }
            for report in self.reports
        ]


def tables(measured: Sequence[Measured]) -> dict[str, Table]:
    """Lay out "errors", errors by "sources" and "times"; the latter two where they were measured.

    Each has a group of rows for each input.
    """
    reports = [report for m in measured for report in m.reports]
    found = {"errors": _table("error against float64 (L1, L2, mean: relative)", measured, ERRORS)}
    if any(report.by_source for report in reports):
        title = "relative L1 error with one step quantized"
        # What is best of a source says little: schemes differ in what they round at all.
        found["sources"] = replace(_table(title, measured, _sources()), better=())
    if any(report.seconds for report in reports):
        found["times"] = _table("time of a call, quantization included", measured, TIMES)
    return found


def across_inputs(measured: Sequence[Measured]) -> Table:
    """Lay out one error, schemes by inputs; all inputs have the same schemes."""
    rows = [
        (reports[0].scheme.name, [ERRORS["L1 %"](report) for report in reports])
        for reports in zip(*(m.reports for m in measured), strict=True)
    ]
    return Table(
        [m.input.name for m in measured],
        [Group("relative L1 error, %", rows)],
        better=["less"] * len(measured),
        aside=_unquantized(measured),
    )


def _sources() -> dict[str, Column]:
    def of(source: str) -> Column:
        return lambda r: 100 * r.by_source[source]["relative_l1"] if r.by_source else None

    return {f"{source.upper()} %": of(source) for source in SOURCES}


def _table(title: str, measured: Sequence[Measured], columns: Mapping[str, Column]) -> Table:
    groups = [
        Group(
            m.input.title,
            [(r.scheme.name, [column(r) for column in columns.values()]) for r in m.reports],
        )
        for m in measured
    ]
    better = ["more" if name in MORE_IS_BETTER else "less" for name in columns]
    return Table(list(columns), groups, title, better, _unquantized(measured))


def _unquantized(measured: Sequence[Measured]) -> set[str]:
    """Return the schemes that round nothing, whose small errors are no merit."""
    schemes = {report.scheme for m in measured for report in m.reports}
    return {x.name for x in schemes if x.qk == x.pv == "fp16"}
