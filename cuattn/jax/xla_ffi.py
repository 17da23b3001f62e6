"""Functions in Python as handlers of XLA's foreign function interface, without a build.

XLA calls a handler with the address of a struct of C, the *call frame*: addresses of the buffers,
and functions of its own, one of which names the stream. `ctypes` reads such structs and makes a
function pointer of a Python function, so nothing has to be compiled. The structs here are those of
xla/ffi/api/c_api.h, a header that comes with jaxlib, up to the last member that is of use.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax

__all__ = ["Call", "Memory", "handler"]

_METADATA = 1  # XLA_FFI_Extension_Metadata: a call that only asks for the interface's version
_INVALID_ARGUMENT = 3
# XLA_FFI_DataType
_DTYPES = {1: "bool", 4: "int32", 10: "float16", 11: "float32", 16: "bfloat16"}
_STRING = 4  # XLA_FFI_AttrType


class Memory(NamedTuple):
    """A buffer of XLA's, contiguous; the address is one of a GPU if the call has a stream."""

    address: int
    shape: tuple[int, ...]
    dtype: str


class Call(NamedTuple):
    """One call of a handler, while it lasts.

    Attributes
    ----------
    given, results : list of Memory
        To read, and to write.
    texts : dict of str to str
        Attributes that are strings.
    stream : object with ``__cuda_stream__``
        Of use on a GPU.
    """

    given: list[Memory]
    results: list[Memory]
    texts: dict[str, str]
    stream: Any


def handler(function: Callable[[Call], None]) -> tuple[Any, Any]:
    """Return what `jax.ffi.register_ffi_target` takes, and what must live as long as the target.

    Parameters
    ----------
    function : callable
        What it raises becomes an error of JAX's with the same text.
    """

    def handle(pointer: Any) -> int | None:
        frame = pointer.contents
        if frame.extension and frame.extension.contents.base.type == _METADATA:
            version = frame.extension.contents.metadata.contents.version
            version.major, version.minor = _version()
            return None
        try:
            buffers = _memories(frame.args), _memories(frame.rets)
            function(Call(*buffers, _texts(frame.attrs), _Stream(frame)))
        except Exception as error:
            return _error(frame, error)
        return None

    pointer = _Handler(handle)
    return jax.ffi.pycapsule(ctypes.cast(pointer, c_void_p).value), pointer


def _memories(buffers: Any) -> list[Memory]:
    found = []
    for i in range(buffers.count):
        buffer = buffers.items[i].contents
        if buffer.dtype not in _DTYPES:
            raise TypeError(f"a buffer has a type other than {', '.join(_DTYPES.values())}")
        found.append(
            Memory(buffer.data or 0, tuple(buffer.dims[: buffer.rank]), _DTYPES[buffer.dtype])
        )
    return found


def _texts(attrs: Any) -> dict[str, str]:
    names = [_text(attrs.names[i].contents) for i in range(attrs.count)]
    return {
        name: _text(ctypes.cast(attrs.values[i], POINTER(_Bytes)).contents)
        for i, name in enumerate(names)
        if attrs.types[i] == _STRING
    }


def _text(span: Any) -> str:
    return ctypes.string_at(span.data, span.count).decode()


class _Stream:
    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __cuda_stream__(self) -> tuple[int, int]:
        context = self._frame.context
        args = _StreamGet(size=ctypes.sizeof(_StreamGet), context=context)
        if self._frame.api.contents.stream_get(ctypes.addressof(args)):
            raise RuntimeError("XLA has no stream for this call")
        return 0, args.stream or 0


def _error(frame: Any, error: Exception) -> int:
    text = f"{type(error).__name__}: {error}".encode()
    args = _ErrorCreate(size=ctypes.sizeof(_ErrorCreate), message=text, code=_INVALID_ARGUMENT)
    made: int = frame.api.contents.error_create(ctypes.addressof(args))
    return made


@cache
def _version() -> list[int]:
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text("utf-8")
    names = ("MAJOR", "MINOR")
    found = [re.search(rf"#define XLA_FFI_API_{name} (\d+)", header) for name in names]
    return [int(match[1]) for match in found if match]


# What every struct begins with.
_HEAD: Sequence[tuple[str, Any]] = [("size", c_size_t), ("extension", c_void_p)]


class _Version(Structure):
    _fields_ = [*_HEAD, ("major", c_int), ("minor", c_int)]


class _Metadata(Structure):
    _fields_ = [("size", c_size_t), ("version", _Version), ("traits", c_uint32)]


class _ExtensionBase(Structure):
    _fields_ = [("size", c_size_t), ("type", c_int), ("next", c_void_p)]


class _Extension(Structure):
    _fields_ = [("base", _ExtensionBase), ("metadata", POINTER(_Metadata))]


class _Buffer(Structure):
    _fields_ = [
        *_HEAD,
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    ]


class _Buffers(Structure):
    _fields_ = [
        *_HEAD,
        ("count", c_int64),
        ("types", c_void_p),
        ("items", POINTER(POINTER(_Buffer))),
    ]


class _Bytes(Structure):
    _fields_ = [("data", c_void_p), ("count", c_size_t)]


class _Attributes(Structure):
    _fields_ = [
        *_HEAD,
        ("count", c_int64),
        ("types", POINTER(c_int)),
        ("names", POINTER(POINTER(_Bytes))),
        ("values", POINTER(c_void_p)),
    ]


class _StreamGet(Structure):
    _fields_ = [*_HEAD, ("context", c_void_p), ("stream", c_void_p)]


class _ErrorCreate(Structure):
    _fields_ = [*_HEAD, ("message", c_char_p), ("code", c_int)]


_Function = ctypes.CFUNCTYPE(c_void_p, c_void_p)


class _Api(Structure):
    _fields_ = [
        *_HEAD,
        ("version", _Version),
        ("internal", c_void_p),
        ("error_create", _Function),
        ("error_message", c_void_p),
        ("error_destroy", c_void_p),
        ("handler_register", c_void_p),
        ("stream_get", _Function),
    ]


class _Frame(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("extension", POINTER(_Extension)),
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("args", _Buffers),
        ("rets", _Buffers),
        ("attrs", _Attributes),
    ]


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))
