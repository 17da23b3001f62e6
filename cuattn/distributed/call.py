"""One call on every rank: its arguments, checked, and which tokens each rank has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..arrays.caller import Caller, device_of, on_device
from ..arrays.view import CUDA, cupy_module
from ..attention import attention
from ..common.sizes import round_up
from ..errors import ArgumentError, MismatchError
from ..operands.options import check_flag, checked_scale
from ..operands.scores import checked_softcap, checked_window
from ..presets import resolve
from ..scheme import Scheme
from .agreement import described
from .arrays import dtype_of, rows
from .parcel import Carrier, Wire
from .parts import Part, Piece, parts_of, pieces_of, tokens_in
from .placement import Placement, Run, check_placement, runs_of, shard_lengths, token_axis
from .states import States

__all__ = ["Call", "tokens_of"]


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of a call that have been checked; see `cuattn.distributed.ring_attention`."""

    carrier: Carrier
    placement: Placement
    window_size: tuple[int, int]
    softcap: float
    scale: float
    num_q_heads: int
    has_sinks: bool
    mask_keys: int | None
    on_gpu: bool
    ordinal: int

    @classmethod
    def of(
        cls,
        q: Any,
        k: Any,
        v: Any,
        *,
        is_causal: bool,
        placement: Placement,
        scheme: str | Scheme,
        wire: Wire,
        window_size: tuple[int, int],
        softcap: float,
        sinks: Any,
        scale: float | None,
        layout: str,
        return_lse: bool,
        attn_mask: Any = None,
    ) -> Call:
        """Check what a rank can check alone.

        Raises
        ------
        ArgumentError
            Naming the argument.
        """
        check_placement(placement)
        check_flag("is_causal", is_causal)
        check_flag("return_lse", return_lse)
        axis = token_axis(layout)
        places = {name: device_of(x, name) for name, x in (("q", q), ("k", k), ("v", v))}
        for name, x in (("q", q), ("k", k), ("v", v)):
            if len(x.shape) != 4:
                raise ArgumentError(f"{name}.shape", tuple(x.shape), "of four axes")
            if dtype_of(x) != dtype_of(q):
                raise ArgumentError(f"{name}.dtype", dtype_of(x), f"{dtype_of(q)}, the dtype of q")
            if places[name] != places["q"]:
                raise ArgumentError(f"{name}.device", places[name], f"{places['q']}, that of q")
        heads = 3 - axis
        shape_k, shape_v = tuple(k.shape), tuple(v.shape)
        if (shape_k[0], shape_k[3]) != (q.shape[0], q.shape[3]):
            expected = f"of batch {q.shape[0]} and head_dim {q.shape[3]}"
            raise ArgumentError("k.shape", shape_k, expected)
        if shape_v[:3] != shape_k[:3]:
            raise ArgumentError("v.shape", shape_v, f"{shape_k}, but for the last axis")
        if q.shape[heads] % max(shape_k[heads], 1) or not shape_k[heads]:
            expected = f"a multiple of num_kv_heads, which is {shape_k[heads]}"
            raise ArgumentError("num_q_heads", int(q.shape[heads]), expected)
        left, right = checked_window(window_size)
        softmax_scale = checked_scale(scale, int(q.shape[3]))
        if sinks is not None and tuple(sinks.shape) != (q.shape[heads],):
            raise ArgumentError("sinks.shape", tuple(sinks.shape), f"({q.shape[heads]},)")
        if attn_mask is not None:
            _check_mask(attn_mask, int(q.shape[axis]))
        carrier = Carrier(
            resolve(scheme),
            wire,
            int(q.shape[0]),
            int(shape_k[heads]),
            int(q.shape[3]),
            int(shape_v[3]),
            dtype_of(q),
            layout,
        )
        return cls(
            carrier,
            placement,
            (left, 0 if is_causal else right),
            checked_softcap(softcap, softmax_scale),
            softmax_scale,
            int(q.shape[heads]),
            sinks is not None,
            None if attn_mask is None else int(attn_mask.shape[-1]),
            places["q"][0] == CUDA,
            places["q"][1],
        )

    @property
    def axis(self) -> int:
        """Of tokens."""
        return token_axis(self.carrier.layout)

    def pieces(self, keys: Sequence[Run]) -> list[Piece]:
        """Return what of a rank's keys is quantized together: with an `attn_mask` each run."""
        if self.mask_keys is not None:
            return [(run,) for run in keys]
        return pieces_of(keys, *self.window_size)

    def with_heads(self, ranks: int) -> Call:
        """Return the call of one of so many ranks that share the heads."""
        carrier = replace(self.carrier, heads=self.carrier.heads // ranks)
        return replace(self, carrier=carrier, num_q_heads=self.num_q_heads // ranks)

    def described(self) -> dict[str, Any]:
        """Return what all ranks have to agree on."""
        carrier = self.carrier
        return {
            "batch": carrier.batch,
            "num_q_heads": self.num_q_heads,
            "num_kv_heads": carrier.heads,
            "head_dim": carrier.head_dim,
            "head_dim_v": carrier.head_dim_v,
            "dtype": carrier.dtype,
            "layout": carrier.layout,
            "scheme": described(carrier.scheme),
            "wire": carrier.wire,
            "placement": self.placement,
            "window_size": list(self.window_size),
            "softcap": self.softcap,
            "scale": self.scale,
            "sinks": self.has_sinks,
            "keys of attn_mask": self.mask_keys,
        }

    @property
    def xp(self) -> Any:
        """The module of arrays of bytes: numpy or cupy."""
        return cupy_module() if self.on_gpu else np

    def on_stream(self, q: Any) -> AbstractContextManager[Any]:
        """Make the stream that calls on `q` are enqueued on CuPy's current one."""
        return Caller(q, None) if self.on_gpu else nullcontext()

    def on_device(self) -> AbstractContextManager[Any]:
        """Make the GPU of the arrays CuPy's current one."""
        return on_device(self.ordinal) if self.on_gpu else nullcontext()

    def attend(
        self,
        states: States,
        q: Any,
        queries: Sequence[Run],
        pieces: Sequence[Piece],
        parcel: Any,
        attn_mask: Any = None,
    ) -> None:
        """Attend from a rank's rows to the keys of a parcel, as far as they see any.

        Parameters
        ----------
        states : States
            That results are added to.
        q : array
        queries : sequence of Run
        pieces : sequence of Piece
            Keys that the parcel holds.
        parcel : array of uint8
        attn_mask : array, optional
            Of the rows, and of all keys of the sequence.
        """
        first = 0
        for piece, nbytes in zip(pieces, self.sizes(pieces), strict=True):
            last = first + nbytes
            operands: dict[int, tuple[Any, Any]] = {}
            for part in parts_of(tuple(queries), piece, *self.window_size):
                if part.keys not in operands:
                    given = parcel[first:last], tokens_in(piece), part.keys
                    operands[part.keys] = self.carrier.unpack(*given, q, self.xp)
                o, lse = attention(
                    rows(q, self.axis, part.start, part.stop, pad=part.pad),
                    *operands[part.keys],
                    window_size=part.window_size,
                    softcap=self.softcap,
                    scale=self.scale,
                    scheme=self.carrier.attended,
                    layout=self.carrier.layout,
                    return_lse=True,
                    attn_mask=None if attn_mask is None else _mask_of(attn_mask, part, piece[0]),
                )
                states.add(part.start, o, lse, part.stop - part.start)
            first = last

    def sizes(self, pieces: Sequence[Piece]) -> list[int]:
        """Return the bytes of pieces, whole lines of memory."""
        return [round_up(self.carrier.nbytes(tokens_in(piece)), 256) for piece in pieces]

    def sees(self, queries: Sequence[Run], pieces: Sequence[Piece]) -> bool:
        """Say whether rows see any of the keys."""
        return any(parts_of(tuple(queries), piece, *self.window_size) for piece in pieces)

    def pack(self, k: Any, v: Any, pieces: Sequence[Piece], into: Any = None) -> Any:
        """Return K and V of this rank as one parcel, piece by piece: a new one, or `into`."""
        sizes = self.sizes(pieces)
        parcel = self.xp.empty(sum(sizes), np.uint8) if into is None else into
        token = byte = 0
        for piece, nbytes in zip(pieces, sizes, strict=True):
            ends = token, token + tokens_in(piece)
            some_k, some_v = (rows(x, self.axis, *ends) for x in (k, v))
            self.carrier.pack(some_k, some_v, parcel[byte : byte + nbytes], self.xp)
            token, byte = ends[1], byte + nbytes
        return parcel


def _check_mask(mask: Any, rows_of_rank: int) -> None:
    shape = tuple(getattr(mask, "shape", ()))
    if not 2 <= len(shape) <= 4 or shape[-2] not in (1, rows_of_rank):
        expected = f"[batch, num_q_heads, {rows_of_rank}, keys of all ranks], or broadcast to it"
        raise ArgumentError("attn_mask.shape", shape, expected)


def _mask_of(mask: Any, part: Part, run: Run) -> Any:
    """Return what a mask says of the rows of a part and a run of keys."""
    last = len(mask.shape) - 1
    if mask.shape[last - 1] != 1:
        mask = rows(mask, last - 1, part.start, part.stop, pad=part.pad)
    return rows(mask, last, run.start, run.start + run.step * run.tokens, step=run.step)


def tokens_of(
    lengths: Sequence[int], placement: Placement, *, name: str, shift: int = 0
) -> list[tuple[Run, ...]]:
    """Return the tokens of each rank as runs.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each rank.
    placement : str
        With "contiguous" ranks may have any number of them.
    name : str
        Of the array, for the error.
    shift : int
        Added to all positions.

    Raises
    ------
    MismatchError
        If the numbers are not those of the placement.
    """
    return [*_tokens_of(tuple(lengths), placement, name, shift)]


@lru_cache(64)
def _tokens_of(
    lengths: tuple[int, ...], placement: Placement, name: str, shift: int
) -> list[tuple[Run, ...]]:
    total, size = sum(lengths), len(lengths)
    if placement == "contiguous":
        starts = [sum(lengths[:rank]) for rank in range(size)]
        return [(Run(start + shift, 1, n),) for start, n in zip(starts, lengths, strict=True)]
    expected = shard_lengths(total, size, placement)
    if list(lengths) != expected:
        raise MismatchError(
            f"{name} must have {expected} tokens on the ranks for placement {placement!r}, got "
            f"{list(lengths)}: cuattn.distributed.shard divides them so"
        )
    return [
        tuple(
            run._replace(start=run.start + shift) for run in runs_of(total, size, rank, placement)
        )
        for rank in range(size)
    ]
