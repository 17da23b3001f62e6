"""What the version that made sorted keys the default set out to reach on an H200."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tools.tables.record_figures import Figures, at_least, at_most, table

__all__ = ["goal_rows", "goals", "of_kernels"]

FLASH = "pytorch-flash"

# TOPS of a kernel: scheme, D, N, causal, least.
KERNELS = (
    ("int8", 128, 4096, False, 880),
    ("int8", 128, 16384, False, 915),
    ("int8", 64, 4096, False, 580),
    ("int8", 64, 16384, False, 620),
    ("int8-block", 128, 4096, False, 950),
    ("int8-block", 128, 16384, False, 1000),
    ("int8-block", 64, 4096, False, 655),
    ("int8-block", 64, 16384, False, 695),
    ("int8-fast", 128, 4096, False, 1020),
    ("int8-fast", 128, 16384, False, 1110),
    ("int8-fast", 64, 4096, False, 645),
    ("int8-fast", 64, 16384, False, 730),
    ("int8-fast", 128, 16384, True, 1070),
)
# Speed of a call with `int8` from float16 over that of `fp16`: D, N, least.
CALLS = (
    (128, 1024, 1.0),
    (128, 4096, 1.18),
    (128, 16384, 1.22),
    (64, 4096, 1.08),
    (64, 16384, 1.12),
)
# TOPS of a call with `int8-block`, D = 128, N = 4096.
BLOCK_CALL = 840
# Speed of `int8` by kernels of mma.sync over FlashAttention-2, N = 4096: D, least.
MMA = ((128, 1.42), (64, 1.30))
# Host time of a call over that of PyTorch's: what the record calls it, scheme, most.
HOST = (
    ("cuattn, quantized before", "int8", 0.6),
    ("cuattn", "int8", 1.1),
    ("KVCache.attend", "kv-int8", 0.9),
)
# Relative L1 error of `int8`, D = 128: distribution, lengths, most.
ERRORS = (
    ("normal", (1024, 4096, 16384), 0.015),
    ("outliers", (4096,), 0.032),
    ("sinks", (4096,), 0.02),
    ("channel-outliers", (4096,), 0.0135),
)
EMBEDDING = 5e-5


def of_kernels(
    f: Figures, wanted: Iterable[tuple[str, int, int, bool, float]]
) -> Iterator[list[str]]:
    """Yield a row for each goal of a kernel: scheme, D, N, causal, and the least TOPS."""
    for name, d, n, causal, least in wanted:
        where = f"{'causal, ' if causal else ''}{'' if d == 128 else f'D {d}, '}N {n}"
        measured = f.tops(name, d, n, causal)[0]
        yield at_least(f"`{name}`, TOPS, kernel, {where}", least, measured, ".0f")


def goals(f: Figures) -> str:
    """Return the table."""
    header = ["goal of the default (D = 128 unless said)", "wanted", "measured", "reached"]
    return table(header, list(goal_rows(f)))


def goal_rows(f: Figures) -> Iterator[list[str]]:
    """Yield the rows of the table."""
    yield from of_kernels(f, KERNELS)
    for d, n, wanted in CALLS:
        int8, fp16 = f.tops("int8", d, n)[1], f.tops("fp16", d, n)[0]
        ratio = int8 / fp16 if int8 and fp16 else None
        yield at_least(f"a call with `int8` over `fp16`, D {d}, N {n}", wanted, ratio)
    block = f.tops("int8-block", 128, 4096)[1]
    yield at_least("`int8-block`, TOPS, end to end, N 4096", BLOCK_CALL, block, ".0f")
    yield from _by_mma(f)
    yield from _on_the_host(f)
    for distribution, lengths, limit in ERRORS:
        errors = [f.error("int8", distribution, seqlen=n) for n in lengths]
        worst = max((x for x in errors if x is not None), default=None)
        yield at_most(f"`int8`, error in %, {distribution}", limit, worst, ".2f", 100)
    what = "`int8`, 1 − cosine of MiniLM's embedding, 10⁻⁵"
    yield at_most(what, EMBEDDING, f.embedding("int8"), ".1f", 1e5)


def _by_mma(f: Figures) -> Iterator[list[str]]:
    times = {
        (t.implementation, t.scheme, t.head_dim): t.kernel_ms
        for t in f.record.timings
        if t.case == "mma-sync" and t.seqlen_kv == 4096
    }
    for d, wanted in MMA:
        ours, theirs = (
            next((ms for (*name, dim), ms in times.items() if wants(name) and dim == d), None)
            for wants in (lambda name: name[1] == "int8", lambda name: name[0] == FLASH)
        )
        ratio = theirs / ours if ours and theirs else None
        what = f"`int8` by `mma.sync` over FlashAttention-2, kernel, D {d}, N 4096"
        yield at_least(what, wanted, ratio)


def _on_the_host(f: Figures) -> Iterator[list[str]]:
    times = {
        (t.implementation, t.scheme): t.end_to_end_ms
        for t in f.record.timings
        if t.case == "host-call"
    }
    sdpa = times.get(("PyTorch", "fp16"))
    for implementation, scheme, limit in HOST:
        ours = times.get((implementation, scheme))
        ratio = ours / sdpa if ours and sdpa else None
        yield at_most(f"host time over PyTorch's, {implementation}, `{scheme}`", limit, ratio)
