"""Which keys a row sees, as JAX says it and as cuattn does.

JAX counts both from the start, so that row i stands beside key i. `cuattn.attention` counts from
the end, the last row beside the last key. Where lengths differ, keys that no row sees are cut off,
or the mask is written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp

from ..operands.scores import ALL_KEYS

__all__ = ["Rules"]


class Rules(NamedTuple):
    """The rules of a call.

    Attributes
    ----------
    is_causal : bool
    window_size : (int, int)
        As for `cuattn.attention`.
    keys : int or None
        How many keys the call is to have, if not all.
    arrays : dict of str to jax.Array
        Among `attn_mask` and `seqused_k` of `cuattn.attention` those that are needed.
    """

    is_causal: bool
    window_size: tuple[int, int] = ALL_KEYS
    keys: int | None = None
    arrays: Mapping[str, Any] = MappingProxyType({})

    def with_masks(self, bias: Any, mask: Any, lengths: Any, rows: int, keys: int) -> Rules:
        """Add what arrays hide.

        Parameters
        ----------
        bias, mask : jax.Array [batch or 1, head or 1, row or 1, key or 1] or None
        lengths : jax.Array of int32 [batch] or None
            Of the keys.
        rows, keys : int
            How many there are.
        """
        rules = self
        is_placed = rules.is_causal or rules.window_size != ALL_KEYS
        if is_placed and rows < keys and rules.is_causal:
            # Keys from `rows` on are behind every row's own.
            rules = rules._replace(keys=rows)
            bias, mask = _first_keys(bias, rows), _first_keys(mask, rows)
            keys = rows
        elif is_placed and rows != keys:
            mask = _both(mask, rules._written(rows, keys))
            rules = rules._replace(is_causal=False, window_size=ALL_KEYS)
            is_placed = False
        arrays = {}
        if lengths is not None and not is_placed:
            arrays["seqused_k"] = jnp.clip(lengths, 0, keys)
        elif lengths is not None:
            # Rows would be aligned with the last key that counts.
            mask = _both(mask, (jnp.arange(keys) < lengths[:, None])[:, None, None, :])
        if bias is not None and mask is not None:
            bias = jnp.where(mask, bias, jnp.array(-jnp.inf, bias.dtype))
        if bias is not None or mask is not None:
            arrays["attn_mask"] = mask if bias is None else bias
        return rules._replace(arrays=arrays)

    def _written(self, rows: int, keys: int) -> Any:
        own, key = jnp.arange(rows)[:, None], jnp.arange(keys)
        left, right = self.window_size
        if self.is_causal:
            right = 0 if right < 0 else min(right, 0)
        seen = jnp.ones((rows, keys), bool)
        if left >= 0:
            seen &= key >= own - left
        if right >= 0:
            seen &= key <= own + right
        return seen[None, None]


def _first_keys(mask: Any, count: int) -> Any:
    return mask if mask is None or mask.shape[3] == 1 else mask[..., :count]


def _both(mask: Any, other: Any) -> Any:
    return other if mask is None else mask & other
