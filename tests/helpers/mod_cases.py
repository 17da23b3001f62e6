"""Expressions of callers beside what they say in NumPy, for any sizes."""

import numpy as np

from cuattn import MaskMod, ScoreMod

from .score_cases import documents, eighths


def neutral(rng, batch, heads, rows, keys):
    return {"score_mod": ScoreMod("score", reference=lambda score: score)}


def distances(rng, batch, heads, rows, keys):
    """As `alibi_slopes`, with a slope of each head of each sequence."""
    slopes = np.abs(eighths(rng, (batch, heads), most=1))
    mod = ScoreMod(
        "score - slopes[batch * heads + head] * abs(own - kv)",
        arrays={"slopes": slopes},
        numbers={"heads": heads},
        reference=lambda score, batch, head, own, kv, slopes: (
            score - slopes[batch, head] * abs(own - kv)
        ),
    )
    return {"score_mod": mod}


def recency(rng, batch, heads, rows, keys):
    """The same under a causal mask, where it is linear in the key; without slopes of some heads."""
    return {**distances(rng, batch, heads, rows, keys), "is_causal": True}


def linear(rng, batch, heads, rows, keys):
    """Linear in the key without any mask, up or down, and nothing of sequences but the first."""
    slopes = np.resize(np.float32([0.25, 0.0, -0.125, 2.0**-7]), heads)
    of_batch = np.where(np.arange(batch) == 1, -np.inf, 0.5).astype(np.float32)
    mod = ScoreMod(
        "score + slopes[head] * (float)(kv - q) / parts + of_batch[batch]",
        arrays={"slopes": slopes, "of_batch": of_batch},
        numbers={"parts": 4},
        reference=lambda score, batch, head, q, kv, slopes, of_batch, parts: (
            score + slopes[head] * (kv - q) / parts + of_batch[batch]
        ),
    )
    return {"score_mod": mod, "sinks": eighths(rng, heads)}


def relative(rng, batch, heads, rows, keys):
    """A bias of distances, as in T5, in a function of some statements."""
    table = eighths(rng, (heads, 33))
    mod = ScoreMod(
        """
        int away = own - kv;           // either way
        away = min(max(away, -16), 16);
        return score + table[head * 33 + away + 16];
        """,
        arrays={"table": table},
        reference=lambda score, head, own, kv, table: (
            score + table[head, np.clip(own - kv, -16, 16) + 16]
        ),
    )
    return {"score_mod": mod}


def hiding(rng, batch, heads, rows, keys):
    """Hides keys, whole blocks of them and whole rows, by -inf; after a softcap."""
    seen = documents(rng, rows, keys)
    mod = ScoreMod(
        "seen[q * keys + kv] ? score * 0.5f : -INFINITY",
        arrays={"seen": seen},
        numbers={"keys": keys},
        reference=lambda score, q, kv, seen: np.where(seen[q, kv], score / 2, -np.inf),
    )
    return {"score_mod": mod, "softcap": 4.0}


def chunks(rng, batch, heads, rows, keys):
    """As in Llama 4, of keys beside rows."""
    mod = MaskMod(
        "own / n == kv / n && kv <= own",
        numbers={"n": 70},
        reference=lambda own, kv, n: (own // n == kv // n) & (kv <= own),
    )
    return {"mask_mod": mod}


def same_document(rng, batch, heads, rows, keys):
    of_row = rng.integers(0, 3, (batch, rows))
    of_row[:, 1::7] = 9  # which no key is of
    of_key = np.sort(rng.integers(0, 3, (batch, keys)), axis=1)
    mod = MaskMod(
        "of_row[batch * rows + q] == of_key[batch * keys + kv]",
        arrays={"of_row": of_row.astype(np.int32), "of_key": of_key.astype(np.int32)},
        numbers={"rows": rows, "keys": keys},
        reference=lambda batch, q, kv, of_row, of_key: of_row[batch, q] == of_key[batch, kv],
    )
    return {"mask_mod": mod}


def both(rng, batch, heads, rows, keys):
    """Both, under a causal mask, with sinks and slopes."""
    return {
        **distances(rng, batch, heads, rows, keys),
        **same_document(rng, batch, heads, rows, keys),
        "is_causal": True,
        "sinks": eighths(rng, heads),
        "alibi_slopes": np.float32(0.25) * np.arange(heads, dtype=np.float32),
    }


def masked_too(rng, batch, heads, rows, keys):
    """Where a mask of floats hides keys, no expression shows them again."""
    bias = np.where(documents(rng, rows, keys), 0.5, -np.inf).astype(np.float32)
    mod = ScoreMod("fmaxf(score, -2.f)", reference=lambda score: np.maximum(score, -2.0))
    return {"score_mod": mod, "attn_mask": bias, "window_size": (keys // 2, rows // 3)}


MODS = {
    "neutral": neutral,
    "distances": distances,
    "recency": recency,
    "linear": linear,
    "relative": relative,
    "hiding": hiding,
    "chunks": chunks,
    "documents": same_document,
    "both": both,
    "masked": masked_too,
}


def mod_options(name, rng, q_shape, seqlen_kv):
    """Return options of a call by their names, arrays as NumPy's."""
    batch, heads, rows = q_shape[:3]
    return MODS[name](rng, batch, heads, rows, seqlen_kv)


def with_arrays(options, make):
    """Return the same with the arrays of expressions in another library: ``make(x)``."""
    return {name: _moved(x, make) if hasattr(x, "reference") else x for name, x in options.items()}


def _moved(mod, make):
    arrays = {name: make(x) for name, x in mod.arrays.items()}
    return type(mod)(mod.text, arrays=arrays, numbers=mod.numbers, reference=mod.reference)


def as_functions(options):
    """Return the same for the reference, which takes functions of where logits are."""
    return {name: _function(x) if hasattr(x, "reference") else x for name, x in options.items()}


def _function(mod):
    named = {**mod.arrays, **mod.numbers}
    place = mod.given

    def called(**given):
        code = mod.reference.__code__
        wanted = code.co_varnames[: code.co_argcount]
        assert set(place) >= set(given)
        return mod.reference(**{x: {**given, **named}[x] for x in wanted})

    return called
