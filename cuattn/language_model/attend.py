"""Attention for a model's layers: exact, by a scheme, or through a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..attention import attention
from ..errors import ArgumentError
from ..kv.cache import KVCache
from ..scheme import Scheme
from .model import Attend, LanguageModel

__all__ = ["CACHES", "Caches", "PlainCache", "exact", "quantized"]

# Rows whose scores are in memory at a time.
ROWS = 256

# What `KVCache` takes, by the names of its caches; "float16" is a plain one.
CACHES: dict[str, Mapping[str, Any]] = {
    "float16": {},
    "int8": {"bits": 8},
    "int4": {"bits": 4},
    "int4-g32": {"bits": 4, "group": 32, "v_zero": True},
    "k8v4": {"k_bits": 8, "v_bits": 4, "group": 32, "v_zero": True},
}


def exact(xp: Any, window: int = 0) -> Attend:
    """Return attention in float32 with nothing quantized, causal.

    Parameters
    ----------
    xp : module
        NumPy or CuPy.
    window : int
        Keys that a row sees; 0 for all up to its own.
    """

    def attend(_: int, q: Any, k: Any, v: Any) -> Any:
        return _exact(xp, q, k, v, window)

    return attend


def _exact(xp: Any, q: Any, k: Any, v: Any, window: int) -> Any:
    """Attend; the last row stands beside the last key. By blocks of rows, to save memory."""
    kv_heads, keys = k.shape[1:3]
    rows, head_dim = q.shape[2:]
    grouped = (q * np.float32(head_dim**-0.5)).reshape(kv_heads, -1, rows, head_dim)
    k, v = k[0][:, None].swapaxes(-1, -2), v[0][:, None]
    o = xp.empty((*grouped.shape[:3], v.shape[-1]), np.float32)
    for begun in range(0, rows, ROWS):
        own = xp.arange(begun, min(begun + ROWS, rows))[:, None] + keys - rows
        last = min(begun + ROWS, rows) + keys - rows
        first = max(0, begun + keys - rows - window + 1) if window else 0
        s = grouped[:, :, begun : begun + ROWS] @ k[..., first:last]
        at = xp.arange(first, last)
        hidden = at > own
        if window:
            hidden = hidden | (at <= own - window)
        s = xp.where(hidden, np.float32(-np.inf), s)
        p = xp.exp(s - s.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        o[:, :, begun : begun + ROWS] = p @ v[:, :, first:last]
    return o.reshape(1, -1, rows, v.shape[-1])


def quantized(scheme: Scheme | Sequence[Scheme | None], xp: Any, window: int = 0) -> Attend:
    """Return causal attention by a scheme, or one for each layer: `cuattn.attention`.

    Parameters
    ----------
    scheme : Scheme, or sequence of (Scheme or None)
        None is exact.
    xp, window
        As for `exact`.
    """

    def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
        of_layer = scheme if isinstance(scheme, Scheme) else scheme[layer]
        if of_layer is None:
            return _exact(xp, q, k, v, window)
        seen = _window_size(window)
        return attention(q, k, v, is_causal=True, window_size=seen, scheme=of_layer)

    return attend


def _window_size(window: int) -> tuple[int, int]:
    """Return what `cuattn.attention` calls a window of so many tokens, the row's own among them."""
    return (window - 1, 0) if window else (-1, -1)


class PlainCache:
    """K and V as they are, or rounded to float16: what a `cuattn.KVCache` is compared with.

    Parameters
    ----------
    xp : module
        NumPy or CuPy.
    num_kv_heads, head_dim, capacity : int
    dtype : str
    """

    def __init__(
        self, xp: Any, num_kv_heads: int, head_dim: int, capacity: int, dtype: str = "float16"
    ) -> None:
        shape = (1, num_kv_heads, capacity, head_dim)
        self.k, self.v = (xp.zeros(shape, dtype) for _ in range(2))
        self.length = 0
        self._xp = xp

    @property
    def nbytes(self) -> int:
        """Bytes of K and V."""
        return int(self.k.nbytes + self.v.nbytes)

    def append(self, k: Any, v: Any) -> None:
        """Put tokens [1, kv head, token, head_dim] after those that there are."""
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        self.length = end

    def attend(self, q: Any, window_size: tuple[int, int] = (-1, -1)) -> Any:
        """Attend with the last queries [1, head, query, head_dim]."""
        k, v = (x[:, :, : self.length].astype(np.float32) for x in (self.k, self.v))
        return _exact(self._xp, q, k, v, window_size[0] + 1)


class Caches:
    """A cache for each layer of a model, as attention: `Attend` that appends and then attends.

    Parameters
    ----------
    model : LanguageModel
    name : str
        A key of `CACHES`.
    capacity : int
        Most tokens.

    Raises
    ------
    ArgumentError
        If there is no such cache, or `cuattn.KVCache` does not take the model's head_dim.
    """

    def __init__(self, model: LanguageModel, name: str, capacity: int) -> None:
        if name not in CACHES:
            raise ArgumentError("cache", name, f"one of {[*CACHES]}")
        sizes, xp = model.sizes, model.xp
        shape = (sizes.kv_heads, sizes.head_dim, capacity)
        self._window = _window_size(sizes.window)
        if name == "float16":
            self.of_layer: list[Any] = [PlainCache(xp, *shape) for _ in range(sizes.layers)]
        else:
            options: dict[str, Any] = {**CACHES[name], "device": "cpu" if xp is np else None}
            self.of_layer = [KVCache(1, *shape, **options) for _ in range(sizes.layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(cache.nbytes for cache in self.of_layer)

    def __call__(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """Append K and V to the layer's cache, and attend to all of it."""
        cache = self.of_layer[layer]
        cache.append(k, v)
        return cache.attend(q, window_size=self._window)
