"""Words of unknown origin, such as names in files, brought to what one line can show."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["listed", "printable"]

# Names of a list, and characters of each, that an error has room for.
NAMES, NAME = 12, 40


def printable(text: str, most: int = 120) -> str:
    """Return text with escapes for what has no shape, cut to so many characters.

    Line ends, control characters and bytes that are not UTF-8 (which Python reads as surrogates)
    are escaped, so that the result can be encoded and neither breaks a line nor moves a cursor.
    """
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1]
    )
    return escaped if len(escaped) <= most else escaped[: most - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Return names in quotes, of many the first ones and how many more there are."""
    every = list(names)
    shown = [f"'{printable(name, NAME)}'" for name in every[:NAMES]]
    more = [f"{len(every) - NAMES} more"] * (len(every) > NAMES)
    return ", ".join(shown + more) or "nothing"
