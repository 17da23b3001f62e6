"""A few small latent caches for compute-sanitizer: rows of every kernel, pages, edges of sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import cuattn


@dataclass(frozen=True)
class Small:
    """The heads of a cache's queries, the tokens of each append by sequence, and options.

    Those of `packed` appends lie end to end.
    """

    heads: int
    counts: tuple[tuple[int, ...], ...]
    queries: int = 1
    dtype: str = "float16"
    options: dict[str, Any] = field(default_factory=dict)
    packed: bool = False


# Blocks of 128 tokens and units of 64, whole and not; an empty sequence; heads that several CTAs
# have tokens of, and tiles of rows.
CACHES = [
    Small(16, ((256,), (1,))),
    Small(40, ((65, 0, 17), (1, 0, 1)), dtype="float32", options={"page_size": 64}),
    Small(128, ((700, 129), (1, 63)), queries=2, options={"rope_dtype": "float16"}),
    Small(16, ((65, 0, 130), (1, 1, 1)), packed=True),
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
    batch = len(small.counts[0])
    # No room to spare: an overrun of a sequence is one of the memory, or of another's.
    capacity = int(np.sum(small.counts, axis=0).max())
    cache = cuattn.LatentKVCache(batch, capacity, **small.options)

    def drawn(*shape: int) -> Any:
        return cupy.asarray(rng.standard_normal(shape).astype(small.dtype))

    q = drawn(batch, small.heads, small.queries, 576)
    for counts in small.counts:
        if small.packed:
            tokens, given = drawn(sum(counts), 576), {"cu_seqlens_k": np.cumsum([0, *counts])}
        else:
            tokens, given = drawn(batch, max(counts), 576), {"counts": np.array(counts)}
        cache.append(tokens[..., :512], tokens[..., 512:], **given)
        o, _ = cache.attend(q, scale=192**-0.5, return_lse=True)
        if not bool(cupy.isfinite(o).all()):
            raise RuntimeError(f"{small}: the output is not finite")
