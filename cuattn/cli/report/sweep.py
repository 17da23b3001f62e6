"""``cuattn report --sweep-seqlen`` and ``--sweep-head-dim``: the error against a size."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import ArgumentError
from ..inputs import Input, inputs
from ..options import at_least, items
from ..table import Group, Table
from .measured import Measured

__all__ = ["Sweep", "add_options", "check", "sweeps"]


@dataclass(frozen=True)
class Axis:
    """A size to vary: its option, what it is called, and the sizes of an input that follow it."""

    option: str
    label: str
    sizes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The option without dashes, as `argparse` names it."""
        return self.option[2:].replace("-", "_")


AXES = (
    Axis("--sweep-seqlen", "tokens", ("seqlen_q", "seqlen_kv")),
    Axis("--sweep-head-dim", "head_dim", ("head_dim",)),
)


@dataclass(frozen=True, eq=False)
class Sweep:
    """One size with several values; all values have the same inputs and schemes.

    Attributes
    ----------
    axis : Axis
    values : list of int
    measured : list of list of Measured
        For each value, the inputs.
    """

    axis: Axis
    values: list[int]
    measured: list[list[Measured]]

    def series(self, of: Callable[[Any], Any]) -> Iterator[tuple[str, dict[str, list[Any]]]]:
        """Yield inputs' names with a figure of each report, for each scheme along the values."""
        for same_input in zip(*self.measured, strict=True):
            reports = zip(*(m.reports for m in same_input), strict=True)
            yield (
                same_input[0].input.name,
                {along[0].scheme.name: [of(report) for report in along] for along in reports},
            )

    def table(self) -> Table:
        """Lay out relative L1 errors, schemes by values."""
        groups = [
            Group(name, list(errors.items()))
            for name, errors in self.series(lambda r: 100 * r.metrics["relative_l1"])
        ]
        columns = [str(value) for value in self.values]
        return Table(columns, groups, f"relative L1 error, %, against {self.axis.label}")

    def rows(self) -> list[dict[str, Any]]:
        """Return one object of JSON for each value, input and scheme."""
        return [row for measured in self.measured for m in measured for row in m.rows()]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that vary a size of a distribution."""
    group = parser.add_argument_group("sweeps of a distribution")
    for axis in AXES:
        what = "tokens of Q, K and V" if axis.label == "tokens" else "channels of a head"
        group.add_argument(
            axis.option,
            type=items(at_least(1)),
            metavar="N,N,...",
            help=f"also the error against the {what}",
        )


def check(args: argparse.Namespace) -> None:
    """Refuse to vary a size of a file.

    Raises
    ------
    ArgumentError
        If that is what the options say.
    """
    for axis in AXES:
        values = getattr(args, axis.name)
        if values is not None and args.input is not None:
            raise ArgumentError(axis.option, values, "left out with --input")


def sweeps(args: argparse.Namespace, measure: Callable[[Input, str], Measured]) -> list[Sweep]:
    """Measure what the options ask for.

    Parameters
    ----------
    args : Namespace
    measure : callable
        From an input and a name for it that has the size.
    """
    chosen = [(axis, getattr(args, axis.name)) for axis in AXES]
    return [_sweep(axis, values, args, measure) for axis, values in chosen if values is not None]


def _sweep(
    axis: Axis,
    values: list[int],
    args: argparse.Namespace,
    measure: Callable[[Input, str], Measured],
) -> Sweep:
    measured = []
    for value in values:
        sized = argparse.Namespace(**{**vars(args), **dict.fromkeys(axis.sizes, value)})
        given = inputs(sized)
        measured.append([measure(x, f"{x.name}, {axis.label} {value}") for x in given])
    return Sweep(axis, values, measured)
