"""Arrays in ``.npz`` and ``.safetensors`` files, read in memory and time that the file bounds.

What a file says of itself is compared with the bytes that it has before anything is allocated.
Each fault is a ValueError that says what is wrong, or an OSError of the system.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..common.text import printable
from .safetensors_header import Tensor, read_header

__all__ = ["Arrays", "npz_arrays", "safetensors_arrays"]

# Arrays by name, each to be read when it is called.
Arrays = dict[str, Callable[[], NDArray[Any]]]

# NumPy's types for those of the safetensors format that make sense here. A bfloat16 is the upper
# half of a float32.
SAFETENSORS_TYPES = {
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
    "BOOL": "|b1",
    **{f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "UI" for n in (1, 2, 4, 8)},
}
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 1  # bit of a member's flags

# No deflated stream grows by a larger factor; what a short one may have besides.
INFLATION, SLACK = 1032, 1 << 10
# Of one array: attention in float64 to as much would take days.
MOST_BYTES = 1 << 35
# An array without elements must not have other axes over which loops would never end.
MOST_EMPTY = 1 << 24
CHUNK = 1 << 24


def npz_arrays(path: Path) -> Arrays:
    """Return the arrays of a ``.npz`` file, by their names without ``.npy``.

    Raises
    ------
    ValueError
        If it is no such file.
    """
    with _faults(), path.open("rb") as stream:
        if stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            raise ValueError("it is a single .npy array")
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
    found: Arrays = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"it has {printable(name)!r} twice")
        found[name] = partial(_npz_member, path, member)
    return found


def safetensors_arrays(path: Path) -> Arrays:
    """Return the arrays of a ``.safetensors`` file; a bfloat16 becomes float32.

    Raises
    ------
    ValueError
        If the header is not that of such a file.
    """
    with path.open("rb") as stream:
        tensors = read_header(stream, path.stat().st_size)
    return {name: partial(_tensor, path, tensor) for name, tensor in tensors.items()}


@contextmanager
def _faults() -> Iterator[None]:
    """Turn what `zipfile` raises for damaged files into one kind of error."""
    damaged = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, OverflowError)
    # Of a header, which is a literal of Python.
    header = (RecursionError, MemoryError, SyntaxError, tokenize.TokenError, TypeError)
    try:
        yield
    except (*damaged, *header, NotImplementedError, RuntimeError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def _npz_member(path: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.flag_bits & ENCRYPTED:
        raise ValueError("is encrypted")
    if member.compress_type not in COMPRESSIONS:
        raise ValueError("is compressed by another method than deflate")
    if member.file_size > INFLATION * member.compress_size + SLACK:
        raise ValueError(f"says that {member.compress_size} bytes become {member.file_size}")
    with _faults(), zipfile.ZipFile(path) as archive, archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"is of version {version} of the .npy format")
        shape, is_fortran, dtype = HEADERS[version](stream)
        if dtype.kind not in "fiub" or dtype.subdtype is not None:
            hint = " (bfloat16? save it in a .safetensors file)" if dtype.kind == "V" else ""
            raise ValueError(f"has elements of type {dtype.str}, which are no numbers{hint}")
        nbytes = member.file_size - stream.tell()
        x = _filled(stream, shape, dtype, nbytes, "F" if is_fortran else "C")
        stream.read(1)  # at the end the checksum is looked at
    return x


def _tensor(path: Path, tensor: Tensor) -> NDArray[Any]:
    if tensor.dtype not in SAFETENSORS_TYPES:
        raise ValueError(f"has dtype {tensor.dtype}, of {[*SAFETENSORS_TYPES]}")
    dtype = np.dtype(SAFETENSORS_TYPES[tensor.dtype])
    with path.open("rb") as stream:
        stream.seek(tensor.start)
        x = _filled(stream, tensor.shape, dtype, tensor.end - tensor.start, "C")
    if tensor.dtype == "BF16":
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x


def _filled(
    stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int, order: Any
) -> NDArray[Any]:
    """Return an array of the next bytes of a file."""
    if any(n < 0 for n in shape) or prod(shape) * dtype.itemsize != nbytes:
        raise ValueError(f"has {nbytes} bytes, which do not fit shape {shape} of {dtype.name}")
    if nbytes > MOST_BYTES:
        raise ValueError(f"has {nbytes} bytes, of at most {MOST_BYTES}")
    if not nbytes and prod(max(n, 1) for n in shape) > MOST_EMPTY:
        raise ValueError(f"has shape {shape} and no elements")
    x = np.empty(prod(shape), dtype)
    rest = x.view(np.uint8).data
    while rest:
        # In parts: a member of an archive is read into memory of its own first.
        chunk = stream.read(min(len(rest), CHUNK))
        if not chunk:
            raise ValueError(f"ends {len(rest)} bytes before its shape does")
        rest[: len(chunk)] = chunk
        rest = rest[len(chunk) :]
    return x.reshape(shape, order=order)
