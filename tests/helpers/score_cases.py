"""Windows, caps, sinks, slopes and masks that tests of attention share, for any sizes."""

import numpy as np

# Those that are arrays.
ARRAYS = ("sinks", "alibi_slopes", "attn_mask")


def eighths(rng, shape, most=2):
    """Return numbers that bfloat16 holds too."""
    return (rng.integers(-8 * most, 8 * most + 1, shape) / 8).astype(np.float32)


def documents(rng, seqlen_q, seqlen_kv):
    """Return [seqlen_q, seqlen_kv] of documents, each of which sees itself, and rows without any.

    Whole tiles of 64 rows see nothing, or nothing of whole blocks of keys, where there are such.
    """
    cuts = np.sort(rng.integers(0, seqlen_kv + 1, 2))
    of_key = np.searchsorted(cuts, np.arange(seqlen_kv), side="right")
    own = np.arange(seqlen_q) * seqlen_kv // max(seqlen_q, 1)
    seen = of_key == of_key[own][:, None] if seqlen_kv else np.zeros((seqlen_q, 0), bool)
    seen[3::7] = False
    seen[64:128] = False
    return seen


def masked(rng, shape, share=0.2):
    """Return a bias of which a share is -inf, and one row."""
    bias = eighths(rng, shape)
    bias[rng.random(shape) < share] = -np.inf
    bias[..., 2::11, :] = -np.inf
    return bias


def windows(rng, batch, heads, rows, keys):
    return {"window_size": (keys // 3, rows // 4)}


def sliding(rng, batch, heads, rows, keys):
    """As gpt-oss has it."""
    return {"window_size": (keys // 4, 0), "is_causal": True, "sinks": eighths(rng, heads)}


def capped(rng, batch, heads, rows, keys):
    """As Gemma 2 has it, but for a cap that few logits reach there."""
    return {"softcap": 3.0, "is_causal": True}


def sunk(rng, batch, heads, rows, keys):
    sinks = eighths(rng, heads, most=6)
    sinks[:1] = -np.inf
    return {"sinks": sinks}


def alibi(rng, batch, heads, rows, keys):
    slopes = 2.0 ** -np.arange(1, heads + 1, dtype=np.float32)
    return {"alibi_slopes": slopes, "is_causal": True}


def bool_mask(rng, batch, heads, rows, keys):
    return {"attn_mask": documents(rng, rows, keys)}


def padding(rng, batch, heads, rows, keys):
    lengths = rng.integers(0, keys + 1, batch)
    seen = np.arange(keys) < lengths[:, None]
    return {"attn_mask": seen[:, None, None, :], "softcap": 5.0, "sinks": eighths(rng, heads)}


def bias(rng, batch, heads, rows, keys):
    return {"attn_mask": masked(rng, (heads, rows, keys))}


def everything(rng, batch, heads, rows, keys):
    slopes = np.float32(0.125) * rng.integers(0, 4, (batch, heads)).astype(np.float32)
    return {
        "window_size": (keys // 2, rows // 3),
        "softcap": 4.0,
        "sinks": eighths(rng, heads),
        "attn_mask": masked(rng, (batch, 1, rows, keys)),
        "alibi_slopes": slopes,
    }


SETS = {
    "window": windows,
    "sliding": sliding,
    "softcap": capped,
    "sinks": sunk,
    "alibi": alibi,
    "bool": bool_mask,
    "padding": padding,
    "bias": bias,
    "everything": everything,
}


def score_options(name, rng, q_shape, seqlen_kv):
    """Return options of a call by their names, arrays as NumPy's of bool or float32."""
    batch, heads, rows = q_shape[:3]
    return SETS[name](rng, batch, heads, rows, seqlen_kv)


def in_library(options, dtype, make):
    """Return the same with arrays of another library: ``make(x, dtype)``, floats of a type."""
    return {
        name: make(x, dtype if x.dtype == np.float32 else x.dtype.name) if name in ARRAYS else x
        for name, x in options.items()
    }
