"""Named random inputs that stress a scheme in known ways, and inputs read from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..errors import ArgumentError
from .arrays import Float32Array, Shape
from .files import load

__all__ = ["DISTRIBUTIONS", "Distribution", "load", "make"]

QKV: TypeAlias = tuple[Float32Array, Float32Array, Float32Array]

# Sinks: this many first tokens, whose logits are about this much above the others'. With 4 and 7
# they take about half of the weight at 4096 keys.
SINKS = 4
SINK_LOGIT = 7.0

# Channels that are larger than the others, as those of language models are, and how much.
OUTLIER_CHANNELS = 4
OUTLIER_SIZE = 8.0

ROPE_BASE = 10000.0


@dataclass(frozen=True)
class Distribution:
    """A way to draw Q, K and V.

    Attributes
    ----------
    description : str
        One line for a table.
    draw : callable
        From the sizes and a generator, (q, k, v) in float32.
    """

    description: str
    draw: Callable[[Shape, np.random.Generator], QKV]


def make(
    name: str,
    *,
    batch: int,
    num_q_heads: int,
    num_kv_heads: int,
    seqlen_q: int,
    seqlen_kv: int,
    head_dim: int,
    seed: int = 0,
) -> QKV:
    """Draw Q, K and V from a named distribution; the same arguments give the same arrays.

    Parameters
    ----------
    name : str
        A key of `DISTRIBUTIONS`.
    batch, num_q_heads, num_kv_heads, seqlen_q, seqlen_kv, head_dim : int
    seed : int

    Returns
    -------
    q : ndarray of float32 [batch, num_q_heads, seqlen_q, head_dim]
    k, v : ndarray of float32 [batch, num_kv_heads, seqlen_kv, head_dim]

    Raises
    ------
    ArgumentError
        For an unknown name or impossible sizes.
    """
    if name not in DISTRIBUTIONS:
        raise ArgumentError("name", name, f"one of {sorted(DISTRIBUTIONS)}")
    sizes = {
        "batch": (batch, 0),
        "num_q_heads": (num_q_heads, 1),
        "num_kv_heads": (num_kv_heads, 1),
        "seqlen_q": (seqlen_q, 0),
        "seqlen_kv": (seqlen_kv, 0),
        "head_dim": (head_dim, 1),
        "seed": (seed, 0),
    }
    for argument, (value, least) in sizes.items():
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ArgumentError(argument, value, f"an integer of at least {least}")
    if num_q_heads % num_kv_heads != 0:
        raise ArgumentError(
            "num_q_heads", num_q_heads, f"a multiple of {num_kv_heads} (num_kv_heads)"
        )
    shape = Shape(batch, num_q_heads, num_kv_heads, seqlen_q, seqlen_kv, head_dim)
    return DISTRIBUTIONS[name].draw(shape, np.random.default_rng(seed))


def _q_shape(s: Shape) -> tuple[int, int, int, int]:
    return (s.batch, s.num_q_heads, s.seqlen_q, s.head_dim)


def _kv_shape(s: Shape) -> tuple[int, int, int, int]:
    return (s.batch, s.num_kv_heads, s.seqlen_kv, s.head_dim)


def _gauss(rng: np.random.Generator, *shape: int) -> Float32Array:
    return rng.standard_normal(shape, dtype=np.float32)


def _normal(s: Shape, rng: np.random.Generator) -> QKV:
    return _gauss(rng, *_q_shape(s)), _gauss(rng, *_kv_shape(s)), _gauss(rng, *_kv_shape(s))


def _uniform(s: Shape, rng: np.random.Generator) -> QKV:
    half = np.float32(0.5)
    return (
        rng.random(_q_shape(s), dtype=np.float32) - half,
        rng.random(_kv_shape(s), dtype=np.float32) - half,
        rng.random(_kv_shape(s), dtype=np.float32) - half,
    )


def _k_bias(s: Shape, rng: np.random.Generator) -> QKV:
    q, k, v = _normal(s, rng)
    return q, k + 3 * _gauss(rng, s.num_kv_heads, 1, s.head_dim), v


def _peaked(s: Shape, rng: np.random.Generator) -> QKV:
    q, k, v = _normal(s, rng)
    return 4 * q, k, v


def _outliers(s: Shape, rng: np.random.Generator) -> QKV:
    def mixed(*shape: int) -> Float32Array:
        x = _gauss(rng, *shape)
        hit = rng.random(shape, dtype=np.float32) < 1e-3
        x[hit] += 10 * _gauss(rng, int(hit.sum()))
        return x

    return mixed(*_q_shape(s)), mixed(*_kv_shape(s)), mixed(*_kv_shape(s))


def _sharp(s: Shape, rng: np.random.Generator) -> QKV:
    q, k, v = _normal(s, rng)
    return 2 * q, k, v + np.float32(0.5)


def _sinks(s: Shape, rng: np.random.Generator) -> QKV:
    q, k, v = _normal(s, rng)
    direction = _gauss(rng, s.num_kv_heads, 1, s.head_dim)
    q += np.repeat(direction, s.group, axis=0)
    # q · direction is about head_dim, which adds SINK_LOGIT to a logit scaled by 1/sqrt(head_dim).
    k[:, :, :SINKS] += np.float32(SINK_LOGIT / np.sqrt(s.head_dim)) * direction
    v[:, :, :SINKS] *= np.float32(0.05)
    return q, k, v


def _rope(s: Shape, rng: np.random.Generator) -> QKV:
    q, k, v = _normal(s, rng)
    q += np.repeat(_gauss(rng, s.num_kv_heads, 1, s.head_dim), s.group, axis=0)
    k += 3 * _gauss(rng, s.num_kv_heads, 1, s.head_dim)
    first_q = s.seqlen_kv - s.seqlen_q  # queries are the last tokens, as in causal attention
    return _rotate(q, first_q), _rotate(k, 0), v


def _rotate(x: Float32Array, first: int) -> Float32Array:
    """Rotate channel c with channel c + head_dim/2 by the token's position times base^(-2c/D)."""
    n, half = x.shape[2], x.shape[3] // 2
    frequency = ROPE_BASE ** (-np.arange(half) / half) if half else np.zeros(0)
    angle = np.arange(first, first + n)[:, None] * frequency
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = x[..., :half], x[..., half : 2 * half]
    return np.concatenate((a * cos - b * sin, a * sin + b * cos, x[..., 2 * half :]), axis=-1)


def _common_mean(s: Shape, rng: np.random.Generator) -> QKV:
    q, k, v = _normal(s, rng)
    q += np.repeat(_gauss(rng, s.num_kv_heads, 1, s.head_dim), s.group, axis=0)
    k += _gauss(rng, s.num_kv_heads, 1, s.head_dim)
    v += _gauss(rng, s.num_kv_heads, 1, s.head_dim)
    return q, k, v


def _channel_outliers(s: Shape, rng: np.random.Generator) -> QKV:
    q, k, v = _normal(s, rng)
    large = rng.permutation(s.head_dim)[:OUTLIER_CHANNELS]
    q[..., large] *= np.float32(OUTLIER_SIZE)
    k[..., large] *= np.float32(OUTLIER_SIZE)
    return q, k, v


DISTRIBUTIONS: dict[str, Distribution] = {
    "normal": Distribution("N(0,1)", _normal),
    "uniform": Distribution("U(-1/2,1/2)", _uniform),
    "k-bias": Distribution("N(0,1), K plus 3 N(0,1) per head and channel", _k_bias),
    "peaked": Distribution("N(0,1), Q times 4", _peaked),
    "outliers": Distribution("N(0,1) + N(0,100) Bernoulli(0.001), as FlashAttention-3", _outliers),
    "sharp": Distribution("N(0,1), Q times 2, V plus 1/2", _sharp),
    "sinks": Distribution("N(0,1), 4 first keys that draw half of the weight, V small", _sinks),
    "common-mean": Distribution(
        "N(0,1), Q, K and V plus N(0,1) per head and channel", _common_mean
    ),
    "channel-outliers": Distribution("N(0,1), 4 channels of Q and K times 8", _channel_outliers),
    "rope": Distribution("Q and K with channel biases, rotated by position (RoPE)", _rope),
}
