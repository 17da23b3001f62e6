"""Whole numbers of parts."""

from __future__ import annotations

__all__ = ["ceil_div", "is_whole_number", "round_up"]


def ceil_div(n: int, part: int) -> int:
    """Return how many parts hold `n`."""
    return -(-n // part)


def round_up(n: int, multiple: int) -> int:
    """Return the least multiple that is not below `n`."""
    return ceil_div(n, multiple) * multiple


def is_whole_number(x: object) -> bool:
    """Whether a value is an int, and not a bool."""
    return isinstance(x, int) and not isinstance(x, bool)
