"""K and V as bytes that travel: codes and scales one after the other, or arrays as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from ..errors import ArgumentError
from ..operands.layout import CodeLayout
from ..operands.quantized import QuantizedTensor
from ..quantize import quantize_into
from ..reference.layout import LOG2_BIAS
from ..scheme import Scheme
from ..specs.attention import Scope
from ..specs.coding import Name, coding, stored_scope
from .arrays import copy_bytes, from_bytes, is_contiguous, is_writable, raw_bytes
from .first_keys import first_keys
from .four_bits import unpacked

__all__ = ["WIRES", "Carrier", "Wire"]

Wire: TypeAlias = Literal["int4", "input"] | None
WIRES = (None, *get_args(get_args(Wire)[0]))

# Sections begin at multiples: kernels load vectors of 16 bytes, and copies run along whole lines.
_ALIGNMENT = 128

# Calls on so many kinds of arrays are remembered.
_REMEMBERED = 256


class Section(NamedTuple):
    """An array of a parcel: of K or V, which part of it, and from which byte to which."""

    operand: Name
    part: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    end: int


@dataclass(frozen=True)
class Carrier:
    """How K and V of one call travel, whatever their lengths.

    Attributes
    ----------
    scheme : Scheme
        Of the call.
    wire : {None, "int4", "input"}
    batch, heads, head_dim, head_dim_v : int
        Of K and V.
    dtype : str
        Of the arrays.
    layout : {"HND", "NHD"}
    """

    scheme: Scheme
    wire: Wire
    batch: int
    heads: int
    head_dim: int
    head_dim_v: int
    dtype: str
    layout: str

    def __post_init__(self) -> None:
        if self.wire not in WIRES:
            raise ArgumentError("wire", self.wire, f"one of {WIRES}")
        if self.wire == "int4" and (self.scheme.qk, self.scheme.pv) != ("int8", "int8"):
            expected = f"None with scheme {self.scheme.name!r}, whose products are not of INT8"
            raise ArgumentError("wire", self.wire, expected)

    @cached_property
    def attended(self) -> Scheme:
        """The scheme that attends: with INT4 on the wire one of INT8 with scales of tokens."""
        scheme = self.scheme
        if self.wire != "int4":
            return scheme
        return Scheme(
            f"{scheme.name}, K and V of 4 bits",
            smooth_k=scheme.smooth_k,
            smooth_v=scheme.smooth_v,
            rotate=scheme.rotate,
        )

    @cached_property
    def sent(self) -> Scheme:
        """The scheme that K and V are quantized by."""
        return replace(self.attended, qk="int4", pv="int4") if self.wire == "int4" else self.scheme

    def nbytes(self, tokens: int) -> int:
        """Return the length of a parcel."""
        return max(section.end for section in _sections(self, tokens))

    def pack(self, k: Any, v: Any, into: Any, xp: Any) -> None:
        """Quantize K and V, if that is to be, and write them.

        Parameters
        ----------
        k, v : array
            In the caller's layout, of this many heads and any number of tokens.
        into : array of uint8
            Of the parcel's length.
        xp : module
            numpy or cupy.
        """
        tokens = int(k.shape[2 if self.layout == "HND" else 1])
        given: dict[Name, Any] = {"k": k, "v": v}
        places: dict[tuple[Name, str], Any] = {}
        derived: Any = None
        for section in _sections(self, tokens):
            place = into[section.offset : section.end]
            if section.part == "array":
                x = given.pop(section.operand)
                if is_contiguous(x) or not is_writable(x):
                    copy_bytes(raw_bytes(x, xp), place)
                else:  # once, as it lies
                    from_bytes(place, section.shape, section.dtype, x)[...] = x
                continue
            array = from_bytes(place, section.shape, section.dtype, place)
            if self._is_derived(section):
                derived = array
            else:
                places[section.operand, section.part] = array
        if given:
            made = quantize_into(given, places, self.sent, self.layout)
            if derived is not None:
                derived[...] = made["v"].scale[:, :, :, 0]

    def unpack(self, parcel: Any, tokens: int, keys: int, like: Any, xp: Any) -> tuple[Any, Any]:
        """Return K and V of a parcel as `cuattn.attention` takes them under `attended`.

        Parameters
        ----------
        parcel : array of uint8
            Whose memory they share, where nothing has to be worked out.
        tokens : int
            Of the parcel.
        keys : int
            How many of them are wanted, from the first one on. Codes of fewer than all are those of
            all, whole blocks, and copied.
        like : array
            Decides whether arrays that are not quantized are PyTorch's.
        xp : module
        """
        found: dict[Name, dict[str, Any]] = {"k": {}, "v": {}}
        for section in _sections(self, tokens):
            x = parcel[section.offset : section.end]
            if section.part == "array":
                x = from_bytes(x, section.shape, section.dtype, like)
            else:
                x = from_bytes(x, section.shape, section.dtype, x)
                x = _with_logarithms(x, xp) if self._is_derived(section) else x
            found[section.operand][section.part] = x
        k, v = (self._operand(name, found, tokens) for name in ("k", "v"))
        return (k, v) if keys == tokens else first_keys(k, v, keys, self.sent, self.layout)

    def _operand(self, name: Any, found: dict[Name, dict[str, Any]], tokens: int) -> Any:
        parts = found[name]
        if "array" in parts:
            return parts["array"]
        codes = unpacked(parts["codes"]) if self.wire == "int4" else parts["codes"]
        return QuantizedTensor(
            codes,
            parts["scale"],
            parts.get("vector"),
            name,
            self.attended,
            self._shape(name, tokens),
            self.dtype,
            found["k"].get("order"),
        )

    def arrays(self, name: Name, tokens: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Yield what of K or V travels: which part, its shape and its type."""
        shape = self._shape(name, tokens)
        if not self._is_coded(name):
            batch, heads, _, head_dim = shape
            in_order = shape if self.layout == "HND" else (batch, tokens, heads, head_dim)
            yield "array", in_order, self.dtype
            return
        layout = CodeLayout.of(self.sent, name, shape, packed=True)
        yield "codes", layout.data, layout.dtype
        scale = layout.scale
        if name == "v" and stored_scope(self.sent, "v") is Scope.token:
            scale = (*scale[:3], scale[4])
        yield "scale", scale, "float32"
        if layout.smoothed:
            yield "vector", layout.vector, "float32"
        if layout.order and name == "k":
            yield "order", layout.order, "uint8"

    def _shape(self, name: Name, tokens: int) -> tuple[int, ...]:
        return self.batch, self.heads, tokens, self.head_dim if name == "k" else self.head_dim_v

    def _is_coded(self, name: Name) -> bool:
        return self.wire != "input" and coding(self.sent, name) is not None

    def _is_derived(self, section: Section) -> bool:
        """Whether logarithm and inverse of scales of V's tokens are to be worked out."""
        of_tokens = stored_scope(self.sent, "v") is Scope.token
        return (section.operand, section.part) == ("v", "scale") and of_tokens


@lru_cache(_REMEMBERED)
def _sections(carrier: Carrier, tokens: int) -> tuple[Section, ...]:
    """Return the arrays of a parcel in their order."""
    found: list[Section] = []
    offset = 0
    names: tuple[Name, Name] = ("k", "v")
    for name in names:
        for part, shape, dtype in carrier.arrays(name, tokens):
            end = offset + math.prod(shape) * _itemsize(dtype)
            found.append(Section(name, part, shape, dtype, offset, end))
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
    return tuple(found)


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else int(np.dtype(dtype).itemsize)


def _with_logarithms(scale: Any, xp: Any) -> Any:
    """Return scales of V's tokens with their logarithms and inverses, as kernels read them."""
    with np.errstate(all="ignore"):
        # NaN must not reach rows that do not see the token, as kernels_cu/quant has it.
        inverse = xp.where(scale == scale, 1.0 / scale, xp.zeros_like(scale))
        return xp.stack([scale, xp.log2(scale) + LOG2_BIAS, inverse], axis=3)
