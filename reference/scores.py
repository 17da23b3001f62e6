"""What becomes of a logit before the softmax: softcap, biases and masks, in this order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from .arrays import FloatArray, Shape, floating, whole_counts, whole_numbers
from .masking import UNLIMITED, Mask
from .mods import PLACE, MaskFunction, ScoreFunction, check_reference, hidden, modified

__all__ = ["HeadRules", "ScoreRules"]

# bfloat16's largest number, of which NumPy knows nothing.
_BFLOAT16_MAX = float.fromhex("0x1.fep127")


@dataclass(frozen=True, eq=False)
class ScoreRules:
    """The options of a call that change logits or hide keys, checked and broadcast.

    Attributes
    ----------
    masks : list of Mask [batch]
        What each sequence hides by position; of as many keys as it has.
    softcap : float
        0 if there is none.
    attn_mask : ndarray of bool or float [batch, num_q_heads, seqlen_q, seqlen_kv] or None
    alibi_slopes : ndarray of float64 [batch, num_q_heads] or None
    sinks : ndarray of float64 [num_q_heads]
        -inf, which changes nothing, if there are none.
    score_mod, mask_mod : callable or None
    """

    masks: list[Mask]
    softcap: float
    attn_mask: NDArray[Any] | None
    alibi_slopes: FloatArray | None
    sinks: FloatArray
    score_mod: ScoreFunction | None = None
    mask_mod: MaskFunction | None = None

    @staticmethod
    def of(
        shape: Shape,
        *,
        is_causal: bool,
        window_size: tuple[int, int],
        softcap: float,
        sinks: ArrayLike | None,
        attn_mask: ArrayLike | None,
        alibi_slopes: ArrayLike | None,
        seqused_k: ArrayLike | None = None,
        score_mod: ScoreFunction | None = None,
        mask_mod: MaskFunction | None = None,
    ) -> ScoreRules:
        """Check the options of a call of this shape.

        Raises
        ------
        ArgumentError
            If one has another shape or type, or makes no sense.
        """
        batch, heads = shape.batch, shape.num_q_heads
        sides = whole_numbers("window_size", window_size, (2,))
        if sides.min() < UNLIMITED:
            raise ArgumentError("window_size", window_size, "(left, right), -1 for all keys")
        if not isinstance(softcap, (int, float, np.floating)) or not 0 <= softcap < math.inf:
            raise ArgumentError("softcap", softcap, "a positive number, or 0 for none")
        used = whole_counts("seqused_k", seqused_k, batch, shape.seqlen_kv)
        masks = [
            Mask(
                replace(shape, batch=1, seqlen_kv=int(n)),
                is_causal,
                (int(sides[0]), int(sides[1])),
            )
            for n in used
        ]
        logits = np.full(heads, -np.inf)
        if sinks is not None:
            logits = _expanded("sinks", floating("sinks", sinks), (heads,), exactly=True)
        slopes = None
        if alibi_slopes is not None:
            given = floating("alibi_slopes", alibi_slopes)
            slopes = _expanded("alibi_slopes", given, (batch, heads)).astype(np.float64)
        mask = None
        if attn_mask is not None:
            mask = np.asarray(attn_mask)
            if mask.dtype != np.bool_:
                mask = floating("attn_mask", mask)
            mask = _expanded("attn_mask", mask, (batch, heads, shape.seqlen_q, shape.seqlen_kv))
        for name, function, known in (
            ("score_mod", score_mod, ("score", *PLACE)),
            ("mask_mod", mask_mod, PLACE),
        ):
            if function is not None:
                check_reference(name, function, known)
        numbers = logits.astype(np.float64)
        return ScoreRules(masks, float(softcap), mask, slopes, numbers, score_mod, mask_mod)

    def of_head(self, b: int, h: int, shift: FloatArray | None = None) -> HeadRules:
        """Return those of head h of sequence b.

        Parameters
        ----------
        b, h : int
        shift : ndarray of float64 [batch, num_q_heads, seqlen_q], optional
            What smoothing K took from the logits of each row.
        """
        return HeadRules(
            self.masks[b],
            self.softcap,
            None if self.attn_mask is None else self.attn_mask[b, h],
            0.0 if self.alibi_slopes is None else float(self.alibi_slopes[b, h]),
            float(self.sinks[h]),
            None if shift is None else shift[b, h],
            (b, h),
            self.score_mod,
            self.mask_mod,
        )


@dataclass(frozen=True, eq=False)
class HeadRules:
    """The options of one query head of a sequence.

    Attributes
    ----------
    mask : Mask
    softcap : float
    attn_mask : ndarray of bool or float [row, key] or None
    alibi_slope : float
    sink : float
        -inf if there is none.
    shift : ndarray of float64 [row] or None
        What the logits of each row lack: a softcap and a `score_mod` want them with it.
    index : tuple of int
        Which sequence and head it is.
    score_mod, mask_mod : callable or None
    """

    mask: Mask
    softcap: float
    attn_mask: NDArray[Any] | None
    alibi_slope: float
    sink: float
    shift: FloatArray | None
    index: tuple[int, int] = (0, 0)
    score_mod: ScoreFunction | None = None
    mask_mod: MaskFunction | None = None

    @property
    def _unshifted(self) -> bool:
        """Whether logits get again what they lack."""
        return self.softcap != 0 or self.score_mod is not None

    def apply(self, s: FloatArray, rows: range, keys: range) -> NDArray[np.bool_] | None:
        """Turn scaled products of Q and K into logits, in place.

        Parameters
        ----------
        s : ndarray of float64 [row, key]
            -inf afterwards where the key is hidden.

        Returns
        -------
        ndarray of bool [row, key] or None
            What is visible; None if all of it is.
        """
        if self._unshifted and self.shift is not None:
            s += self.shift[rows.start : rows.stop, None]
        if self.softcap:
            np.multiply(np.tanh(s / self.softcap), self.softcap, out=s)
        if self.alibi_slope:
            away = np.abs(self.mask.own(rows)[:, None] - np.arange(keys.start, keys.stop))
            s -= self.alibi_slope * away
        visible = self.mask.block(rows, keys)
        if self.attn_mask is not None:
            part = self.attn_mask[rows.start : rows.stop, keys.start : keys.stop]
            allowed: NDArray[np.bool_] = part
            if part.dtype != np.bool_:
                s += part.astype(np.float64)
                allowed = ~_hides(part)
            visible = _both(visible, allowed)
        if self.score_mod is not None:
            s[...] = modified(self.score_mod, s, self._place(rows, keys))
            visible = _both(visible, s != -np.inf)
        if self.mask_mod is not None:
            visible = _both(visible, ~hidden(self.mask_mod, self._place(rows, keys), s.shape))
        if visible is not None:
            s[~visible] = -np.inf
        return visible

    def _place(self, rows: range, keys: range) -> dict[str, Any]:
        """Return where the logits of a block are, by the names of `PLACE`."""
        batch, head = self.index
        q, kv = np.arange(rows.start, rows.stop), np.arange(keys.start, keys.stop)
        own = self.mask.own(rows)
        return {"batch": batch, "head": head, "q": q[:, None], "kv": kv[None], "own": own[:, None]}

    def apply_to_log2(self, s: FloatArray, rows: range, keys: range) -> NDArray[np.bool_] | None:
        """Do the same to logits in units of log 2; those that are only hidden keep their bits."""
        biased = self.attn_mask is not None and self.attn_mask.dtype != np.bool_
        if not (self._unshifted or self.alibi_slope or biased):
            return self.apply(s, rows, keys)
        s *= np.log(2.0)
        visible = self.apply(s, rows, keys)
        s *= np.log2(np.e)
        return visible

    def finish(
        self, o: FloatArray, lse: FloatArray, seen: NDArray[np.bool_], rows: range
    ) -> tuple[FloatArray, FloatArray]:
        """Return what rows have in the end.

        Parameters
        ----------
        o : ndarray of float64 [row, channel]
        lse : ndarray of float64 [row]
            Of the logits as they were summed, natural.
        seen : ndarray of bool [row]
            Whether a row sees any key.
        rows : range
            Which of the head's rows they are.
        """
        if self.shift is not None and not self._unshifted:
            lse = lse + self.shift[rows.start : rows.stop]
        o, lse = np.where(seen[:, None], o, 0.0), np.where(seen, lse, -np.inf)
        if self.sink == -np.inf:
            return o, lse
        total = np.logaddexp(lse, self.sink)
        return o * np.exp(lse - total)[:, None], total


def _both(
    visible: NDArray[np.bool_] | None, allowed: NDArray[np.bool_]
) -> NDArray[np.bool_] | None:
    """Return what two rules leave visible; None is all."""
    if allowed.all():
        return visible
    return allowed if visible is None else visible & allowed


def _hides(bias: NDArray[Any]) -> NDArray[np.bool_]:
    """Say where a bias is -inf, or its type's least number, which also stands for "hidden"."""
    bfloat16 = bias.dtype.name == "bfloat16"
    least = -_BFLOAT16_MAX if bfloat16 else float(np.finfo(bias.dtype).min)
    hidden: NDArray[np.bool_] = bias.astype(np.float64) <= least
    return hidden


def _expanded(
    name: str, x: NDArray[Any], shape: tuple[int, ...], *, exactly: bool = False
) -> NDArray[Any]:
    """Return a view of `x` in this shape, by broadcasting unless it is to have it exactly."""
    try:
        if exactly and x.shape != shape:
            raise ValueError
        return np.broadcast_to(x, shape)
    except ValueError:
        how = "of shape" if exactly else "that broadcasts to"
        raise ArgumentError(name, x, f"an array {how} {shape}") from None
