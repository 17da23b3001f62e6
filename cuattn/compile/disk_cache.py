"""Compiled kernels on disk, named by what they were made from.

Any number of processes may read and fill one folder at once: a file is written under another name
and moved into place, and every file carries a checksum, so that one that was cut short or damaged
counts as missing and is made again. A folder that cannot be written only costs the saving.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["directory", "fetch", "key", "path", "read", "usage", "write"]

# Part of every key: raise it when files of an older layout must not be read.
_MAGIC = b"cuattn cubin 1\n\0"
_HEADER_BYTES = len(_MAGIC) + 32 + 8

# Images that could not be saved, so that this process compiles them once only.
_unsaved: dict[Path, bytes] = {}


def directory() -> Path:
    """Return the cache folder, which need not exist.

    ``$CUATTN_CACHE_DIR``, or ``cuattn`` in ``$XDG_CACHE_HOME``, or ``~/.cache/cuattn``.
    """
    if chosen := os.environ.get("CUATTN_CACHE_DIR"):
        return Path(chosen)
    # The XDG specification says that a relative path is to be ignored.
    if (base := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        return base / "cuattn"
    return Path(os.path.expanduser("~")) / ".cache" / "cuattn"


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
    """Return the image in a file, or None if it is missing, unreadable or damaged."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    image = data[_HEADER_BYTES:]
    return image if data[:_HEADER_BYTES] == _header(image) else None


def write(file: Path, image: bytes) -> None:
    """Save an image so that no reader ever sees a part of it.

    Raises
    ------
    OSError
        If the folder cannot be made or written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(_header(image) + image)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


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


def usage() -> tuple[int, int]:
    """Return the number of compiled kernels on disk and their size in bytes."""
    sizes = [file.stat().st_size for file in directory().glob("sm_*/*.cubin")]
    return len(sizes), sum(sizes)


def _header(image: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(image).digest() + len(image).to_bytes(8, "little")
