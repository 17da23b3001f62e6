"""The header of a file of the safetensors format, with the checks that its own library makes.

The format: the header's length in 8 bytes (little endian), the header in JSON, then the elements.
Read here rather than by the library, because NumPy has no bfloat16 and the library is optional.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

__all__ = ["Tensor", "read_header"]

# As the library: a longer header is an error.
MOST_HEADER_BYTES = 100_000_000
# As NumPy: the product of the lengths in a header as long as that would take hours.
MOST_AXES = 64

# Bits of an element.
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies.

    Attributes
    ----------
    dtype : str
        As the format names it, such as "BF16".
    shape : tuple of int
    start, end : int
        In bytes, from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(stream: BinaryIO, size: int) -> dict[str, Tensor]:
    """Return the tensors of a file by name, in the order in which they lie.

    Parameters
    ----------
    stream : binary file
        At its beginning.
    size : int
        Bytes of the file.

    Raises
    ------
    ValueError
        If the header is no header; names the tensor that is wrong.
    """
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > min(MOST_HEADER_BYTES, size - 8):
        raise ValueError("the header is longer than the file or than the format allows")
    begun = 8 + length
    try:
        entries = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("the header is nested too deeply") from None
    if not isinstance(entries, dict):
        raise ValueError("the header is not an object of JSON")
    entries.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry, begun) for name, entry in entries.items()}
    ordered = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
    end = begun
    for name, tensor in ordered:
        if tensor.start != end:
            raise ValueError(f"tensor {name!r} does not begin where the one before it ends")
        end = tensor.end
    if end != size:
        raise ValueError(f"the tensors end at byte {end} of {size}")
    return dict(ordered)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the header has a name twice")
    return found


def _tensor(name: str, entry: Any, begun: int) -> Tensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"tensor {name!r} lacks a dtype, a shape or two offsets") from None
    if not isinstance(shape, list) or not all(map(_is_size, [*shape, start, end])):
        raise ValueError(f"tensor {name!r} has a shape or offsets that are no sizes")
    if len(shape) > MOST_AXES:
        raise ValueError(f"tensor {name!r} has {len(shape)} axes, of at most {MOST_AXES}")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"tensor {name!r} has a dtype that the format does not know")
    if 8 * (end - start) != prod(shape) * BITS[dtype]:
        raise ValueError(f"tensor {name!r} has offsets that do not fit its shape and dtype")
    return Tensor(dtype, tuple(shape), begun + start, begun + end)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
