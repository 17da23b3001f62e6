"""The online softmax of the kernels, with P represented as a scheme says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scheme import Scheme
from .arrays import FloatArray
from .masking import weighted_sum
from .rounding import E4M3_MAX, HalfType, round_e4m3, round_half

__all__ = ["OnlineSoftmax", "PBlock"]

# Of ``p_range="row_pow2"``: by how much, in units of log 2, M stands above the maximum of the first
# block that a row meets. It makes later moves of M rarer, for an error that is 1 to 6 %
# larger. Such a number that P at the maximum is a whole number of steps: a row of equal logits is
# exact.
FIRST_HEADROOM = np.log2(255 / 152)


@dataclass(frozen=True, eq=False)
class PBlock:
    """P of one block of keys, for those who look on.

    Attributes
    ----------
    exact : ndarray of float64 [row, key]
        Before rounding, in 0 … 1; 0 where the key is hidden.
    codes : ndarray [row, key]
        As the kernel multiplies it.
    weight : ndarray of float64 [row]
        What 1 of `exact` counts in units of 2^M, with M the maximum of the rows so far.
    shrink : ndarray of float64 [row]
        By what M of this block divides what was added up before.
    """

    exact: FloatArray
    codes: NDArray[Any]
    weight: FloatArray
    shrink: FloatArray


class OnlineSoftmax:
    """The state that some query rows of one head carry from one block of keys to the next.

    Base 2 throughout. With M the largest logit so far of a row, ``row_sum`` is the sum of
    ``2^(s - M)`` over its keys, never of rounded values, and ``o`` the sum of P V in units of
    ``2^M`` and of V's channel scale.

    Any order of blocks is correct, but what rounding P against M costs depends on it. The kernels
    take the first one last (`masking.visited`), so that attention sinks, which are first tokens,
    raise M when the other keys have been rounded already.

    Parameters
    ----------
    scheme : Scheme
    compute : {"float16", "bfloat16"}
        Type of a P that is not of 8 bits.
    round_p : bool
        False keeps P unrounded.
    num_rows, head_dim : int
    """

    def __init__(
        self, scheme: Scheme, compute: HalfType, round_p: bool, num_rows: int, head_dim: int
    ) -> None:
        self.scheme = scheme
        self.compute = compute
        self.round_p = round_p
        self.row_max: FloatArray = np.full(num_rows, -np.inf)
        self.row_sum: FloatArray = np.zeros(num_rows)
        self.o: FloatArray = np.zeros((num_rows, head_dim))

    def step(
        self,
        s: FloatArray,
        v: NDArray[Any],
        v_scale: FloatArray,
        visible: NDArray[np.bool_] | None,
        observe: Callable[[PBlock], None] | None = None,
    ) -> None:
        """Take in one block of keys.

        Parameters
        ----------
        s : ndarray of float64 [row, key]
            Logits in units of log 2, -inf where the key is hidden; overwritten.
        v : ndarray [key, head_dim]
            Codes in float32 (sums of products stay exact) or values in float64.
        v_scale : ndarray of float64 [key]
            V's scale of each token, 1 where a scheme has none.
        visible : ndarray of bool [row, key], or None
            None if every row sees every key.
        observe : callable, optional
            Shown P.
        """
        block_max = s.max(axis=1)
        new_max = np.maximum(self.row_max, block_max)
        if self.scheme.p_range == "row_pow2":
            # After the first block that a row meets, in whole steps.
            seen = self.row_max != -np.inf
            last = np.where(seen, self.row_max, 0.0)
            steps = last + np.ceil(new_max - last)
            new_max = np.where(seen, steps, new_max + FIRST_HEADROOM)
        shrink = np.exp2(self.row_max - _finite(new_max))
        local = self.scheme.p_range == "block"
        # P is 2^(s - reference); it counts `weight` times as much in units of 2^new_max.
        reference = _finite(block_max if local else new_max)
        weight = np.exp2(block_max - _finite(new_max)) if local else np.ones_like(new_max)
        p = np.exp2(np.subtract(s, reference[:, None], out=s), out=s)
        self.row_sum = self.row_sum * shrink + p.sum(axis=1) * weight
        if self.scheme.v_scope == "block":
            weight = np.where(block_max == -np.inf, 0.0, weight * v_scale[0])
        elif local:
            p *= v_scale
            if visible is not None:
                p[~visible] = 0.0  # a hidden token's scale may be NaN
            p_max = p.max(axis=1)
            weight = weight * p_max
            p /= np.where(p_max == 0.0, 1.0, p_max)[:, None]
        exact = None if observe is None else p.copy()
        p, unit = self._represent(p)
        if observe is not None and exact is not None:
            observe(PBlock(exact, p, weight, shrink))
        self.o = self.o * shrink[:, None] + _product(p, v, visible) * (weight * unit)[:, None]
        self.row_max = new_max

    def _represent(self, p: FloatArray) -> tuple[NDArray[Any], float]:
        """Return P [row, key], given in 0 … 1, as the kernel multiplies it, and its unit."""
        if self.scheme.pv == "fp16":
            return (round_half(p, self.compute) if self.round_p else p), 1.0
        if self.scheme.pv == "fp8":
            p *= E4M3_MAX
            return (round_e4m3(p) if self.round_p else p), 1.0 / E4M3_MAX
        if self.scheme.p_range == "twin":
            return self._in_two_ranges(p)
        # Two terms are 256 high + low, each of 8 bits: 65535 steps.
        steps = 127.0 if self.scheme.p_range == "static127" else 256.0**self.scheme.p_terms - 1
        p *= steps
        if not self.round_p:
            return p, 1.0 / steps
        codes = np.floor(p + 0.5) if self.scheme.p_range == "static127" else np.rint(p)
        # In float32, products of integers of 8 bits with codes of V sum up exactly.
        return codes.astype(np.float32) if self.scheme.p_terms == 1 else codes, 1.0 / steps

    def _in_two_ranges(self, p: FloatArray) -> tuple[NDArray[Any], float]:
        """Quantize in steps of the finer of two ranges (PTQ4ViT, arXiv 2111.12293, equation 5).

        Below 2^-m, with m = `p_split`, P has 127 steps of 2^-m / 127, from there on 127 of 1 / 127.
        """
        finer = 2.0**self.scheme.p_split
        unit = 1.0 / (127 * finer)
        if not self.round_p:
            return p / unit, unit
        low, high = np.rint(p * (127 * finer)), np.rint(p * 127) * finer
        return np.where(p < 1 / finer, low, high), unit

    def finish(self) -> tuple[FloatArray, FloatArray]:
        """Return O [row, head_dim], in units of V's channel scale, and the natural lse [row]."""
        return self.o / self.row_sum[:, None], np.log(2.0) * (self.row_max + np.log2(self.row_sum))


def _finite(row_max: FloatArray) -> FloatArray:
    """Replace the maximum of a row that has seen no key, as -inf - -inf would be NaN."""
    return np.where(row_max == -np.inf, 0.0, row_max)


def _product(p: NDArray[Any], v: NDArray[Any], visible: NDArray[np.bool_] | None) -> FloatArray:
    if v.dtype == np.float32:
        # 255 · 127 · 128 keys < 2^24, so float32 holds every partial sum exactly.
        exact: FloatArray = (p @ v).astype(np.float64)
        return exact
    return weighted_sum(p, v, visible)
