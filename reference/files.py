"""Q, K and V from a file: ``.npz`` as NumPy writes it, or ``.safetensors``."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from .arrays import Shape

__all__ = ["load"]

# Element types of the safetensors format that make sense here. A bfloat16 is the upper half of a
# float32.
SAFETENSORS_TYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


def load(
    path: str | Path,
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Read the arrays "q", "k" and "v" from a file.

    Parameters
    ----------
    path : str or Path
        A ``.npz`` or ``.safetensors`` file. Arrays are [batch, head, token, head_dim]; without the
        batch axis, one is added.

    Returns
    -------
    q : ndarray [batch, num_q_heads, seqlen_q, head_dim]
    k, v : ndarray [batch, num_kv_heads, seqlen_kv, head_dim]
        float16 stays float16; every other type becomes float32.

    Raises
    ------
    ArgumentError
        If there is no such file, it is of another kind or damaged, an array is missing or of a
        type that is not floating-point, or the arrays do not fit each other.
    """
    path = Path(path)
    readers = {".npz": _npz, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise ArgumentError("path", str(path), "a .npz or .safetensors file")
    if not path.is_file():
        raise ArgumentError("path", str(path), "an existing file")
    arrays = readers[path.suffix](path)
    q, k, v = (_checked(path, name, arrays) for name in ("q", "k", "v"))
    Shape.of(q.shape, k.shape, v.shape)
    return q, k, v


def _checked(path: Path, name: str, arrays: dict[str, NDArray[Any]]) -> NDArray[np.floating]:
    if name not in arrays:
        raise ArgumentError("path", str(path), f"a file with an array {name!r} (has {[*arrays]})")
    x = arrays[name]
    if x.dtype.kind != "f":
        raise ArgumentError(f"{name}.dtype", x.dtype.name, f"a floating-point type in {path}")
    if x.ndim not in (3, 4):
        raise ArgumentError(f"{name}.shape", x.shape, f"[batch,] head, token, head_dim in {path}")
    if x.dtype != np.float16:
        x = x.astype(np.float32)
    return x if x.ndim == 4 else x[None]


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in ("q", "k", "v")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ArgumentError("path", str(path), f"a readable .npz file ({error})") from error


def _safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Read the format directly: header length as 8 bytes, a JSON header, then the data."""
    data = path.read_bytes()
    arrays = {}
    try:
        size = int.from_bytes(data[:8], "little")
        header = dict(json.loads(data[8 : 8 + size]))
        body = memoryview(data)[8 + size :]
        for name in ("q", "k", "v"):
            if name not in header:
                continue
            kind, (start, end) = header[name]["dtype"], header[name]["data_offsets"]
            if kind not in SAFETENSORS_TYPES:
                raise ArgumentError(f"{name}.dtype", kind, f"one of {[*SAFETENSORS_TYPES]}")
            x = np.frombuffer(body[start:end], SAFETENSORS_TYPES[kind])
            if kind == "BF16":
                x = (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
            arrays[name] = x.reshape(header[name]["shape"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError("path", str(path), f"a readable .safetensors file ({error})") from error
    return arrays
