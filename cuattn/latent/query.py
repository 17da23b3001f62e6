"""Tokens for a latent cache and queries to it, checked before anything is planned or written."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from ..arrays.view import Array
from ..errors import ArgumentError
from ..operands.operand import (
    DTYPES,
    Operand,
    array_operand,
    check_alignment,
    in_order,
    output_operand,
)
from ..operands.options import check_flag, checked_scale
from .format import LATENT, QUERY, ROPE, LatentGeometry

__all__ = ["LatentOptions", "LatentQuery", "token_operands"]

# Kernels count rows of all heads in 32-bit integers.
_MAX_ROWS = 2**31 - 1

_LAYOUTS = ("HND", "NHD")


class LatentOptions(NamedTuple):
    """The arguments of `LatentKVCache.attend` that are not arrays, as the caller gave them."""

    scale: Any
    is_causal: bool
    return_lse: bool
    layout: str


@dataclass(frozen=True)
class LatentQuery:
    """A call of `LatentKVCache.attend` whose arguments have been checked.

    Attributes
    ----------
    q : Operand
        Axes [batch, num_q_heads, query, 576] whatever the layout.
    softmax_scale : float
    is_causal, return_lse : bool
    layout : str
    device : tuple of int
    """

    q: Operand
    softmax_scale: float
    is_causal: bool
    return_lse: bool
    layout: str
    device: tuple[int, int]

    @classmethod
    def of(cls, geometry: LatentGeometry, q: Array, options: LatentOptions) -> LatentQuery:
        """Check everything but the output.

        Raises
        ------
        ArgumentError
            For a query that does not fit the cache, or options that make no sense.
        """
        layout = options.layout
        if not isinstance(layout, str) or layout not in _LAYOUTS:
            raise ArgumentError("layout", layout, f"one of {list(_LAYOUTS)}")
        check_flag("is_causal", options.is_causal)
        check_flag("return_lse", options.return_lse)
        _check_type("q", q)
        operand = array_operand(q, layout) if len(q.shape) == 4 else None
        if operand is None or (operand.shape[0], operand.shape[3]) != (geometry.batch, QUERY):
            axes = "num_q_heads, n" if layout == "HND" else "n, num_q_heads"
            expected = f"[{geometry.batch}, {axes}, {QUERY}], as the cache has it"
            raise ArgumentError("q.shape", q.shape, expected)
        if operand.heads * operand.tokens * QUERY > _MAX_ROWS:
            raise ArgumentError("q.shape", q.shape, f"of at most {_MAX_ROWS} elements")
        given = options.scale
        if isinstance(given, bool) or not isinstance(given, Real) or given == 0:
            expected = "a number above 0: that of the model, such as 192**-0.5 in DeepSeek-V3"
            raise ArgumentError("scale", given, expected)
        scale = checked_scale(options.scale, QUERY)
        flags = bool(options.is_causal), bool(options.return_lse)
        return cls(operand, scale, *flags, layout, q.device)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output in the caller's layout."""
        return in_order((*self.q.shape[:3], LATENT), self.layout)

    def output(self, out: Array) -> Operand:
        """Check the caller's output and return it as an operand.

        Raises
        ------
        ArgumentError
            If it is not as that of `attend` has to be.
        """
        of = f"q with {LATENT} channels"
        return output_operand(out, self.output_shape, self.q.dtype, self.device, self.layout, of)


def token_operands(
    geometry: LatentGeometry, latent: Array, rope: Array, is_packed: bool = False
) -> tuple[Operand, Operand]:
    """Check tokens that are to be appended, and return them with one head.

    Parameters
    ----------
    is_packed : bool
        Whether those of all sequences lie end to end: then they have a batch of 1.

    Raises
    ------
    ArgumentError
        For shapes, types and devices that are not those of the cache or of each other.
    """
    found = []
    for name, x, channels in (("latent", latent, LATENT), ("rope", rope, ROPE)):
        _check_type(name, x)
        batch = () if is_packed else (geometry.batch,)
        is_right = len(latent.shape) == len(batch) + 2
        wanted = (*batch, latent.shape[-2] if is_right else "n", channels)
        if x.shape != wanted:
            axes = ", ".join(map(str, wanted))
            why = "cu_seqlens_k is given" if is_packed else "the cache has it"
            raise ArgumentError(f"{name}.shape", x.shape, f"[{axes}], as {why}")
        shape, strides = ((1, *x.shape), (0, *x.strides)) if is_packed else (x.shape, x.strides)
        whole = x._replace(shape=(shape[0], 1, *shape[1:]), strides=(strides[0], 0, *strides[1:]))
        found.append(array_operand(whole, "HND"))
    if found[0].heads * found[0].tokens > _MAX_ROWS:
        raise ArgumentError("latent.shape", latent.shape, f"of at most {_MAX_ROWS} tokens")
    for what in ("dtype", "device"):
        if getattr(rope, what) != getattr(latent, what):
            expected = f"{getattr(latent, what)}, as latent has it"
            raise ArgumentError(f"rope.{what}", getattr(rope, what), expected)
    return found[0], found[1]


def _check_type(name: str, x: Array) -> None:
    if x.dtype not in DTYPES:
        raise ArgumentError(f"{name}.dtype", x.dtype, f"one of {list(DTYPES)}")
    check_alignment(name, x)
