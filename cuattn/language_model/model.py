"""The forward pass of a Llama-like model, on arrays of NumPy or CuPy, with attention left open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..errors import ArgumentError
from ..reference.arrays import Progress
from .sizes import Sizes
from .weights import Layer, Weights

__all__ = ["Attend", "LanguageModel", "Product"]

# Called as attend(layer, q, k, v) with the number of the layer and arrays of float32
# [1, head, token, head_dim], K turned by its positions; returns what is like q.
Attend: TypeAlias = Callable[[int, Any, Any, Any], Any]

# Called as product(x, w) with tokens [token, in] and weights [out, in]; returns [token, out].
Product: TypeAlias = Callable[[Any, Any], Any]


def _product(x: Any, w: Any) -> Any:
    return x @ w.T


class LanguageModel:
    """A decoder of Llama's kind (Touvron et al., arXiv 2302.13971): RMSNorm, RoPE, SwiGLU.

    Everything is float32, on the host and on a GPU.

    Parameters
    ----------
    sizes : Sizes
    weights : Weights
        Arrays of `xp`.
    xp : module
        NumPy or CuPy.
    product : callable
        How layers multiply by their weights; by default all tokens at once, so that the last bits
        of a token may depend on how many there are.
    """

    def __init__(
        self, sizes: Sizes, weights: Weights, xp: Any = np, product: Product = _product
    ) -> None:
        self.sizes, self.weights, self.xp = sizes, weights, xp
        self._product = product

    def embed(self, ids: Sequence[int]) -> Any:
        """Return the embeddings of tokens, [token, width].

        Raises
        ------
        ArgumentError
            If a token is not in the vocabulary.
        """
        tokens = np.asarray(ids, np.int64).reshape(-1)
        outside = tokens[(tokens < 0) | (tokens >= self.sizes.vocabulary)]
        if outside.size:
            expected = f"from 0 to {self.sizes.vocabulary - 1}"
            raise ArgumentError("a token", int(outside[0]), expected)
        return self.weights.embedding[self.xp.asarray(tokens)]

    def turn(self, start: int, tokens: int) -> tuple[Any, Any]:
        """Return cosine and sine of the angles of positions from `start` on, as `layer` takes them.

        Each is [token, 1, head_dim / 2]. The angles are float64: of thousands, float32 has few
        digits behind the point.
        """
        angles = np.arange(start, start + tokens)[:, None, None] * self.weights.frequencies
        cos, sin = (self.xp.asarray(f(angles), np.float32) for f in (np.cos, np.sin))
        return cos, sin

    def layer(self, i: int, x: Any, attend: Attend, turn: tuple[Any, Any]) -> Any:
        """Return tokens [token, width] after a layer."""
        part = self.weights.layers[i]
        q, k, v = self._heads(part, self._norm(x, part.attention_norm), turn)
        o = attend(i, q, k, v)
        x = x + self._product(o[0].swapaxes(0, 1).reshape(len(x), -1), part.out)
        h = self._norm(x, part.mlp_norm)
        h = self._silu(self._product(h, part.gate)) * self._product(h, part.up)
        return x + self._product(h, part.down)

    def finish(self, x: Any) -> Any:
        """Return tokens behind the last layer as `logits` takes them."""
        return self._norm(x, self.weights.norm)

    def states(
        self,
        ids: Sequence[int],
        attend: Attend,
        start: int = 0,
        progress: Progress | None = None,
    ) -> Any:
        """Run all layers.

        Parameters
        ----------
        ids : sequence of int
            Tokens of one sequence.
        attend : callable
        start : int
            Position of the first of them.
        progress : callable, optional
            Called as ``progress(done, total)`` after each layer.

        Returns
        -------
        array of float32 [token, width]
            Of which `logits` makes predictions.

        Raises
        ------
        ArgumentError
            If a token is not in the vocabulary.
        """
        x = self.embed(ids)
        turn = self.turn(start, len(x))
        for i in range(self.sizes.layers):
            x = self.layer(i, x, attend, turn)
            if progress is not None:
                progress(i + 1, self.sizes.layers)
        return self.finish(x)

    def logits(self, states: Any) -> Any:
        """Return the logits of each next token, [token, vocabulary]: of few tokens at a time."""
        return states @ self.weights.head.T

    def _heads(self, part: Layer, h: Any, turn: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        q, k, v = (
            (y if bias is None else y + bias).reshape(len(h), -1, self.sizes.head_dim)
            for y, bias in (
                (self._product(h, part.q), part.q_bias),
                (self._product(h, part.k), part.k_bias),
                (self._product(h, part.v), part.v_bias),
            )
        )
        if part.q_norm is not None:
            q = self._norm(q, part.q_norm)
        if part.k_norm is not None:
            k = self._norm(k, part.k_norm)
        q, k = (self._rotate(x, *turn) for x in (q, k))
        q, k, v = (x.swapaxes(0, 1)[None] for x in (q, k, v))
        return q, k, v

    def _rotate(self, x: Any, cos: Any, sin: Any) -> Any:
        half = self.sizes.head_dim // 2
        if self.sizes.adjacent:
            first, second = slice(0, None, 2), slice(1, None, 2)
        else:
            first, second = slice(0, half), slice(half, None)
        a, b = x[..., first], x[..., second]
        turned = self.xp.empty_like(x)
        turned[..., first] = a * cos - b * sin
        turned[..., second] = a * sin + b * cos
        return turned

    def _norm(self, x: Any, gain: Any) -> Any:
        mean = (x * x).mean(axis=-1, keepdims=True)
        return x / self.xp.sqrt(mean + np.float32(self.sizes.norm_epsilon)) * gain

    def _silu(self, x: Any) -> Any:
        # exp(-x) of a large negative x is infinite, and the quotient 0, as it should be.
        with np.errstate(over="ignore"):
            return x / (1 + self.xp.exp(-x))
