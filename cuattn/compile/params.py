"""The layout of a kernel's argument struct, read from the header that declares it."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from ..common.sizes import round_up
from ..errors import CompileError
from .sources import sources

__all__ = ["TENSOR_MAP", "record"]

# How `record` spells the TensorMap of kernels_cu/numeric.cuh, and its alignment.
TENSOR_MAP = np.dtype("V128")
_TENSOR_MAP_ALIGNMENT = 64

# The names are those of kernels_cu/numeric.cuh.
_SCALARS = {"i64": "<i8", "i32": "<i4", "u32": "<u4", "f32": "<f4"}
_POINTER = "<u8"

_INCLUDE = re.compile(r'^#include "(.*)"$', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRUCT = re.compile(r"\bstruct\s+(\w+)\s*\{([^{}]*)\}\s*;")
_MEMBER = re.compile(r"(?:const\s+)?(\w+)(?:\s*(\*)\s*|\s+)(\w+)(?:\[(\d+)\])?$")


@cache
def record(struct_name: str, file: str = "params.cuh") -> np.dtype[np.void]:
    """Return the NumPy dtype whose bytes are those of a struct in kernels_cu/.

    Parameters
    ----------
    struct_name : str
        A struct whose members are pointers (as uint64), numbers, tensor maps (as `TENSOR_MAP`),
        structs of the same kind, and arrays of such structs.
    file : str, optional
        Where it is declared, relative to kernels_cu/. Structs that it has as members may be in
        files that this one includes.

    Returns
    -------
    numpy.dtype
        Offsets and size follow C's rules of alignment.

    Raises
    ------
    CompileError
        If there is no such struct, or it has a member that is not understood.
    """
    return _parse(struct_name, file, sources().get(file, ""))


def _parse(struct_name: str, file: str, text: str) -> np.dtype[np.void]:
    return _layout(struct_name, file, _structs(text))[0]


def _structs(text: str) -> dict[str, str]:
    """Return the bodies of the structs of a file, and of the files that it includes, by name."""
    found: dict[str, str] = {}
    for name in _INCLUDE.findall(text):
        found |= _structs(sources()[name])
    return found | dict(_STRUCT.findall(_COMMENT.sub("", text)))


def _layout(name: str, file: str, bodies: dict[str, str]) -> tuple[np.dtype[np.void], int]:
    """Dtype of a struct, and its alignment in bytes."""
    if name not in bodies:
        raise CompileError(f"{file} declares no plain struct {name}")
    names: list[str] = []
    formats: list[np.dtype[np.void] | str] = []
    offsets: list[int] = []
    end, strictest = 0, 1
    for line in filter(None, map(str.strip, bodies[name].split(";"))):
        member = _MEMBER.match(line)
        # Arrays are of structs.
        if member is None or (member[4] and (member[2] or member[1] not in bodies)):
            raise CompileError(f"{file}: member of {name} not understood: {line!r}")
        kind, star, label, length = member.groups()
        form: np.dtype[np.void] | str
        if star or kind in _SCALARS:
            form = _POINTER if star else _SCALARS[kind]
            alignment = np.dtype(form).itemsize
        elif kind == "TensorMap":
            form, alignment = TENSOR_MAP, _TENSOR_MAP_ALIGNMENT
        else:
            form, alignment = _layout(kind, file, bodies)
            form = np.dtype((form, int(length))) if length else form
        offset = round_up(end, alignment)
        names.append(label)
        formats.append(form)
        offsets.append(offset)
        end = offset + np.dtype(form).itemsize
        strictest = max(strictest, alignment)
    layout = {
        "names": names,
        "formats": formats,
        "offsets": offsets,
        "itemsize": round_up(end, strictest),
    }
    return np.dtype(layout), strictest  # type: ignore[call-overload]
