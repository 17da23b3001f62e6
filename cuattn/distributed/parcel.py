"""K and V as bytes that travel: codes and scales one after the other, or arrays as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from ..errors import ArgumentError
from ..operands.layout import CodeLayout
from ..operands.quantized import QuantizedTensor
from ..quantize import quantize, quantize_kv
from ..reference.layout import LOG2_BIAS, unpack_pairs
from ..scheme import Scheme
from ..specs.attention import Scope
from ..specs.coding import Name, coding, stored_scope
from .arrays import copy_bytes, from_bytes, raw_bytes

__all__ = ["WIRES", "Carrier", "Wire"]

Wire: TypeAlias = Literal["int4", "input"] | None
WIRES = (None, *get_args(get_args(Wire)[0]))

# Sections begin at multiples: kernels load vectors of 16 bytes, and copies run along whole lines.
_ALIGNMENT = 128


class Section(NamedTuple):
    """An array of a parcel: of K or V, which part of it, and where."""

    operand: Name
    part: str
    shape: tuple[int, ...]
    dtype: str
    offset: int


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

    @property
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

    @property
    def sent(self) -> Scheme:
        """The scheme that K and V are quantized by."""
        return replace(self.attended, qk="int4", pv="int4") if self.wire == "int4" else self.scheme

    def nbytes(self, tokens: int) -> int:
        """Return the length of a parcel."""
        return max(_end(section) for section in self._sections(tokens))

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
        made: dict[Name, Any] = {"k": k, "v": v}
        coded = [name for name in made if self._is_coded(name)]
        if len(coded) == 2:
            made["k"], made["v"] = quantize_kv(k, v, scheme=self.sent, layout=self.layout)
        elif coded:
            name = coded[0]
            made[name] = quantize(made[name], operand=name, scheme=self.sent, layout=self.layout)
        for section in self._sections(tokens):
            x = made[section.operand]
            if isinstance(x, QuantizedTensor):
                x = getattr(x, section.part)
                x = x[:, :, :, 0] if self._is_derived(section) else x
            copy_bytes(raw_bytes(x, xp), into[section.offset : _end(section)])

    def unpack(self, parcel: Any, tokens: int, like: Any, xp: Any) -> tuple[Any, Any]:
        """Return K and V of a parcel as `cuattn.attention` takes them under `attended`.

        Parameters
        ----------
        parcel : array of uint8
            Whose memory they share, where nothing has to be worked out.
        tokens : int
        like : array
            Decides whether arrays that are not quantized are PyTorch's.
        xp : module
        """
        found: dict[Name, dict[str, Any]] = {"k": {}, "v": {}}
        for section in self._sections(tokens):
            x = parcel[section.offset : _end(section)]
            if section.part == "array":
                x = from_bytes(x, section.shape, section.dtype, like)
            else:
                x = from_bytes(x, section.shape, section.dtype, x)
                x = _with_logarithms(x, xp) if self._is_derived(section) else x
            found[section.operand][section.part] = x
        k, v = (self._operand(name, found, tokens) for name in ("k", "v"))
        return k, v

    def _operand(self, name: Any, found: dict[Name, dict[str, Any]], tokens: int) -> Any:
        parts = found[name]
        if "array" in parts:
            return parts["array"]
        codes = unpack_pairs(parts["codes"]) if self.wire == "int4" else parts["codes"]
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

    def _sections(self, tokens: int) -> Iterator[Section]:
        """Yield the arrays of a parcel in their order."""
        offset = 0
        for name in ("k", "v"):
            for part, shape, dtype in self._arrays(name, tokens):
                section = Section(name, part, shape, dtype, offset)
                yield section
                offset = -(-_end(section) // _ALIGNMENT) * _ALIGNMENT

    def _arrays(self, name: Name, tokens: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
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


def _end(section: Section) -> int:
    return section.offset + math.prod(section.shape) * _itemsize(section.dtype)


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else int(np.dtype(dtype).itemsize)


def _with_logarithms(scale: Any, xp: Any) -> Any:
    """Return scales of V's tokens with their logarithms and inverses, as kernels read them."""
    with np.errstate(all="ignore"):
        # NaN must not reach rows that do not see the token, as kernels_cu/quant has it.
        inverse = xp.where(scale == scale, 1.0 / scale, xp.zeros_like(scale))
        return xp.stack([scale, xp.log2(scale) + LOG2_BIAS, inverse], axis=3)
