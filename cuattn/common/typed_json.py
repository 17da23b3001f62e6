"""JSON data as dataclasses, with every field's presence and type checked, and files of it."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import ArgumentError
from .output_files import Target, write_text
from .text import printable

__all__ = ["ADDED", "finite", "read", "typed", "write"]

# Metadata of a dataclass's field that older files lack: its default stands for it then.
ADDED = {"added": True}

# Of a file: the largest that a program of this project writes has less than 2 MB.
MOST_BYTES = 1 << 28


def read(path: Path, kind: Any, file: str = "a JSON file") -> Any:
    """Return what a file has as an instance of `kind`.

    Parameters
    ----------
    path : Path
    kind : type
        As for `typed`.
    file : str
        What it has to be, for the error.

    Raises
    ------
    ArgumentError
        If the file cannot be read or is not JSON, or a field is missing, unknown or of another
        type; names the field.
    """
    name = printable(path.name)
    try:
        data = _parsed(path)
    except (OSError, ValueError) as error:  # the latter of what is not UTF-8, too
        reason = getattr(error, "strerror", None) or str(error)
        raise ArgumentError(name, reason, file) from None
    try:
        return typed(data, kind, name)
    except ArgumentError as error:
        if error.argument == name:  # not a field of it, so of some other program
            raise ArgumentError(name, error.value, f"{file}, {error.expected}") from None
        raise


def _parsed(path: Path) -> Any:
    """Return what a file has, in bounded memory and time.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is not JSON as the standard has it.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    if path.exists() and not path.is_file():  # a FIFO might never end
        raise ValueError("not a regular file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
        # Half of a surrogate pair, which can be escaped, is no text that can be shown or written.
        json.dumps(data, ensure_ascii=False).encode()
        return data
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write(data: Any, target: Target) -> None:
    """Write JSON's own types, whole or not at all; a figure that is not finite becomes null.

    Parameters
    ----------
    data : object
    target : Path or text stream
        A path is written as `cuattn.common.output_files.open_whole` does.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    write_text(target, json.dumps(finite(data), indent=1, allow_nan=False) + "\n")


def typed(value: Any, kind: Any, where: str) -> Any:
    """Return what `json.loads` gave as an instance of `kind`.

    Parameters
    ----------
    value : object
        Of JSON's own types.
    kind : type
        str, int, float, bool, ``Literal[...]`` of these, ``list[...]``, ``dict[str, ...]``, a
        dataclass whose fields are such types, or one of these ``| None``. Fields with the metadata
        `ADDED` may be missing.
    where : str
        Place of the value, named in the error.

    Raises
    ------
    ArgumentError
        If a field is missing or unknown, a value is of another type, or a dataclass refuses it.
    """
    if isinstance(kind, UnionType):
        if value is None:
            return None
        (kind,) = (option for option in get_args(kind) if option is not type(None))
    if is_dataclass(kind):
        return _fields(value, kind, where)
    if get_origin(kind) is Literal:
        options = get_args(kind)
        if not any(value == option and type(value) is type(option) for option in options):
            raise ArgumentError(where, value, f"one of {options}")
        return value
    if get_origin(kind) is list:
        items = typed(value, list, where)
        return [typed(x, get_args(kind)[0], f"{where}[{i}]") for i, x in enumerate(items)]
    if get_origin(kind) is dict:
        pairs = typed(value, dict, where)
        return {key: typed(x, get_args(kind)[1], f"{where}.{key}") for key, x in pairs.items()}
    if kind is float:
        return _float(value, where)
    # Not isinstance: True would pass for an int.
    if type(value) is not kind:
        raise ArgumentError(where, value, f"of type {kind.__name__}")
    return value


def _float(value: Any, where: str) -> float:
    if type(value) not in (int, float):
        raise ArgumentError(where, value, "of type float")
    try:
        x = float(value)
    except OverflowError:
        x = math.inf
    if not math.isfinite(x):  # such as 1e999, which Python reads as infinity
        raise ArgumentError(where, value, "a finite number")
    return x


def finite(value: Any) -> Any:
    """Return the same data with null for every NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fields(value: Any, kind: Any, where: str) -> Any:
    given = typed(value, dict, where)
    wanted = [f.name for f in fields(kind)]
    needed = {f.name for f in fields(kind) if not f.metadata.get("added")}
    if not needed <= given.keys() <= set(wanted):
        raise ArgumentError(where, sorted(given), f"an object with the keys {sorted(wanted)}")
    hints = get_type_hints(kind)
    values = {
        name: typed(given[name], hints[name], f"{where}.{name}") for name in wanted if name in given
    }
    try:
        return kind(**values)
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error.argument}", error.value, error.expected) from None
