"""Files that a call or a command leaves behind: written whole or not at all, links followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, TextIO

from ..errors import ArgumentError

__all__ = ["Target", "check_target", "open_whole", "write_text"]

# Where a text may go: a file, or a stream that is open, such as standard output.
Target = Path | TextIO

# Names of descriptors that are open already, such as /dev/stdout: behind one may be a regular file,
# which whoever opened it goes on to write. Other files below /dev, as in /dev/shm, are like any.
DESCRIPTORS = ("/dev/std", "/dev/fd/", "/proc/")


def check_target(argument: str, target: Target) -> None:
    """Refuse what could not be written later on, before any long work; nothing is left behind.

    Parameters
    ----------
    argument : str
        What the error calls it.
    target : Path or text stream
        A stream is taken as it is.

    Raises
    ------
    ArgumentError
        If the path is a folder or lies in none, cannot be a path, or must not be written.
    """
    if not isinstance(target, Path):
        return
    try:
        folder = target.is_dir()
        regular = _is_replaced(target)
        place = Path(os.path.realpath(target)) if regular else target
        parent = place.parent.is_dir()
    except (OSError, ValueError) as error:  # a ValueError of a NUL, which no path has
        reason = getattr(error, "strerror", None) or str(error)
        raise ArgumentError(
            argument, str(target), f"a path that can be written ({reason})"
        ) from None
    if folder:
        raise ArgumentError(argument, str(target), "a file, not a folder")
    if not parent:
        raise ArgumentError(argument, str(target), "a file in an existing folder")
    if not os.access(place.parent if regular else place, os.W_OK):
        raise ArgumentError(argument, str(target), "a file that this user may write")


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing, such that it is there whole or as it was before.

    A regular file, or the one that a link leads to, is replaced once all is written and keeps its
    permissions. What is something else (a FIFO, a device, a descriptor) is written through.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    try:
        if _is_replaced(path):
            with _replacing(Path(os.path.realpath(path))) as stream:
                yield stream
        else:
            with path.open("ab") as stream:
                yield stream
    except OSError as error:
        if error.filename is None:  # such as where the device is full
            error.filename = str(path)
        raise


@contextmanager
def _replacing(place: Path) -> Iterator[BinaryIO]:
    # Not the file's name with an ending, which might be too long.
    partial = place.with_name(f".{token_hex(8)}.partial")
    try:
        with partial.open("xb") as stream:
            yield stream
        if place.exists():
            partial.chmod(stat.S_IMODE(place.stat().st_mode))
        partial.replace(place)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(target: Target, text: str) -> None:
    """Write text in UTF-8 to a file as `open_whole` does, or to a stream.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    if isinstance(target, Path):
        with open_whole(target) as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))
    else:
        target.write(text)
        target.flush()


def _is_replaced(path: Path) -> bool:
    """Return whether a path is that of a regular file, or of none yet."""
    if str(path.absolute()).startswith(DESCRIPTORS):
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True
