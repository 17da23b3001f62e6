"""Compiled kernels on disk, named by what they were made from.

Any number of processes may read and fill one folder at once: a file is written under another name
and moved into place, and every file carries a checksum of its name and content, so that one that
was cut short, damaged or put in the place of another counts as missing and is made again. A folder
that cannot be written only costs the saving. Where files have owners, only those of this user or
root that nobody else may write are loaded.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from .cache_folder import directory, new_name, prune

__all__ = ["fetch", "key", "path", "read", "write"]

# Part of every key: raise it when files of an older layout must not be read.
_MAGIC = b"cuattn cubin 2\n\0"
_HEADER_BYTES = len(_MAGIC) + 32 + 8

# Reading marks a file as used, once in so many seconds: access times of file systems are not kept.
_MARK_EVERY = 3600.0
# Files written by this process between two looks at the size of the folder.
_PRUNE_EVERY = 64

# Images that could not be saved, so that this process compiles them once only.
_unsaved: dict[Path, bytes] = {}
_written = 0
_warned_of: set[Path] = set()


def key(parts: Iterable[str]) -> str:
    """Return a name for the binary that these texts, in this order, determine."""
    digest = hashlib.sha256(_MAGIC)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def path(name: str, arch: str) -> Path:
    """Return where the binary of that key for that target belongs."""
    return directory() / f"sm_{arch}" / f"{name}.cubin"


def read(file: Path) -> bytes | None:
    """Return the image in a file, or None if it is missing, unreadable, damaged or not trusted.

    Warns
    -----
    RuntimeWarning
        Once for a folder with a file that others own or may write.
    """
    try:
        with open(file, "rb", opener=_open_at_once) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or not _is_trusted(file, status):
                return None
            data = stream.read()
    except OSError:
        return None
    image = data[_HEADER_BYTES:]
    if data[:_HEADER_BYTES] != _header(file.name, image):
        return None
    _mark_as_used(file, status)
    return image


def write(file: Path, image: bytes) -> None:
    """Save an image so that no reader ever sees a part of it; now and then `prune`.

    Raises
    ------
    OSError
        If the folder cannot be made or written.
    """
    global _written
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.parent / new_name()
    try:
        with open(temporary, "xb", opener=_open_for_all) as stream:
            stream.write(_header(file.name, image) + image)
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if _written % _PRUNE_EVERY == 0:
        prune()
    _written += 1


def fetch(file: Path, build: Callable[[], bytes]) -> bytes:
    """Return the image of a file, building and, where possible, saving it first."""
    image = read(file) or _unsaved.get(file)
    if image is None:
        image = build()
        try:
            write(file, image)
        except OSError:
            _unsaved[file] = image
    return image


def _open_at_once(name: str, flags: int) -> int:
    """Open a file that may be a named pipe, which else waits for somebody to write."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _open_for_all(name: str, flags: int) -> int:
    """Make a file that all may read whom the umask lets, and only its owner may write."""
    return os.open(name, flags, 0o644)


def _is_trusted(file: Path, status: os.stat_result) -> bool:
    if not hasattr(os, "geteuid"):
        return True  # Windows gives a user's folders to nobody else
    if status.st_uid not in (0, os.geteuid()):
        reason = f"it belongs to user {status.st_uid}"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        reason = "others may write it"
    else:
        return True
    if file.parent not in _warned_of:
        _warned_of.add(file.parent)
        warnings.warn(
            f"{file} is not used, as {reason}; kernels are compiled instead "
            "(CUATTN_CACHE_DIR chooses another folder)",
            RuntimeWarning,
            stacklevel=2,
        )
    return False


def _mark_as_used(file: Path, status: os.stat_result) -> None:
    if time.time() - status.st_mtime > _MARK_EVERY:
        try:
            os.utime(file)
        except OSError:  # another's file, or a folder that cannot be written
            return


def _header(name: str, image: bytes) -> bytes:
    digest = hashlib.sha256(name.encode() + b"\0" + image).digest()
    return _MAGIC + digest + len(image).to_bytes(8, "little")
