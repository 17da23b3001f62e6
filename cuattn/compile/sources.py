"""The CUDA sources of this package as text, and one digest that stands for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import CompileError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["sources", "sources_digest"]


@cache
def sources() -> Mapping[str, str]:
    """Return the text of every .cu and .cuh file by its name relative to kernels_cu/.

    Read once per process, so that what is compiled and what `sources_digest` describes are the same
    text even while somebody edits the files.

    Raises
    ------
    CompileError
        If the package was installed without its kernels.
    """
    try:
        root = files("cuattn.kernels_cu")
    except ModuleNotFoundError:
        raise CompileError("this installation of cuattn lacks its kernels_cu folder") from None
    return MappingProxyType(dict(sorted(_walk(root, ""))))


@cache
def sources_digest() -> str:
    """Return the SHA-256, in hexadecimal, of the names and contents of all kernel sources."""
    digest = hashlib.sha256()
    for name, text in sources().items():
        for part in (name.encode(), text.encode()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith((".cu", ".cuh")):
            yield prefix + entry.name, entry.read_text(encoding="utf-8")
