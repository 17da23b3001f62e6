"""A few small calls that touch every kind of kernel, for compute-sanitizer to watch.

Run as: compute-sanitizer --tool memcheck python -m benchmarks.sanitizer_grid [PART PARTS]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial

import numpy as np

import cuattn
from cuattn.arrays.device import current_device
from cuattn.bench.cases import CORE, Case
from cuattn.bench.ours import supported_schemes
from cuattn.bench.rate_kernels import rate_calls
from cuattn.presets import PRESETS, resolve
from cuattn.scheme import Scheme

from . import sanitizer_caches, sanitizer_latent
from .measurements import left_out
from .mma_family import mma_family
from .sanitizer_scores import SCORED, Scored


def case(heads: tuple[int, int], seqlens: tuple[int, int], head_dim: int, causal: bool) -> Case:
    """Return a case with a batch of 1."""
    return Case(
        batch=1,
        num_q_heads=heads[0],
        num_kv_heads=heads[1],
        seqlen_q=seqlens[0],
        seqlen_kv=seqlens[1],
        head_dim=head_dim,
        is_causal=causal,
    )


# Whole tiles, and every kind of edge at once. The tools slow a kernel down a hundredfold, so
# nothing is larger than it must be to have two tiles each way.
WHOLE = case((1, 1), (256, 256), 128, causal=False)
RAGGED = case((2, 1), (129, 257), 64, causal=True)
SHAPES = [WHOLE, RAGGED]
# Schemes that the kernels of mma.sync are watched with where another family serves calls.
OF_MMA = ("int8", "int8-block", "int8-fp16", "int4", "int-flash", "fp16")
# What no preset has: groups of channels, V rotated of which the ranges of channels are wanted, and
# sorted keys that are not rotated.
COMPOSED = [
    replace(PRESETS["int4"], name="groups", q_scope="group", k_scope="group", qk_group=32),
    replace(PRESETS["int8-fast"], name="rotated", rotate="qkv"),
    replace(PRESETS["int8"], name="sorted", rotate="none"),
]
# Rows that see no key, one key only, head dims that are padded, and more items than any GPU has
# multiprocessors, once each.
EDGES: list[tuple[str | Scheme, Case]] = [
    ("int8", case((1, 1), (113, 7), 128, causal=True)),
    ("int8-block", case((1, 1), (1, 1), 64, causal=False)),
    ("int8", case((1, 1), (65, 191), 40, causal=False)),
    ("int8-fp16", case((1, 1), (33, 97), 256, causal=True)),
    ("int8-fast", case((300, 100), (129, 130), 64, causal=True)),
    *((scheme, shape) for scheme in COMPOSED for shape in SHAPES),
]


def run(scheme: str | Scheme, shape: Case, dtype: str, layout: str, **scores: object) -> None:
    """Attend in strided memory, also to what is quantized beforehand, and look at the output."""
    import cupy

    rng = np.random.default_rng(0)

    def strided(heads: int, seqlen: int) -> object:
        # Rows with a gap before each, the last of which ends the allocation: an overrun shows.
        sizes = (heads, seqlen) if layout == "HND" else (seqlen, heads)
        values = rng.standard_normal((shape.batch, *sizes, shape.head_dim + 8))
        return cupy.asarray(values.astype(dtype))[..., 8:]

    q = strided(shape.num_q_heads, shape.seqlen_q)
    k, v = (strided(shape.num_kv_heads, shape.seqlen_kv) for _ in range(2))
    options = {"is_causal": shape.is_causal, "scheme": scheme, "layout": layout, **scores}
    given = [(k, v)]
    how = resolve(scheme)
    if how.qk != "fp16":
        given.append((cuattn.quantize(k, operand="k", scheme=scheme, layout=layout), v))
    if how.k_scope == "sorted":
        # In an order of both, which an array may take of the other's.
        pair = cuattn.quantize_kv(k, v, scheme=scheme, layout=layout)
        given += [pair, (k, pair[1])]
    for keys, values in given:
        if not bool(cupy.isfinite(cuattn.attention(q, keys, values, **options)).all()):
            raise RuntimeError(f"{scheme} {asdict(shape)}: the output is not finite")


def run_merging(dtype: str, gap: int, parts: int = 19) -> None:
    """Merge states whose rows lie apart, more than one launch takes, and look at the output.

    Raises
    ------
    RuntimeError
        If it is not finite.
    """
    import cupy

    rng = np.random.default_rng(0)
    values = rng.standard_normal((parts, 2, 3, 37, 72 + gap)).astype(dtype)
    o = [cupy.asarray(x)[..., gap:] for x in values]
    lse = [cupy.asarray(x) for x in rng.standard_normal((parts, 2, 3, 37)).astype(np.float32)]
    for result in cuattn.merge_states(o, lse):
        if not bool(cupy.isfinite(result).all()):
            raise RuntimeError(f"{dtype} states with gaps of {gap}: the result is not finite")


def run_by_mma(scheme: str, shape: Case = RAGGED) -> None:
    """Attend by the kernels of mma.sync, on edges if nothing else is said."""
    with mma_family():
        run(scheme, shape, "float16", "HND")


def run_scored(scored: Scored, by_mma: bool) -> None:
    """Attend with options of scores on edges, by either family of kernels."""
    with mma_family() if by_mma else nullcontext():
        run(scored.scheme, RAGGED, "float16", "HND", **scored.options(RAGGED))


def calls() -> list[Callable[[], object]]:
    """Return all that is watched: of each kind of kernel something, of no product all."""
    schemes = supported_schemes(PRESETS, left_out)
    # Those that are compared with differ from these by values of one template, so edges will do.
    shaped = [(x, shape) for x in schemes for shape in (SHAPES if x in CORE else [RAGGED])]
    found: list[Callable[[], object]] = []
    for count, (scheme, shape) in enumerate([*shaped, *EDGES]):
        dtype, layout = ("float16", "float32")[count % 2], ("HND", "NHD")[count // 2 % 2]
        found.append(partial(run, scheme, shape, dtype, layout))
    found += [partial(run_by_mma, scheme) for scheme in OF_MMA if scheme in schemes]
    found.append(partial(run_by_mma, "int8", WHOLE))
    found += [partial(run_scored, x, by_mma) for x in SCORED for by_mma in (False, True)]
    found += [partial(sanitizer_caches.run, small) for small in sanitizer_caches.CACHES]
    found += [partial(sanitizer_latent.run, small) for small in sanitizer_latent.CACHES]
    # Rows that begin at whole vectors, and others.
    found += [
        partial(run_merging, dtype, gap) for dtype in ("float16", "float32") for gap in (8, 1)
    ]
    # Two rounds of products, and what the CTAs of an H200 read in two turns.
    rates = rate_calls(current_device(), 1 << 25, {True: 2, False: 2})
    return found + [call.run for call in rates]


def main() -> None:
    """Run the grid with every array in an allocation of its own, so that memcheck sees its end."""
    import cupy

    part, parts = map(int, sys.argv[1:]) if sys.argv[1:] else (0, 1)
    cupy.cuda.set_allocator(None)
    mine = calls()[part::parts]
    for call in mine:
        call()
    cupy.cuda.runtime.deviceSynchronize()
    print(f"{len(mine)} calls done")


if __name__ == "__main__":
    main()
