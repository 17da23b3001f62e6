"""One row of a table of goals: what was wanted, what was measured, and whether that is enough."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial

from tools.record_figures import NONE, show


def _goal(
    sign: str,
    reaches: Callable[[float, float], bool],
    what: str,
    wanted: float,
    got: float | None,
    form: str = ".2f",
    factor: float = 1.0,
) -> list[str]:
    reached = NONE if got is None else "yes" if reaches(got, wanted) else "**no**"
    return [what, f"{sign} {show(wanted, form, factor)}", show(got, form, factor), reached]


at_least = partial(_goal, "≥", operator.ge)
at_most = partial(_goal, "≤", operator.le)
