"""Batches of sequences of different lengths, which only the device knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from ..arrays.view import Array
from ..errors import ArgumentError
from ..specs.coding import Name
from ..specs.quantize import TOKEN_PAD
from .operand import Coded, with_batch

__all__ = [
    "LENGTH_NAMES",
    "NO_LENGTHS",
    "LengthArrays",
    "LengthName",
    "Lengths",
    "Limits",
    "array_of_tokens",
    "packed",
]

LengthName: TypeAlias = Literal["cu_seqlens_q", "cu_seqlens_k", "seqused_k"]
# The arrays of lengths that a call may have.
LENGTH_NAMES: tuple[LengthName, ...] = get_args(LengthName)

# Kernels count CTAs of all heads in 32-bit integers: none has fewer tokens than these.
_FEWEST_TOKENS = 32
_MAX_CTAS = 2**31 - 1


class LengthArrays(NamedTuple):
    """What the arrays of lengths of a call are; None of those that it has not."""

    cu_seqlens_q: Array | None = None
    cu_seqlens_k: Array | None = None
    seqused_k: Array | None = None

    @classmethod
    def of(cls, given: Mapping[str, Array]) -> LengthArrays:
        """Take those among a call's arrays by their names."""
        return cls(*map(given.get, LENGTH_NAMES))


NO_LENGTHS = LengthArrays()


class Limits(NamedTuple):
    """The arguments `max_seqlen_q` and `max_seqlen_k` as the caller gave them."""

    q: int | None = None
    k: int | None = None


@dataclass(frozen=True)
class Lengths:
    """What the host knows of sequences whose lengths are arrays of the device.

    Attributes
    ----------
    batch : int
    packed : bool
        Whether they lie end to end, as `cu_seqlens_q` and `cu_seqlens_k` say. Else each has a slot
        of its own.
    has_used : bool
        Whether `seqused_k` says how many keys of each count.
    max_seqlen_q, max_seqlen_k : int
        No sequence is longer.
    total_k : int
        Tokens of K: of all sequences, or of a slot.
    """

    batch: int
    packed: bool
    has_used: bool
    max_seqlen_q: int
    max_seqlen_k: int
    total_k: int

    @classmethod
    def of(
        cls,
        arrays: LengthArrays,
        limits: Limits,
        shapes: Mapping[Name, tuple[int, ...]],
        device: tuple[int, int],
    ) -> Lengths | None:
        """Check what a call says of lengths; None if it says nothing.

        Parameters
        ----------
        arrays : LengthArrays
        limits : Limits
        shapes : mapping of {"q", "k", "v"} to tuple of int
            Axes [batch, head, token, head_dim]; the batch is 1 if sequences lie end to end.
        device : tuple of int
            Where the arrays have to be.

        Raises
        ------
        ArgumentError
            If one has another shape, type or place, is given without another one, or makes no
            sense.
        """
        is_packed = packed(arrays)
        for name, limit in zip(("max_seqlen_q", "max_seqlen_k"), limits, strict=True):
            _check_limit(name, limit, is_packed)
        if arrays == NO_LENGTHS:
            return None
        for name, x in zip(LENGTH_NAMES, arrays, strict=True):
            if x is not None:
                _check(name, x, device)
        batch = shapes["q"][0]
        bounds_q, bounds_k, used = arrays
        if bounds_q is not None and bounds_k is not None:
            batch = _batch_of(bounds_q, bounds_k)
        if used is not None and used.shape != (batch,):
            raise ArgumentError("seqused_k.shape", used.shape, f"({batch},), one for each sequence")
        total_q, total_k = shapes["q"][2], shapes["k"][2]
        found = cls(
            batch=batch,
            packed=is_packed,
            has_used=used is not None,
            max_seqlen_q=total_q if limits.q is None else min(int(limits.q), total_q),
            max_seqlen_k=total_k if limits.k is None else min(int(limits.k), total_k),
            total_k=total_k,
        )
        found._check_sizes(shapes)
        return found

    @property
    def key_pitch(self) -> int:
        """Tokens of a head of K or V in memory of our own that has them in blocks.

        Blocks of 128 do not straddle sequences: kernels_cu/sequences.cuh says where each begins.
        """
        if not self.packed:
            return self.total_k
        return (self.total_k // TOKEN_PAD + self.batch) * TOKEN_PAD

    def _check_sizes(self, shapes: Mapping[Name, tuple[int, ...]]) -> None:
        if not self.packed:
            return
        if shapes["k"][1] * self.key_pitch > _MAX_CTAS:
            expected = f"of fewer sequences: num_kv_heads * (total_k + 128 * batch) <= {_MAX_CTAS}"
            raise ArgumentError("cu_seqlens_k.shape", (self.batch + 1,), expected)
        sides: tuple[tuple[Literal["q", "k"], int], ...] = (
            ("q", self.max_seqlen_q),
            ("k", self.max_seqlen_k),
        )
        for name, most in sides:
            if self.batch * shapes[name][1] * (most // _FEWEST_TOKENS + 1) > _MAX_CTAS:
                expected = f"such that batch * heads * max_seqlen_{name} / 32 <= {_MAX_CTAS}"
                raise ArgumentError(f"max_seqlen_{name}", most, expected)


def packed(arrays: LengthArrays) -> bool:
    """Whether a call says that its sequences lie end to end.

    Raises
    ------
    ArgumentError
        If it says so of Q or of K only.
    """
    missing = [x is None for x in arrays[:2]]
    if any(missing) and not all(missing):
        name, other = LENGTH_NAMES[:2] if missing[0] else LENGTH_NAMES[1::-1]
        raise ArgumentError(name, None, f"given, as {other} is")
    return not missing[0]


def array_of_tokens(name: Name, x: Array | Coded, bounds: str = "cu_seqlens_q") -> Array:
    """Check an array [token, head, head_dim], and return it as one with a batch of 1.

    Parameters
    ----------
    bounds : str
        The argument that says of it that it is one.

    Raises
    ------
    ArgumentError
        If it is none, or quantized already.
    """
    if isinstance(x, Coded):
        raise ArgumentError(name, "a QuantizedTensor", f"an array, as {bounds} is given")
    if len(x.shape) != 3:
        expected = f"[token, head, head_dim], as {bounds} is given"
        raise ArgumentError(f"{name}.shape", x.shape, expected)
    return with_batch(x)


def _batch_of(q: Array, k: Array) -> int:
    if len(q.shape) != 1 or not q.shape[0]:
        raise ArgumentError("cu_seqlens_q.shape", q.shape, "(batch + 1,)")
    if k.shape != q.shape:
        raise ArgumentError("cu_seqlens_k.shape", k.shape, f"{q.shape}, the shape of cu_seqlens_q")
    return q.shape[0] - 1


def _check(name: str, x: Array, device: tuple[int, int]) -> None:
    if x.dtype != "int32":
        raise ArgumentError(f"{name}.dtype", x.dtype, "int32")
    if x.device != device:
        raise ArgumentError(f"{name}.device", x.device, f"{device}, the device of q")
    if x.misalignment % 4 and all(x.shape):
        raise ArgumentError(name, "an odd address", "at a multiple of 4 bytes")
    if len(x.shape) == 1 and x.shape[0] > 1 and x.strides != (1,):
        raise ArgumentError(f"{name}.strides", x.strides, "(1,): a contiguous array")


def _check_limit(name: str, limit: object, is_packed: bool) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 0:
        raise ArgumentError(name, limit, "a number of tokens, or None")
    if not is_packed:
        raise ArgumentError(name, limit, "None without cu_seqlens_q and cu_seqlens_k")
