"""Text as a model's tokens: byte-level BPE out of GGUF's metadata, or a tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArgumentError

__all__ = ["Tokenizer", "read_tokenizer", "tokenizer_of_gguf"]

# How text is cut into words before merges, by GGUF's names for it. With None GPT-2's pattern of
# `tokenizers` does it, behind digits that stand alone; else this pattern.
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS: dict[str, str | None] = {
    "smollm": None,
    "llama-bpe": rf"{_CONTRACTED}|\p{{N}}{{1,3}}{_REST}",
    "qwen2": rf"{_CONTRACTED}|\p{{N}}{_REST}",
}

# Token types of GGUF that no text is merged into: of control, and the user's own.
SPECIAL = (3, 4)


@dataclass(frozen=True)
class Tokenizer:
    """What makes tokens of text, and text of tokens.

    Attributes
    ----------
    inner : tokenizers.Tokenizer
    begins : tuple of int
        Tokens that go before every text, besides those that `inner` puts there.
    """

    inner: Any
    begins: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; names of special tokens in it stand for these."""
        return [*self.begins, *self.inner.encode(text).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        text: str = self.inner.decode(list(ids))
        return text


def read_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises
    ------
    ArgumentError
        If there is none, or `tokenizers` cannot read it.
    """
    import tokenizers

    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except Exception as error:  # `tokenizers` raises nothing more special
        expected = f"a file that the package tokenizers reads ({error})"
        raise ArgumentError(path.name, str(path), expected) from None


def tokenizer_of_gguf(fields: Mapping[str, Any], path: Path) -> Tokenizer:
    """Make the tokenizer that GGUF's metadata describes.

    Parameters
    ----------
    fields : mapping of str to object
    path : Path
        Of the file: if its tokenizer is not known here, tokenizer.json beside it is read.

    Raises
    ------
    ArgumentError
        If it is not known, and there is no such file.
    """
    kind, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in PATTERNS:
        beside = path.with_name("tokenizer.json")
        if beside.exists():
            return read_tokenizer(beside)
        expected = f"('gpt2', one of {[*PATTERNS]}), or known from a tokenizer.json beside the file"
        raise ArgumentError("the model's tokenizer", (kind, cut), expected)
    words = fields["tokenizer.ggml.tokens"]
    types = fields.get("tokenizer.ggml.token_type", [1] * len(words))
    special = [word for word, x in zip(words, types, strict=True) if x in SPECIAL]
    inner = _byte_level(words, fields["tokenizer.ggml.merges"], special, PATTERNS[cut])
    begins: tuple[int, ...] = ()
    if fields.get("tokenizer.ggml.add_bos_token", False):
        begins = (fields["tokenizer.ggml.bos_token_id"],)
    return Tokenizer(inner, begins)


def _byte_level(
    words: Sequence[str], merges: Sequence[str], special: Sequence[str], pattern: str | None
) -> Any:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    # Both parts of a merge are free of spaces, whose byte is written as another letter.
    pairs = [merge.split(" ", 1) for merge in merges]
    vocabulary = {word: i for i, word in enumerate(words)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[(a, b) for a, b in pairs]))
    if pattern is None:
        first: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    inner.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_of])
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(special))
    return inner
