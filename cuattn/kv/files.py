"""KV caches in files of the safetensors format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.output_files import open_whole
from ..common.typed_json import typed
from ..errors import ArgumentError, CuattnError
from ..kv_format import UNIT_TOKENS, KVFormat
from .contents import read_units, write_units
from .fine import fine_places, read_fine
from .geometry import KVGeometry
from .memory import Memory
from .plans import appended
from .saved import Saved, checked
from .sharing import in_rows, numbered
from .units import pack_units, unpack_units

__all__ = ["FORM", "Form", "checksum", "read", "restore", "write"]


class Form(NamedTuple):
    """What tells files of one kind of cache from others.

    Attributes
    ----------
    kind, version : str
        What their metadata says: what they are, and the form of their contents.
    geometry : type
        The dataclass that they have in JSON.
    cleared : function of units, format and length
        Returns the units of a sequence, uint8 [1, head, unit, byte] on the host, in new memory with
        zeros for what lies beyond so many tokens.
    """

    kind: str
    version: str
    geometry: type[KVGeometry]
    cleared: Callable[[NDArray[np.uint8], KVFormat, int], NDArray[np.uint8]]


def _cleared(units: NDArray[np.uint8], kv_format: KVFormat, length: int) -> NDArray[np.uint8]:
    tokens = unpack_units(units, kv_format)
    for array in (array for operand in tokens for array in operand if array is not None):
        array[:, :, length:] = 0
    whole: NDArray[np.uint8] = pack_units(*tokens, kv_format)
    return whole


FORM = Form("cuattn KV cache", "4", KVGeometry, _cleared)


def write(
    path: str | PathLike[str], memory: Memory, lengths: NDArray[np.int64], form: Form = FORM
) -> None:
    """Write what a cache holds; what lies beyond the lengths of sequences is written as zeros.

    Raises
    ------
    ArgumentError
        If there can be no such file.
    CuattnError
        If the package safetensors is missing.
    """
    library = _safetensors()
    path = _checked_path(path)
    arrays: dict[str, NDArray[Any]] = {"lengths": lengths.astype(np.int32)}
    if memory.k_offset is not None:
        arrays["k_offset"] = memory.to_host(memory.k_offset)
        # Of sequences without tokens it means nothing.
        arrays["bare"] = memory.to_host(memory.bare) * (lengths > 0).astype(np.int32)
    for b, length in enumerate(lengths.tolist()):
        units = read_units(memory, b, 0, memory.geometry.used_units(length))
        arrays[f"units.{b}"] = _used_units(memory, units, length, form)
        if memory.fine is not None:
            lower = _used_units(memory, read_fine(memory, b, length), length, form)
            arrays[f"fine.{b}"] = lower[:, fine_places(memory, b, length)[0]]
    if memory.coarse is not None:
        coarse = memory.to_host(memory.coarse)
        arrays["coarse"] = np.minimum(coarse, -(-lengths // UNIT_TOKENS)).astype(np.int32)
    pages, evicted = memory.host_state.pages, memory.host_state.evicted
    if pages is not None and pages.extra is not None:
        arrays["pages"] = numbered(pages, lengths)
    if evicted is not None:
        arrays["evicted"] = np.stack(evicted)
    contiguous = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    geometry = json.dumps(asdict(memory.geometry))
    metadata = {
        "kind": form.kind,
        "version": form.version,
        "geometry": geometry,
        "sha256": checksum(geometry, contiguous),
    }
    content = library.numpy.save(contiguous, metadata)
    try:
        with open_whole(path) as stream:
            stream.write(content)
    except (OSError, ValueError) as error:  # the latter of a name with a NUL
        expected = f"a file that can be written ({error})"
        raise ArgumentError("path", str(path), expected) from None


def read(path: str | PathLike[str], form: Form = FORM) -> Saved:
    """Read a file that `write` has written, and check all of it.

    Raises
    ------
    ArgumentError
        If there is no such file, or it is another one or damaged.
    CuattnError
        If the package safetensors is missing.
    """
    library = _safetensors()
    path = _checked_path(path)
    try:
        if not path.is_file():
            raise ArgumentError("path", str(path), "an existing file")
        with library.safe_open(str(path), "numpy") as file:
            metadata = file.metadata() or {}
            found = metadata.get("kind"), metadata.get("version")
            if found != (form.kind, form.version):
                expected = f"a file of a {form.kind}, version {form.version} (this is {found})"
                raise ArgumentError("path", str(path), expected)
            arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
        text = metadata.get("geometry", "")
        if metadata.get("sha256") != checksum(text, arrays):
            raise ArgumentError("sha256", metadata.get("sha256"), "that of the contents")
        return checked(typed(json.loads(text), form.geometry, "geometry"), arrays)
    except (OSError, TypeError, ValueError, RecursionError, library.SafetensorError) as error:
        if isinstance(error, ArgumentError) and error.argument == "path":
            raise
        raise ArgumentError("path", str(path), f"the file of a sound cache ({error})") from error


def restore(memory: Memory, saved: Saved) -> None:
    """Put the contents of a file into the memory of a cache without tokens."""
    with memory.call_on(None):
        if saved.table is None:
            after = appended(memory.host_state, saved.lengths, saved.lengths.shape).after
        else:
            pages = in_rows(memory.geometry, saved.table)
            after = memory.host_state.learned(saved.lengths).with_pages(pages)
        after = after._replace(evicted=saved.evicted)
        memory.write_table(after)
        with memory.transaction(after, memory.write_lengths, memory.write_limits):
            for b, units in _in_order(memory.geometry, saved):
                write_units(memory, b, 0, memory.sent(units[None]))
            if saved.coarse is not None:
                memory.coarse[...] = memory.sent(saved.coarse.astype(np.int32))
            for b, units in enumerate(saved.fine):
                place = memory.sent(fine_places(memory, b, int(saved.lengths[b]))[1])
                memory.fine[b][:, place] = memory.sent(units)
            if saved.k_offset is not None and saved.bare is not None:
                memory.k_offset[...] = memory.sent(saved.k_offset)
                memory.bare[...] = memory.sent(saved.bare)
            memory.write_fixed(after)
            memory.write_limits(after)
            memory.write_lengths(after)
    memory.wait()


def _in_order(geometry: KVGeometry, saved: Saved) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield sequences with units; of a shared page those of who has most tokens in it are last."""
    units = dict(enumerate(saved.units))
    if saved.table is None:
        yield from units.items()
        return
    size = geometry.page_size
    yield from sorted(units.items(), key=lambda item: (saved.lengths[item[0]] - 1) % size)
    for b, whole in units.items():
        yield b, whole[:, : int(saved.lengths[b]) // size * geometry.page_units]


def checksum(geometry: str, arrays: dict[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of what a file says of a cache and holds of it, in hexadecimal digits."""
    digest = hashlib.sha256(geometry.encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _checked_path(path: object) -> Path:
    if not isinstance(path, (str, PathLike)) or not Path(fspath(path)).name:
        raise ArgumentError("path", path, "that of a file, a str or pathlib.Path")
    return Path(fspath(path))


def _used_units(memory: Memory, units: Any, length: int, form: Form) -> NDArray[np.uint8]:
    """Return units on the host, [head, unit, byte], with zeros beyond so many tokens."""
    whole = form.cleared(memory.to_host(units), memory.geometry.kv_format, length)
    of_heads: NDArray[np.uint8] = whole[0]
    return of_heads


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise CuattnError("files of caches need the package safetensors; install it") from None
    return safetensors
