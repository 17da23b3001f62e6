"""Windows, softcaps, sinks, masks and slopes of ALiBi that tests of the KV cache share."""

import os

import numpy as np
import pytest

from cuattn.arrays.device import current_device, gpu_status, target
from cuattn.compile.jit import precompile
from cuattn.kv.scores import Extra, Features
from cuattn.kv.spec import decode_spec
from cuattn.operands.operand import DTYPES as TYPES
from cuattn.reference.decode import decode
from helpers.gpu_cases import assert_close, assert_same_lse
from helpers.kv_contents_cases import FORMATS, SOME, format_of
from helpers.mod_cases import as_functions, with_arrays

# Those that are arrays.
ARRAYS = ("sinks", "alibi_slopes", "attn_mask")


# The number of a type that stands for "hidden", as -inf does.
LEAST = {"float16": -65504.0, "bfloat16": -float.fromhex("0x1.fep127")}
LEAST["float32"] = float(np.finfo(np.float32).min)


def eighths(rng, shape, most=2):
    """Return numbers that bfloat16 holds too."""
    return (rng.integers(-8 * most, 8 * most + 1, shape) / 8).astype(np.float32)


def window(rng, batch, heads, queries):
    return {"window_size": (70, -1), "is_causal": False}


def both_sides(rng, batch, heads, queries):
    return {"window_size": (40, 1), "is_causal": False}


def only_behind(rng, batch, heads, queries):
    return {"window_size": (-1, 1), "is_causal": False}


def sliding(rng, batch, heads, queries):
    """As gpt-oss has it."""
    return {"window_size": (127, 0), "sinks": eighths(rng, heads)}


def capped(rng, batch, heads, queries):
    """As Gemma 2 has it, but for a cap that few logits reach there."""
    return {"softcap": 3.0, "window_size": (200, 0)}


def softcap(rng, batch, heads, queries):
    return {"softcap": 5.0}


def sinks(rng, batch, heads, queries):
    sinks = eighths(rng, heads, most=6)
    sinks[:1] = -np.inf
    return {"sinks": sinks}


def alibi(rng, batch, heads, queries):
    return {"alibi_slopes": 2.0 ** -np.arange(1, heads + 1, dtype=np.float32)}


def alibi_of_sequences(rng, batch, heads, queries):
    return {"alibi_slopes": eighths(rng, (batch, heads), 1), "is_causal": False}


def tree(rng, batch, heads, queries):
    """Drafts, each of which sees some of those before it, and itself."""
    seen = np.tri(queries, dtype=bool) & (rng.random((batch, 1, queries, queries)) < 0.5)
    return {"attn_mask": seen | np.eye(queries, dtype=bool)}


def hidden(rng, batch, heads, queries):
    """A mask that hides every third token of the last 150 from all, and all of them from a row."""
    seen = np.broadcast_to(np.arange(150) % 3 > 0, (queries, 150)).copy()
    seen[0] = False
    return {"attn_mask": seen, "is_causal": False}


def bias(rng, batch, heads, queries):
    mask = eighths(rng, (heads, queries, 140))
    mask[rng.random(mask.shape) < 0.2] = -np.inf
    mask[..., 3] = LEAST["float32"]
    return {"attn_mask": mask}


def everything(rng, batch, heads, queries):
    mask = eighths(rng, (batch, 1, queries, 30))
    mask[..., ::4] = -np.inf
    return {
        "window_size": (150, 0),
        "softcap": 4.0,
        "sinks": eighths(rng, heads),
        "attn_mask": mask,
        "alibi_slopes": eighths(rng, (batch, heads), 1) / 8,
    }


SETS = {
    "window": window,
    "both sides": both_sides,
    "only behind": only_behind,
    "sliding": sliding,
    "capped": capped,
    "softcap": softcap,
    "sinks": sinks,
    "alibi": alibi,
    "alibi of sequences": alibi_of_sequences,
    "tree": tree,
    "hidden": hidden,
    "bias": bias,
    "everything": everything,
}


@pytest.fixture(scope="session", autouse=True)
def _feature_kernels():
    """Compile what the tests need on all cores, as `kv_contents_cases._kernels` does."""
    if "PYTEST_XDIST_WORKER" not in os.environ and gpu_status()[0] == "ok":
        arch = current_device().arch
        precompile(list(_specs(target(arch))), [arch])


def _specs(facts):
    """Yield the kernels of every set of options, and of the last one in all formats and types."""
    rng, half = np.random.default_rng(0), TYPES["float16"]
    every = [features_of(make(rng, 2, 2, 1)) for make in SETS.values()]
    for name, options in FORMATS.items():
        if name in SOME:
            for features in every:
                for rows in (8, 16):
                    yield decode_spec(format_of(64, options), half, rows, facts, features)
        for rows in (8, 32):
            yield decode_spec(format_of(128, options), half, rows, facts, every[-1])


def features_of(options):
    """Return what a kernel is made for that takes such options, floats in float32."""
    kinds = {np.dtype(bool): Extra.boolean, np.dtype(np.float32): Extra.fp32}
    arrays = {name: kinds[options[name].dtype] for name in ARRAYS if name in options}
    return Features("window_size" in options, "softcap" in options, **arrays)


def of_tokens(mask, lengths):
    """Return a mask of the last tokens of sequences as one of all of their tokens, from the first.

    Of each sequence token j has column ``j - (length - columns)``; without one it is seen.
    """
    batch, tokens = len(lengths), int(np.max(lengths))
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    mask = np.broadcast_to(mask, (batch, *mask.shape[1:]))
    found = np.full((*mask.shape[:3], tokens), mask.dtype == bool, mask.dtype)
    for b, length in enumerate(lengths):
        for j in range(length):
            column = j - (length - mask.shape[3])
            if column >= 0:
                found[b, ..., j] = mask[b, ..., column]
    return found


def in_library(place, options, dtype="float32"):
    """Return the same with arrays of a place, those of floats in a type."""

    def array(x):
        if x.dtype == bool:
            return place.array(x, "bool")
        return place.array(np.where(x == LEAST["float32"], np.float32(LEAST[dtype]), x), dtype)

    moved = with_arrays(options, lambda x: place.array(x, x.dtype.name))
    return {name: array(x) if name in ARRAYS else x for name, x in moved.items()}


def attend(
    filled, rng, q_heads, queries, options, *, dtype="float16", of="float32", layout="HND", **others
):
    """Attend with options, whose arrays are NumPy's, and compare with the reference.

    Returns
    -------
    q, o, lse
        The query as the cache got it, and what it returned, on the host, heads first.
    """
    place = filled.place
    q, values = filled.draw(rng, q_heads, queries, dtype, layout)
    given = in_library(place, options, of)
    found = filled.cache.attend(q, return_lse=True, layout=layout, **given, **others)
    o, lse = (place.host(x).astype(np.float64) for x in found)
    o = o.swapaxes(1, 2) if layout == "NHD" else o
    rules = as_functions(options)
    if "attn_mask" in rules:
        rules["attn_mask"] = of_tokens(rules["attn_mask"], filled.lengths)
    wanted, wanted_lse = decode(values, *filled.cache.codes(), filled.lengths, **rules, **others)
    for b in range(len(filled.lengths)):
        assert_close(o[b], wanted[b], dtype)
        assert_same_lse(lse[b], wanted_lse[b])
    return q, o, lse
