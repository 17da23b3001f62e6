"""One call, checked: the sizes, types and options that its arguments must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arrays.view import Array
from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme
from ..specs.coding import Name
from .lengths import NO_LENGTHS, LengthArrays, Lengths, Limits, array_of_tokens, packed
from .operand import (
    Coded,
    Operand,
    compact_strides,
    in_order,
    operand_of,
    output_operand,
    takes_pairs,
)
from .options import Options, check_flag, checked_scale
from .score_arrays import NO_ARRAYS, ScoreArrays
from .scores import ScoreOptions

__all__ = ["Options", "Problem", "check_flag"]


@dataclass(frozen=True)
class Problem:
    """One call of `cuattn.attention` whose arguments have been checked; see there.

    If sequences lie end to end, `q`, `k` and `v` have a batch of 1, which is all of them.
    """

    q: Operand
    k: Operand
    v: Operand
    scheme: Scheme
    softmax_scale: float
    scores: ScoreOptions
    return_lse: bool
    layout: str
    device: tuple[int, int]
    lengths: Lengths | None = None

    @classmethod
    def of(
        cls,
        q: Array | Coded,
        k: Array | Coded,
        v: Array | Coded,
        options: Options,
        arrays: ScoreArrays = NO_ARRAYS,
        lengths: LengthArrays = NO_LENGTHS,
    ) -> Problem:
        """Check everything but the output.

        Parameters
        ----------
        q, k, v : Array or Coded
        options : Options
        arrays : ScoreArrays
            Those among the options of the caller.
        lengths : LengthArrays
            Likewise.

        Raises
        ------
        ArgumentError
            Naming the first argument that is wrong.
        """
        scheme = resolve(options.scheme)
        check_flag("is_causal", options.is_causal)
        check_flag("return_lse", options.return_lse)
        given: dict[Name, Array | Coded] = {"q": q, "k": k, "v": v}
        seen, layout = given, options.layout
        if packed(lengths):
            seen = {name: array_of_tokens(name, x) for name, x in given.items()}
            layout = "NHD" if layout == "HND" else layout
        operands = {name: operand_of(name, x, scheme, layout) for name, x in seen.items()}
        _check_agreement(given, operands)
        shapes = {name: operand.shape for name, operand in operands.items()}
        found = Lengths.of(
            lengths, Limits(options.max_seqlen_q, options.max_seqlen_k), shapes, q.device
        )
        batch, heads, seqlen_q, head_dim = shapes["q"]
        seqlen_kv = operands["k"].tokens
        if found is not None:
            _check_lengths(found, given, arrays)
            batch, seqlen_q, seqlen_kv = found.batch, found.max_seqlen_q, found.max_seqlen_k
        softmax_scale = checked_scale(options.scale, head_dim)
        scores = ScoreOptions.of(
            (batch, heads, seqlen_q, seqlen_kv),
            q.device,
            arrays,
            is_causal=bool(options.is_causal),
            window_size=options.window_size,
            softcap=options.softcap,
            softmax_scale=softmax_scale,
            mods=options.mods,
        )
        return cls(
            **operands,
            scheme=scheme,
            softmax_scale=softmax_scale,
            scores=scores,
            return_lse=bool(options.return_lse),
            layout=options.layout,
            device=q.device,
            lengths=found,
        )

    @property
    def is_causal(self) -> bool:
        """Whether keys behind a row's own are hidden and, by position, no others."""
        return self.scores.is_causal

    @property
    def needs_lse_shift(self) -> bool:
        """Whether what K's smoothing takes from the logits of each row has to be known."""
        scores = self.scores
        wanted = (
            self.return_lse
            or scores.sinks is not None
            or scores.softcap != 0
            or scores.score_mod is not None
        )
        return wanted and self.scheme.smooth_k != "none"

    @property
    def is_packed(self) -> bool:
        """Whether sequences lie end to end, and arrays have three axes."""
        return self.lengths is not None and self.lengths.packed

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.lengths.batch if self.lengths else self.q.shape[0]

    @property
    def seqlen_q(self) -> int:
        """Rows of a sequence, at most."""
        return self.lengths.max_seqlen_q if self.lengths else self.q.tokens

    @property
    def seqlen_kv(self) -> int:
        """Keys of a sequence, at most."""
        return self.lengths.max_seqlen_k if self.lengths else self.k.tokens

    @property
    def has_rows(self) -> bool:
        """Whether there may be something to write."""
        return self.batch > 0 and self.seqlen_q > 0 and self.q.shape[1] > 0

    @property
    def group(self) -> int:
        """Query heads that share one head of K and V."""
        return self.q.shape[1] // max(self.k.shape[1], 1)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output in the caller's layout."""
        shape = (*self.q.shape[:3], self.v.shape[3])
        return in_order(shape, "NHD")[1:] if self.is_packed else in_order(shape, self.layout)

    @property
    def lse_shape(self) -> tuple[int, ...]:
        """Shape of the log-sum-exp: [batch, head, token], or [head, token]."""
        return self.q.shape[1:3] if self.is_packed else self.q.shape[:3]

    def by_axes(self, strides: tuple[int, ...]) -> tuple[int, ...]:
        """From strides of the output in the caller's layout to [batch, head, token, head_dim]."""
        if self.is_packed:
            return in_order((0, *strides), "NHD")
        return in_order(strides, self.layout)

    def output(self, out: Array) -> Operand:
        """Check the caller's output and return it as an operand.

        Raises
        ------
        ArgumentError
            If type or device are not those of q, the shape is another one, or elements share memory
            or lie at odd addresses.
        """
        shape = self.output_shape
        if self.v.shape[3] != self.q.shape[3] and out.shape != shape:
            expected = f"{shape}, the shape of q with the head_dim of v"
            raise ArgumentError("out.shape", out.shape, expected)
        return output_operand(out, shape, self.q.dtype, self.device, self.layout, "q")

    def output_strides(self, out: Array | None) -> tuple[tuple[int, ...], bool]:
        """Return the strides of the output as a kernel writes it, and if that is the caller's.

        Without one, or where kernels cannot write to it, the output is contiguous.

        Raises
        ------
        ArgumentError
            As `output`.
        """
        if out is not None and not takes_pairs(self.output(out), out.misalignment):
            return compact_strides(self.output_shape), False
        return compact_strides(self.output_shape) if out is None else out.strides, True


def _check_agreement(given: Mapping[Name, Array | Coded], operands: Mapping[Name, Operand]) -> None:
    q, k, v = (operands[name].shape for name in ("q", "k", "v"))
    if (k[0], k[3]) != (q[0], q[3]):
        raise ArgumentError("k.shape", given["k"].shape, f"of batch {q[0]} and head_dim {q[3]}")
    if v[:3] != k[:3]:
        expected = f"{given['k'].shape}, the shape of k, but for the last axis"
        raise ArgumentError("v.shape", given["v"].shape, expected)
    if q[1] % max(k[1], 1) or (q[1] and not k[1]):
        raise ArgumentError("num_q_heads", q[1], f"a multiple of num_kv_heads, which is {k[1]}")
    arrays = [name for name in given if not operands[name].coded]
    for name in given:
        if given[name].device != given["q"].device:
            raise ArgumentError(f"{name}.device", given[name].device, _as_of("q", given, "device"))
        if name in arrays and given[name].dtype != given[arrays[0]].dtype:
            raise ArgumentError(
                f"{name}.dtype", given[name].dtype, _as_of(arrays[0], given, "dtype")
            )


def _check_lengths(
    lengths: Lengths, given: Mapping[Name, Array | Coded], arrays: ScoreArrays
) -> None:
    for name, x in given.items():
        if isinstance(x, Coded):
            raise ArgumentError(name, "a QuantizedTensor", "an array, as lengths are given")
    if lengths.packed and arrays.attn_mask is not None:
        shape = arrays.attn_mask.shape
        raise ArgumentError("attn_mask", f"an array {shape}", "None, as cu_seqlens_q is given")


def _as_of(name: Name, given: Mapping[Name, Any], attribute: str) -> str:
    return f"{getattr(given[name], attribute)}, the {attribute} of {name}"
