"""The folder of compiled kernels as a whole: where it is, how large, and what has to go.

Files of one target are in a folder of its name, ``sm_90a/....cubin``; those that are being written
have another name until they are whole. Any number of processes may work here at once.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..errors import ArgumentError

__all__ = [
    "Removed",
    "clear",
    "directory",
    "max_bytes",
    "new_name",
    "prune",
    "usage",
]

_MIB = 2**20
_DEFAULT_MAX_MIB = 2048

_NEW = ".new-"
# A file is new for as long as it takes to write it; older ones have lost their process.
_LEFT_OVER_AFTER = 3600.0


class Removed(NamedTuple):
    """How many files were removed, and their size in bytes."""

    files: int
    nbytes: int


class _Entry(NamedTuple):
    file: Path
    nbytes: int
    used: float


def directory() -> Path:
    """Return the cache folder, which need not exist.

    ``$CUATTN_CACHE_DIR``, or ``cuattn`` in ``$XDG_CACHE_HOME``, or ``~/.cache/cuattn``; for a user
    without a home directory one in the system's folder for temporary files.
    """
    if chosen := os.environ.get("CUATTN_CACHE_DIR"):
        return Path(os.path.expanduser(chosen))  # files of settings are not read by a shell
    # The XDG specification says that a relative path is to be ignored.
    if (base := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        return base / "cuattn"
    if (home := Path(os.path.expanduser("~"))).is_absolute():
        return home / ".cache" / "cuattn"
    user = os.geteuid() if hasattr(os, "geteuid") else "user"
    return Path(tempfile.gettempdir()) / f"cuattn-{user}"


def max_bytes() -> int:
    """Return the size in bytes beyond which the least recently used kernels are removed.

    ``$CUATTN_CACHE_MAX_MIB`` in MiB, 2048 by default.

    Raises
    ------
    ArgumentError
        If that is no number of at least 0.
    """
    text = os.environ.get("CUATTN_CACHE_MAX_MIB") or str(_DEFAULT_MAX_MIB)
    if not text.isdecimal():
        raise ArgumentError("CUATTN_CACHE_MAX_MIB", text, "a number of MiB")
    return int(text) * _MIB


def new_name() -> str:
    """Return a name of its own for a file that is being written."""
    return f"{_NEW}{secrets.token_hex(8)}"


def usage() -> tuple[int, int]:
    """Return the number of compiled kernels on disk and their size in bytes."""
    sizes = [entry.nbytes for entry in _entries()]
    return len(sizes), sum(sizes)


def prune(most: int | None = None) -> Removed:
    """Remove what killed processes left, and the least recently used kernels beyond a size.

    Parameters
    ----------
    most : int, optional
        Bytes that may stay; `max_bytes` by default.

    Raises
    ------
    ArgumentError
        As `max_bytes`.
    """
    most = max_bytes() if most is None else most
    leave = time.time() - _LEFT_OVER_AFTER
    gone = [entry for entry in _entries(f"{_NEW}*") if entry.used < leave]
    kept = 0
    for entry in sorted(_entries(), key=lambda entry: entry.used, reverse=True):
        kept += entry.nbytes
        if kept > most:
            gone.append(entry)
    return _remove(gone)


def clear() -> Removed:
    """Remove all kernels, and whatever else has the name of one."""
    removed = _remove([*_entries(f"{_NEW}*"), *_entries("*.cubin", of_all_kinds=True)])
    for folder in _listed(directory(), "sm_*"):
        try:
            folder.rmdir()
        except OSError:  # not empty, or no folder
            continue
    return removed


def _entries(pattern: str = "*.cubin", of_all_kinds: bool = False) -> Iterator[_Entry]:
    for file in chain(*(_listed(folder, pattern) for folder in _listed(directory(), "sm_*"))):
        try:
            status = file.lstat()
        except OSError:  # another process has removed it
            continue
        if stat.S_ISREG(status.st_mode) or (of_all_kinds and not stat.S_ISDIR(status.st_mode)):
            yield _Entry(file, status.st_size, status.st_mtime)


def _listed(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:  # another process has removed the folder meanwhile
        return []


def _remove(entries: Iterable[_Entry]) -> Removed:
    files = nbytes = 0
    for entry in entries:
        try:
            entry.file.unlink()
        except OSError:  # another process was faster, or it may not be
            continue
        files += 1
        nbytes += entry.nbytes
    return Removed(files, nbytes)
