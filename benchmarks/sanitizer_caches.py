"""A few small KV caches for compute-sanitizer: formats, edges of lengths, options of queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import cuattn


@dataclass(frozen=True)
class Small:
    """A cache, the tokens of each append by sequence, the queries and options of theirs.

    Those of `packed` appends lie end to end.
    """

    head_dim: int
    heads: tuple[int, int]
    counts: tuple[tuple[int, ...], ...]
    queries: int = 1
    dtype: str = "float16"
    options: dict[str, Any] = field(default_factory=dict)
    scores: tuple[str, ...] = ()
    packed: bool = False


# Blocks of 128 tokens and units of 16, whole and not; an empty sequence; heads that share K.
CACHES = [
    Small(128, (4, 1), ((256,), (1,))),
    Small(128, (8, 1), ((129, 0, 17), (1, 0, 1)), options={"bits": 4}),
    Small(64, (2, 2), ((16, 300), (1, 1)), options={"bits": 4, "group": 32, "v_zero": True}),
    Small(256, (4, 1), ((130,),), queries=5, options={"k_bits": 8, "v_bits": 4, "v_zero": True}),
    Small(96, (6, 2), ((40, 257),), queries=2, dtype="float32", options={"smooth_k": False}),
    Small(128, (16, 2), ((31, 140), (1, 0), (1, 1)), options={"page_size": 16}),
    Small(
        128,
        (8, 2),
        ((200, 60),),
        queries=17,
        options={"page_size": 64, "bits": 4, "group": 64},
    ),
    # So many queries that the cache's tokens become operands of attention.
    Small(128, (4, 1), ((7, 0), (250, 130)), queries=128, options={"page_size": 16, "bits": 4}),
    Small(
        96,
        (8, 2),
        ((300, 31),),
        queries=130,
        scores=("window_size", "softcap", "sinks", "alibi_slopes"),
    ),
    Small(112, (8, 2), ((20, 300), (1, 1)), queries=260, scores=("attn_mask", "rope")),
    Small(64, (4, 1), ((7,), (9,)), queries=9, options={"k_bits": 4, "v_bits": 8}),
    # Channels that are padded.
    Small(80, (4, 1), ((130, 3), (1, 1)), dtype="float32"),
    Small(112, (8, 2), ((20, 300), (1, 1)), queries=3, options={"bits": 4}),
    Small(128, (8, 1), ((300, 0, 17), (1, 1, 1)), scores=("window_size", "sinks")),
    # Expressions, for few queries and for many.
    Small(64, (8, 2), ((270, 3), (1, 30)), queries=3, scores=("score_mod", "mask_mod")),
    Small(128, (4, 1), ((7, 0), (250, 130)), queries=260, scores=("score_mod", "mask_mod")),
    Small(
        64,
        (8, 2),
        ((270, 3), (1, 30)),
        queries=5,
        options={"page_size": 16, "bits": 4, "group": 32, "v_zero": True},
        scores=("window_size", "softcap", "sinks", "attn_mask", "alibi_slopes"),
    ),
    # Tokens of all sequences end to end.
    Small(128, (4, 1), ((33, 0, 150), (1, 1, 1), (0, 20, 0)), packed=True),
    Small(80, (4, 2), ((17, 5), (1, 40)), options={"page_size": 16, "bits": 4}, packed=True),
]


def run(small: Small) -> None:
    """Append in pieces, attend after each, and look at the output.

    Raises
    ------
    RuntimeError
        If it is not finite.
    """
    import cupy

    rng = np.random.default_rng(0)
    q_heads, kv_heads = small.heads
    batch = len(small.counts[0])
    # No room to spare: an overrun of a sequence is one of the memory, or of another's.
    capacity = int(np.sum(small.counts, axis=0).max())
    cache = cuattn.KVCache(batch, kv_heads, small.head_dim, capacity, **small.options)

    def drawn(heads: int, tokens: int) -> Any:
        values = rng.standard_normal((batch, heads, tokens, small.head_dim))
        return cupy.asarray(values.astype(small.dtype))

    # The window leaves out units and blocks; the mask has more columns than some have tokens.
    scores = {
        "window_size": (20, 0),
        "softcap": 5.0,
        "sinks": cupy.asarray(rng.standard_normal(q_heads).astype(np.float32)),
        "attn_mask": cupy.asarray(rng.random((batch, 1, small.queries, 40)) < 0.5),
        "alibi_slopes": cupy.asarray(rng.random((batch, q_heads)).astype(np.float16)),
        # Arrays of just what there is to be asked of.
        "score_mod": cuattn.ScoreMod(
            "score + bias[(batch * heads + head) * queries + q]",
            arrays={"bias": cupy.zeros((batch, q_heads, small.queries), np.float32)},
            numbers={"heads": q_heads, "queries": small.queries},
        ),
        "mask_mod": cuattn.MaskMod(
            "seen[batch * tokens + kv] && kv <= own",
            arrays={"seen": cupy.ones((batch, capacity), np.bool_)},
            numbers={"tokens": capacity},
        ),
        "rope": cuattn.Rope(*cupy.asarray(rng.random((2, capacity, 24)).astype(np.float32))),
    }
    given: dict[str, Any] = {name: scores[name] for name in small.scores}
    q = drawn(q_heads, small.queries)
    for counts in small.counts:
        k, v = (drawn(kv_heads, max(counts)) for _ in range(2))
        if small.packed:
            # As long as it has to be.
            rows = [[x[b, :, :n] for b, n in enumerate(counts)] for x in (k, v)]
            packed = (cupy.concatenate(x, axis=1).swapaxes(0, 1).copy() for x in rows)
            cache.append(*packed, cu_seqlens_k=np.cumsum([0, *counts]))
        else:
            cache.append(k, v, counts=np.array(counts))
        o, _ = cache.attend(q, return_lse=True, **given)
        if not bool(cupy.isfinite(o).all()):
            raise RuntimeError(f"{small}: the output is not finite")
