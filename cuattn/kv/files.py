"""KV caches in files of the safetensors format."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.output_files import open_whole
from ..common.sizes import ceil_div
from ..common.typed_json import typed
from ..errors import ArgumentError, CuattnError
from ..kv_format import UNIT_TOKENS
from ..reference.kv_cache import fine_units
from ..reference.kv_offsets import FIRST_TOKENS
from .contents import read_units, write_units
from .fine import fine_places, read_fine
from .geometry import KVGeometry
from .memory import Memory
from .plans import appended
from .units import pack_units, unpack_units

__all__ = ["Saved", "checksum", "read", "restore", "write"]

# What metadata says of a file that `write` has written, and of the form of its contents.
_KIND = "cuattn KV cache"
_VERSION = "3"


@dataclass(frozen=True, eq=False)
class Saved:
    """The contents of a file.

    Attributes
    ----------
    geometry : KVGeometry
    lengths : ndarray of int64 [batch]
    k_offset : ndarray of float32 [batch, num_kv_heads, head_dim], or None
    bare : ndarray of int32 [batch], or None
    units : list of ndarray of uint8 [num_kv_heads, unit, unit_bytes]
        Of each sequence those with tokens.
    coarse : ndarray of int64 [batch], or None
        Of nested codes, see `Memory`.
    fine : list of ndarray of uint8 [num_kv_heads, unit, unit_bytes]
        Lower halves of those units that have them; nothing of other codes.
    """

    geometry: KVGeometry
    lengths: NDArray[np.int64]
    k_offset: NDArray[np.float32] | None
    bare: NDArray[np.int32] | None
    units: list[NDArray[np.uint8]]
    coarse: NDArray[np.int64] | None
    fine: list[NDArray[np.uint8]]


def write(path: str | PathLike[str], memory: Memory, lengths: NDArray[np.int64]) -> None:
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
        arrays["bare"] = memory.to_host(memory.bare)
    for b, length in enumerate(lengths.tolist()):
        units = read_units(memory, b, 0, ceil_div(length, UNIT_TOKENS))
        arrays[f"units.{b}"] = _used_units(memory, units, length)
        if memory.fine is not None:
            lower = _used_units(memory, read_fine(memory, b, length), length)
            arrays[f"fine.{b}"] = lower[:, fine_places(memory, b, length)[0]]
    if memory.coarse is not None:
        coarse = memory.to_host(memory.coarse)
        arrays["coarse"] = np.minimum(coarse, -(-lengths // UNIT_TOKENS)).astype(np.int32)
    contiguous = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    geometry = json.dumps(asdict(memory.geometry))
    metadata = {
        "kind": _KIND,
        "version": _VERSION,
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


def read(path: str | PathLike[str]) -> Saved:
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
            if found != (_KIND, _VERSION):
                expected = f"a file of a {_KIND}, version {_VERSION} (this is {found})"
                raise ArgumentError("path", str(path), expected)
            arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
        text = metadata.get("geometry", "")
        if metadata.get("sha256") != checksum(text, arrays):
            raise ArgumentError("sha256", metadata.get("sha256"), "that of the contents")
        return _checked(typed(json.loads(text), KVGeometry, "geometry"), arrays)
    except (OSError, TypeError, ValueError, RecursionError, library.SafetensorError) as error:
        if isinstance(error, ArgumentError) and error.argument == "path":
            raise
        raise ArgumentError("path", str(path), f"the file of a sound cache ({error})") from error


def restore(memory: Memory, saved: Saved) -> None:
    """Put the contents of a file into the memory of a cache without tokens."""
    with memory.call_on(None):
        after, entries, _, _ = appended(memory.host_state, saved.lengths, saved.lengths.shape)
        memory.write_entries(entries)
        with memory.transaction(after, memory.write_lengths, memory.write_limits):
            for b, units in enumerate(saved.units):
                write_units(memory, b, 0, memory.sent(units[None]))
            if saved.coarse is not None:
                memory.coarse[...] = memory.sent(saved.coarse.astype(np.int32))
            for b, units in enumerate(saved.fine):
                place = memory.sent(fine_places(memory, b, int(saved.lengths[b]))[1])
                memory.fine[b][:, place] = memory.sent(units)
            if saved.k_offset is not None and saved.bare is not None:
                memory.k_offset[...] = memory.sent(saved.k_offset)
                memory.bare[...] = memory.sent(saved.bare)
            memory.write_limits(after)
            memory.write_lengths(after)
    memory.wait()


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


def _used_units(memory: Memory, units: Any, length: int) -> NDArray[np.uint8]:
    """Return units on the host, with zeros for what lies beyond so many tokens."""
    tokens = unpack_units(memory.to_host(units), memory.geometry.kv_format)
    for array in (array for operand in tokens for array in operand if array is not None):
        array[:, :, length:] = 0
    whole: NDArray[np.uint8] = pack_units(*tokens, memory.geometry.kv_format)[0]
    return whole


def _checked(geometry: KVGeometry, arrays: dict[str, NDArray[Any]]) -> Saved:
    batch, heads, kv_format = geometry.batch, geometry.num_kv_heads, geometry.kv_format
    lengths = _array(arrays, "lengths", (batch,), np.int32)
    if not 0 <= lengths.min() <= lengths.max() <= geometry.capacity:
        raise ArgumentError("lengths", lengths.tolist(), f"from 0 to {geometry.capacity}")
    counts = [ceil_div(length, UNIT_TOKENS) for length in lengths.tolist()]
    if geometry.page_size and sum(ceil_div(n, geometry.page_units) for n in counts) > (
        geometry.num_pages
    ):
        raise ArgumentError("lengths", lengths.tolist(), f"within {geometry.num_pages} pages")
    units = [
        _array(arrays, f"units.{b}", (heads, count, kv_format.unit_bytes), np.uint8)
        for b, count in enumerate(counts)
    ]
    k_offset = bare = None
    if "k_offset" in arrays:
        shape = (batch, heads, kv_format.head_dim)
        k_offset = _array(arrays, "k_offset", shape, np.float32)
        bare = _array(arrays, "bare", (batch,), np.int32)
        if not np.isin(bare, (0, FIRST_TOKENS)).all():
            raise ArgumentError("bare", bare.tolist(), f"each 0 or {FIRST_TOKENS}")
    coarse, fine = None, []
    if kv_format.nested:
        coarse = _array(arrays, "coarse", (batch,), np.int32).astype(np.int64)
        first, places = geometry.first_units, geometry.recent_units
        if ((coarse < 0) | (coarse > counts) | (np.array(counts) - coarse > first + places)).any():
            expected = f"from 0 to {counts}, and no more than {places} below"
            raise ArgumentError("coarse", coarse.tolist(), expected)
        fine = [
            _array(arrays, f"fine.{b}", (heads, has.sum(), kv_format.unit_bytes), np.uint8)
            for b, has in enumerate(map(fine_units, lengths.tolist(), coarse, [first] * batch))
        ]
    return Saved(geometry, lengths.astype(np.int64), k_offset, bare, units, coarse, fine)


def _array(arrays: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    if name not in arrays:
        raise ArgumentError(name, None, f"in a file with the arrays {sorted(arrays)}")
    x = arrays[name]
    if x.shape != shape or x.dtype != dtype:
        raise ArgumentError(name, x, f"{np.dtype(dtype).name} {list(shape)}")
    return x


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise CuattnError("files of caches need the package safetensors; install it") from None
    return safetensors
