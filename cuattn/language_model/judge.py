"""How far a model's predictions move when its attention is quantized.

With exact attention as the reference: the change of the negative log-likelihood of a text, the
Kullback-Leibler divergence of the distributions of each next token, and how often the first choice
is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..reference.arrays import FloatArray, Progress, spans
from ..scheme import Scheme
from .attend import Caches, exact, quantized
from .model import Attend, LanguageModel

__all__ = ["Judge", "Judgement"]

# Tokens whose logits are in memory at a time, in float64.
ROWS = 64

# What a record has of a judgement.
FIGURES = ("perplexity", "delta_nll", "kl", "same_top1")

# Predictions of the first run by position.
FIRST_RUN = 256


@dataclass(frozen=True)
class Judgement:
    """What attention that is not exact makes of a model's predictions of a text.

    Attributes
    ----------
    perplexity : float
        Exponential of the mean negative log-likelihood of the tokens from the second one on.
    delta_nll : float
        Mean negative log-likelihood less that with exact attention, in nats.
    kl : float
        Mean divergence KL(exact || this) of the distributions of the next token, in nats.
    same_top1 : float
        Share of predictions whose most likely token is the same.
    kl_of_tokens : ndarray of float64 [token less one]
        The divergence of each prediction, by the tokens that it is made of.
    """

    perplexity: float
    delta_nll: float
    kl: float
    same_top1: float
    kl_of_tokens: FloatArray = field(compare=False, repr=False)

    def figures(self) -> dict[str, float]:
        """Return what is one number for all of the text, by name."""
        return {name: getattr(self, name) for name in FIGURES}

    def kl_by_position(self) -> dict[range, float]:
        """Return mean divergences by what number of tokens a prediction is made of.

        Runs of positions double: up to 256 tokens, up to 512, and so on; the last may be shorter.
        """
        count = len(self.kl_of_tokens)
        ends = [FIRST_RUN]
        while ends[-1] < count:
            ends.append(2 * ends[-1])
        runs = [range(a + 1, min(b, count) + 1) for a, b in pairwise([0, *ends])]
        return {x: float(self.kl_of_tokens[x.start - 1 : x.stop - 1].mean()) for x in runs}


class Judge:
    """A model and a text; the exact predictions are worked out once.

    Parameters
    ----------
    model : LanguageModel
    ids : sequence of int
        Tokens of the text, at least two.
    progress : callable, optional
        Of the exact pass.
    watch : callable, optional
        Called as ``watch(layer, q, k, v)`` in the exact pass, with what goes into attention.

    Raises
    ------
    ArgumentError
        If there are fewer tokens, or more than the model was made for.
    """

    def __init__(
        self,
        model: LanguageModel,
        ids: Sequence[int],
        progress: Progress | None = None,
        watch: Callable[[int, Any, Any, Any], None] | None = None,
    ) -> None:
        if not 2 <= len(ids) <= model.sizes.context:
            expected = f"of 2 to {model.sizes.context} tokens, the model's context"
            raise ArgumentError("the text", f"{len(ids)} tokens", expected)
        self.model, self.ids = model, list(ids)
        self._exact = exact(model.xp, model.sizes.window)

        def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
            if watch is not None:
                watch(layer, q, k, v)
            return self._exact(layer, q, k, v)

        # What comes after the last token is not known.
        self._reference = model.states(self.ids, attend, progress=progress)[:-1]

    @property
    def reference(self) -> Judgement:
        """What exact attention makes of the text itself."""
        return self._judged(self._reference)

    def scheme(
        self, scheme: Scheme | Sequence[Scheme | None], progress: Progress | None = None
    ) -> Judgement:
        """Judge a scheme in all layers, or one for each layer, None for exact."""
        return self.attention(quantized(scheme, self.model.xp, self.model.sizes.window), progress)

    def attention(self, attend: Attend, progress: Progress | None = None) -> Judgement:
        """Judge any attention."""
        return self._judged(self.model.states(self.ids, attend, progress=progress)[:-1])

    def by_layer(self, scheme: Scheme, progress: Progress | None = None) -> list[Judgement]:
        """Judge a scheme in one layer at a time, with exact attention in all others.

        Layers before it are run once for all.
        """
        model, found = self.model, []
        of_layer = quantized(scheme, model.xp, model.sizes.window)
        x, turn = model.embed(self.ids), model.turn(0, len(self.ids))
        layers = model.sizes.layers
        for i in range(layers):
            y = model.layer(i, x, of_layer, turn)
            for later in range(i + 1, layers):
                y = model.layer(later, y, self._exact, turn)
            found.append(self._judged(model.finish(y)[:-1]))
            x = model.layer(i, x, self._exact, turn)
            if progress is not None:
                progress(i + 1, layers)
        return found

    def cache(
        self,
        name: str,
        prompt: int = 1,
        chunk: int = 1,
        progress: Progress | None = None,
    ) -> Judgement:
        """Judge decoding: the text is read through a cache, its predictions are those of decoding.

        Parameters
        ----------
        name : str
            A key of `attend.CACHES`.
        prompt : int
            Tokens that are appended at once to begin with, as a prompt is.
        chunk : int
            Tokens that are appended and attended to at a time behind them. A token's codes do not
            depend on others that come with it, so that 1 and more differ by rounding only; more are
            faster.

        Raises
        ------
        ArgumentError
            If `prompt` or `chunk` are no such numbers, or there is no such cache.
        """
        count = len(self.ids)
        if not 1 <= prompt <= count:
            raise ArgumentError("prompt", prompt, f"from 1 to the {count} tokens of the text")
        if chunk < 1:
            raise ArgumentError("chunk", chunk, "at least 1")
        caches = Caches(self.model, name, count)
        behind = spans(count - prompt, chunk)
        steps = [range(prompt), *(range(x.start + prompt, x.stop + prompt) for x in behind)]
        states = []
        for step in steps:
            ids = self.ids[step.start : step.stop]
            states.append(self.model.states(ids, caches, step.start))
            if progress is not None:
                progress(step.stop, count)
        return self._judged(self.model.xp.concatenate(states)[:-1])

    def _judged(self, states: Any) -> Judgement:
        xp = self.model.xp
        nll = exact_nll = 0.0
        same, of_tokens = 0, []
        targets = xp.asarray(self.ids[1:])
        for rows in spans(len(states), ROWS):
            at = slice(rows.start, rows.stop)
            expected = _log_softmax(xp, self.model.logits(self._reference[at]))
            found = _log_softmax(xp, self.model.logits(states[at]))
            own = xp.arange(len(rows)), targets[at]
            exact_nll -= float(expected[own].sum())
            nll -= float(found[own].sum())
            of_tokens.append((xp.exp(expected) * (expected - found)).sum(axis=1))
            same += int((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
        n = len(states)
        mean = nll / n
        perplexity = math.exp(mean) if mean < np.log(np.finfo(float).max) else math.inf
        kl = _on_host(xp.concatenate(of_tokens))
        return Judgement(perplexity, (nll - exact_nll) / n, float(kl.mean()), same / n, kl)


def _log_softmax(xp: Any, logits: Any) -> Any:
    """In float64, so that small divergences are not lost in rounding."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= xp.log(xp.exp(x).sum(axis=1, keepdims=True))
    return x


def _on_host(x: Any) -> FloatArray:
    array: FloatArray = x if isinstance(x, np.ndarray) else x.get()
    return array
