"""What is said of schemes, baselines and shapes that are not measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["LeftOut", "in_a_line"]

# Told what is left out, such as a scheme or a baseline on one shape, and why.
LeftOut: TypeAlias = Callable[[str, str], None]


def in_a_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next((x.strip() for x in str(error).splitlines() if x.strip()), type(error).__name__)
