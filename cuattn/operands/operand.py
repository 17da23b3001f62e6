"""One argument of a call, checked by itself, with its axes in one order whatever the layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..arrays.view import Array
from ..errors import ArgumentError
from ..reference.layout import HEAD_DIMS, WIDE_HEAD_DIMS, pad_head_dim
from ..scheme import Scheme
from ..specs.attention import Type
from ..specs.coding import Name, coding
from ..specs.mods import ELEMENTS

__all__ = [
    "DTYPES",
    "Coded",
    "Operand",
    "array_operand",
    "check_alignment",
    "compact",
    "compact_strides",
    "dtype_name",
    "in_order",
    "itemsize",
    "operand_of",
    "output_operand",
    "takes_pairs",
    "with_batch",
]


DTYPES = {"float16": Type.fp16, "bfloat16": Type.bf16, "float32": Type.fp32}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_LAYOUTS = {"HND": "[batch, head, token, head_dim]", "NHD": "[batch, token, head, head_dim]"}
_MAX_HEAD_DIM = WIDE_HEAD_DIMS[-1]

# Kernels count tokens, and rows of all heads, in 32-bit integers and round up to whole tiles.
_MAX_TOKENS = 2**30
_MAX_ROWS = 2**31 - 1
# Heads of K are CTAs along the second axis of a grid.
_MAX_KV_HEADS = 2**16 - 1
# Of arrays that are attended as they are: inside a tile a thread's first row, at most the 64th, is
# addressed with 32 bits.
_MAX_ROW_STRIDE = 2**26


class Coded(NamedTuple):
    """The same of an operand that is quantized already, axes [batch, head, token, head_dim]."""

    shape: tuple[int, ...]
    dtype: str
    device: tuple[int, int]
    operand: str
    scheme: str
    coding: tuple[object, ...] | None


@dataclass(frozen=True)
class Operand:
    """Q, K, V or the output.

    Parameters
    ----------
    shape, strides : tuple of int
        Axes [batch, head, token, head_dim] whatever the layout; strides count elements.
    dtype : Type
    aligned : bool
        Whether every row begins at a multiple of 16 bytes.
    coded : bool
        Whether it is quantized already; then it has no strides.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Type
    aligned: bool
    coded: bool = False

    @property
    def direct(self) -> bool:
        """Whether the attention kernels can read it where it is, if they take its type."""
        return self.aligned and 0 <= self.strides[2] * self.dtype.nbytes <= _MAX_ROW_STRIDE

    @property
    def heads(self) -> int:
        """Heads of all batches."""
        return self.shape[0] * self.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens of one head."""
        return self.shape[2]


def operand_of(name: Name, x: Array | Coded, scheme: Scheme, layout: str) -> Operand:
    """Check one operand by itself.

    Raises
    ------
    ArgumentError
        For a shape, type or size that no kernel takes, or an operand quantized in another way.
    """
    if not isinstance(layout, str) or layout not in _LAYOUTS:
        raise ArgumentError("layout", layout, f"one of {list(_LAYOUTS)}")
    if isinstance(x, Coded):
        if x.operand != name or x.coding != coding(scheme, name):
            found = f"{x.operand} quantized for scheme {x.scheme!r}"
            raise ArgumentError(name, found, f"{name} as scheme {scheme.name!r} has it")
        return Operand(x.shape, (), DTYPES[x.dtype], aligned=True, coded=True)
    if len(x.shape) != 4:
        raise ArgumentError(f"{name}.shape", x.shape, f"{_LAYOUTS[layout]} for layout {layout!r}")
    if x.dtype not in DTYPES:
        raise ArgumentError(f"{name}.dtype", x.dtype, f"one of {list(DTYPES)}")
    check_alignment(name, x)
    operand = array_operand(x, layout)
    head_dim = operand.shape[3]
    if head_dim % 8 or not 8 <= head_dim <= _MAX_HEAD_DIM:
        expected = f"a multiple of 8 from 8 to {_MAX_HEAD_DIM}"
        raise ArgumentError("head_dim", head_dim, f"{expected} (the last axis of {name} {x.shape})")
    if name != "v" and scheme.k_scope == "group" and head_dim % scheme.qk_group:
        raise ArgumentError("head_dim", head_dim, f"whole groups of {scheme.qk_group} channels")
    if operand.tokens > _MAX_TOKENS:
        raise ArgumentError(f"{name}.shape", x.shape, f"of at most {_MAX_TOKENS} tokens")
    if name != "q" and operand.shape[1] > _MAX_KV_HEADS:
        raise ArgumentError(f"{name}.shape", x.shape, f"of at most {_MAX_KV_HEADS} heads")
    channels = max(HEAD_DIMS[-1], pad_head_dim(head_dim))
    if operand.heads * max(operand.tokens, channels) > _MAX_ROWS:
        expected = f"such that batch * heads * max(tokens, {channels}) <= {_MAX_ROWS}"
        raise ArgumentError(f"{name}.shape", x.shape, expected)
    return operand


def check_alignment(name: str, x: Array) -> None:
    """Check that the elements of an array of a known type lie at multiples of their size.

    Raises
    ------
    ArgumentError
        If they do not: a GPU that reads one loses the CUDA context of the process.
    """
    size = DTYPES[x.dtype].nbytes
    if x.misalignment % size and all(x.shape):
        found = f"an address that is {x.misalignment % size} more than one"
        raise ArgumentError(name, found, f"at a multiple of {size} bytes, the size of its elements")


def with_batch(x: Array) -> Array:
    """Return an array [token, head, head_dim] as one of layout "NHD" with a batch of 1."""
    return x._replace(shape=(1, *x.shape), strides=(0, *x.strides))


def array_operand(x: Array, layout: str) -> Operand:
    """Describe an array of four axes and a known type, with no further check."""
    dtype = DTYPES[x.dtype]
    shape = in_order(x.shape, layout)
    strides = in_order(x.strides, layout)
    steps = [step for step, n in zip(strides[:3], shape[:3], strict=True) if n > 1]
    aligned = not (x.misalignment or any(step * dtype.nbytes % 16 for step in steps))
    return Operand(shape, strides, dtype, aligned)


def compact(shape: tuple[int, ...], dtype: Type) -> Operand:
    """Describe a contiguous array [batch, head, token, head_dim] of our own."""
    return Operand(shape, compact_strides(shape), dtype, True)


def compact_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous array in elements."""
    strides = [1]
    for n in reversed(shape[1:]):
        strides.append(strides[-1] * n)
    return tuple(reversed(strides))


def itemsize(dtype: str) -> int:
    """Return the bytes of an element of any array that a call may have, masks and lengths too."""
    return ELEMENTS[dtype][1]


def dtype_name(dtype: Type) -> str:
    """Return NumPy's name of the type of an array."""
    return _DTYPE_NAMES[dtype]


def output_operand(
    out: Array, shape: tuple[int, ...], dtype: Type, device: tuple[int, int], layout: str, of: str
) -> Operand:
    """Check a caller's output and return it as an operand.

    Parameters
    ----------
    out : Array
    shape : tuple of int
        That it has to have, in the caller's layout.
    dtype : Type
    device : tuple of int
    layout : str
    of : str
        Whose these are, for the errors.

    Raises
    ------
    ArgumentError
        If it has others, or elements share memory or lie at odd addresses.
    """
    if out.shape != shape:
        raise ArgumentError("out.shape", out.shape, f"{shape}, the shape of {of}")
    wanted = dtype_name(dtype)
    if out.dtype != wanted:
        raise ArgumentError("out.dtype", out.dtype, f"{wanted}, the dtype of {of}")
    if out.device != device:
        raise ArgumentError("out.device", out.device, f"{device}, the device of {of}")
    check_alignment("out", out)
    extent = 1
    for stride, n in sorted(zip(map(abs, out.strides), out.shape, strict=True)):
        if n > 1 and stride < extent and all(out.shape):
            raise ArgumentError("out.strides", out.strides, "those of distinct elements")
        extent += stride * (n - 1)
    if len(shape) == 3:
        return array_operand(with_batch(out), "NHD")
    return array_operand(out, layout)


def takes_pairs(out: Operand, misalignment: int) -> bool:
    """Whether kernels, which store two channels at a time, can write to an array."""
    steps = [step for step, n in zip(out.strides[:3], out.shape[:3], strict=True) if n > 1]
    in_pairs = not any(step % 2 for step in steps) and not misalignment % (2 * out.dtype.nbytes)
    return out.strides[3] == 1 and in_pairs


def in_order(axes: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Between the caller's order of axes and [batch, head, token, head_dim], either way."""
    return axes if layout == "HND" else (axes[0], axes[2], axes[1], axes[3])
