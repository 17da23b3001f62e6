"""Language models as `serve.py` wants them: tokens of several sequences at once, packed.

`Trained` is a model of Llama's kind, as `pretrained.py` finds it; `Little` the one of bytes that
`tiny_lm.py` trains. Both multiply by their weights run by run (`Runs`), a run being the tokens of
one sequence in a step: so the bits of a sequence do not depend on what else is in the batch.
"""

import numpy as np
from lm_ops import rms_norm, silu

from cuattn.language_model.model import LanguageModel


class Runs:
    """Products of the tokens of each sequence by themselves; `sizes` says how many each has."""

    def __init__(self, xp):
        self.xp, self.sizes = xp, [1]

    def __call__(self, x, w):
        """Multiply tokens [token, in] by weights [out, in]."""
        bounds = np.cumsum(self.sizes)[:-1].tolist()
        return self.xp.concatenate([part @ w.T for part in self.xp.split(x, bounds)])

    def last(self):
        """Return the last row of each run."""
        return np.cumsum(self.sizes) - 1


class Trained:
    """A `LanguageModel`, whose `tokenizer` turns text into tokens and back."""

    def __init__(self, model, tokenizer):
        self.xp, self.sizes, self.tokenizer = model.xp, model.sizes, tokenizer
        self._runs = Runs(model.xp)
        self._model = LanguageModel(model.sizes, model.weights, model.xp, self._runs)

    def encode(self, text):
        """Return the tokens of a text."""
        return self.tokenizer.encode(text)

    def decode(self, tokens):
        """Return the text of tokens."""
        return self.tokenizer.decode(tokens)

    def chosen(self, runs, attend):
        """Return the most likely token after each run.

        Parameters
        ----------
        runs : list of (int, list of int)
            Of each sequence the position of its first token, and its tokens.
        attend : callable
            Called as attend(layer, q, k, v) with [1, head, token, head_dim] of all runs.
        """
        model, xp = self._model, self.xp
        self._runs.sizes = [len(tokens) for _, tokens in runs]
        x = model.embed([token for _, tokens in runs for token in tokens])
        turns = [model.turn(first, len(tokens)) for first, tokens in runs]
        turn = tuple(xp.concatenate(part) for part in zip(*turns, strict=True))
        for i in range(self.sizes.layers):
            x = model.layer(i, x, attend, turn)
        rows = model.finish(x)[self._runs.last()]
        self._runs.sizes = [1] * len(runs)
        return [int(i) for i in self._runs(rows, model.weights.head).argmax(axis=-1)]


class Little:
    """A `TinyLM`, whose tokens are bytes; see `Trained`."""

    def __init__(self, model):
        self.xp, self.sizes = model.xp, model.sizes
        self._model, self._runs = model, Runs(model.xp)

    def encode(self, text):
        """Return the tokens of a text."""
        return list(text.encode())

    def decode(self, tokens):
        """Return the text of tokens."""
        return bytes(tokens).decode(errors="replace")

    def chosen(self, runs, attend):
        """See `Trained.chosen`."""
        model, xp, product = self._model, self.xp, self._runs
        p = model.parameters
        product.sizes = [len(tokens) for _, tokens in runs]
        x = p["embedding"][xp.asarray([token for _, tokens in runs for token in tokens])]
        at = xp.asarray(np.concatenate([first + np.arange(len(t)) for first, t in runs]))
        for i in range(self.sizes.layers):
            h, _ = rms_norm(xp, x, p[f"{i}.attention_norm"])
            heads = model.heads(product(h, p[f"{i}.qkv"])[None], model.cos[at], model.sin[at])
            o = attend(i, *heads)[0].swapaxes(0, 1).reshape(len(x), -1)
            x = x + product(o, p[f"{i}.out"])
            h, _ = rms_norm(xp, x, p[f"{i}.mlp_norm"])
            h, _ = silu(xp, product(h, p[f"{i}.up"]))
            x = x + product(h, p[f"{i}.down"])
        rows, _ = rms_norm(xp, x[product.last()], p["norm"])
        product.sizes = [1] * len(runs)
        return [int(i) for i in product(rows, p["embedding"]).argmax(axis=-1)]
