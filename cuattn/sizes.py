"""Whole numbers of parts."""

from __future__ import annotations

__all__ = ["ceil_div", "round_up"]


def ceil_div(n: int, part: int) -> int:
    """Return how many parts hold `n`."""
    return -(-n // part)


def round_up(n: int, multiple: int) -> int:
    """Return the least multiple that is not below `n`."""
    return ceil_div(n, multiple) * multiple
