"""What each version set out to reach on an H200, and what the record says."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.first_results import GOAL_COLD, GOAL_WARM
from cuattn.reference.distributions import DISTRIBUTIONS
from tools.tables import chunks, decode, features, goals_default
from tools.tables.record_figures import MISSED, Figures, at_least, at_most, table

FLASH = "pytorch-flash"
PEER = "comfy-kitchen"
LENGTHS = [(head_dim, seqlen) for head_dim in (64, 128) for seqlen in (4096, 16384)]

# Relative L1 error of int8, D = 128.
ERRORS = {"normal": 0.015, "uniform": 0.0045, "k-bias": 0.015, "peaked": 0.028, "outliers": 0.03}

# TOPS of a kernel on Hopper: scheme, D, N, causal, least.
HOPPER_KERNELS = (
    ("int8-fast", 128, 16384, False, 1080),
    ("int8-fast", 128, 4096, False, 970),
    ("int8-fast", 128, 16384, True, 980),
    ("int8-block", 128, 16384, False, 940),
    ("int8-block", 64, 16384, False, 660),
    ("int8", 128, 16384, False, 760),
    ("int8", 64, 16384, False, 500),
    ("int8-fp8", 128, 16384, False, 880),
    ("fp16", 128, 16384, False, 620),
)
# The same from float16 inputs: scheme, N, least.
HOPPER_CALLS = (("int8-block", 16384, 880), ("int8-block", 4096, 720))
# The fastest of these counts where N = 1024.
FULL_INT8 = ("int8", "int8-block", "int8-fast")
HOPPER_SHORT = 700
# Relative L1 error, D = 128, the worst of the lengths: scheme, distribution, lengths, most.
HOPPER_ERRORS = (
    ("int8-block", "normal", (1024, 4096, 16384), 0.018),
    ("int8-block", "sharp", (16384,), 0.004),
    ("int8-fast", "normal", (4096,), 0.027),
    ("int8-fast", "sharp", (16384,), 0.006),
)
HOPPER_EMBEDDINGS = (("int8-block", 1.5e-4), ("int8-fast", 4e-4))


# Relative L1 error on N(0,1), the worst of D 64, 128 and N 1024, 4096: what the papers published.
PUBLISHED = (("sage-t", 0.019), ("sage-b", 0.021), ("sage-vt", 0.064), ("sage-vb", 0.138))
# The same of INT4 with Q and K smoothed, on inputs with a common mean.
COMMON_MEAN = 0.065
# `int4` over `int8`, times of calls: D, N, causal.
INT4_CALLS = (
    *((128, n, causal) for n in (16384, 4096) for causal in (False, True)),
    (128, 1024, False),
    *((64, n, False) for n in (16384, 4096)),
)


def goals(f: Figures) -> str:
    """Return the table of version 0.1."""
    header = ["goal (N = 4096 unless said)", "wanted", "measured", "reached"]
    return table(header, [*_errors(f), *_speeds(f), *_costs(f)])


def goals_hopper(f: Figures) -> str:
    """Return the table of version 0.2, which is about Hopper."""
    header = ["goal on Hopper (D = 128 unless said)", "wanted", "measured", "reached"]
    return table(header, [*_hopper_speeds(f), *_hopper_errors(f)])


def goals_schemes(f: Figures) -> str:
    """Return the table of the schemes that papers describe."""
    header = ["goal of the papers' schemes", "wanted", "measured", "reached"]
    return table(header, [*_published(f), *_int4_calls(f)])


def goals_first_calls(f: Figures) -> str:
    """Return the table of first calls."""
    header = ["goal of first calls, the slowest kind", "wanted", "measured", "reached"]
    return table(header, list(_first_calls(f)))


def goals_missed(f: Figures) -> str:
    """Return what of all these tables was not reached."""
    rows = [
        *(*_errors(f), *_speeds(f), *_costs(f)),
        *(*_hopper_speeds(f), *_hopper_errors(f)),
        *goals_default.goal_rows(f),
        *features.goal_rows(f),
        *(*_published(f), *_int4_calls(f)),
        *(*_first_calls(f), *decode.goal_rows(f), *chunks.goal_rows(f)),
    ]
    missed = [row[:3] for row in rows if row[3] == MISSED]
    return table(["goal (D = 128 and N = 4096 unless said)", "wanted", "measured"], missed)


def _first_calls(f: Figures) -> Iterator[list[str]]:
    cold, warm = f.first_call()
    yield at_most("s to the first result, nothing compiled", GOAL_COLD, cold)
    yield at_most("s to the first result, kernels on disk", GOAL_WARM, warm)


def _published(f: Figures) -> Iterator[list[str]]:
    for name, limit in PUBLISHED:
        errors = [f.error(name, "normal", d, n) for d in (64, 128) for n in (1024, 4096)]
        worst = max((x for x in errors if x is not None), default=None)
        yield at_most(f"`{name}`, error in %, normal, the paper's", limit, worst, ".2f", 100)
    for name in ("int4", "sage2-4"):
        error = f.error(name, "common-mean")
        what = f"`{name}`, error in %, common-mean, SageAttention2's"
        yield at_most(what, COMMON_MEAN, error, ".2f", 100)


def _int4_calls(f: Figures) -> Iterator[list[str]]:
    for d, n, causal in INT4_CALLS:
        int4, int8 = (f.tops(name, d, n, causal)[1] for name in ("int4", "int8"))
        slower = int8 / int4 if int4 and int8 else None
        where = f"D {d}, N {n}{', causal' if causal else ''}"
        yield at_most(f"time of a call with `int4` over `int8`, {where}", 1.1, slower)


def _errors(f: Figures) -> Iterator[list[str]]:
    for name, limit in ERRORS.items():
        yield at_most(f"`int8`, error in %, {name}", limit, f.error("int8", name), ".2f", 100)
    short, long = (f.error("int8", "normal", seqlen=n) for n in (1024, 16384))
    growth = long / short if short and long else None
    yield at_most("`int8`, error at 16384 keys over that at 1024", 1.15, growth)
    beside = [(f.error("int8", name), f.error(PEER, name)) for name in DISTRIBUTIONS]
    worst = max((mine / theirs for mine, theirs in beside if mine and theirs), default=None)
    yield at_most("`int8`, error over comfy-kitchen's, worst of all inputs", 1.0, worst)
    embedding = f.embedding("int8")
    yield at_most("`int8`, 1 − cosine of MiniLM's embedding, 10⁻⁵", 5e-5, embedding, ".1f", 1e5)


def _speeds(f: Figures) -> Iterator[list[str]]:
    block, int8 = "`int8-block` over FlashAttention-2", "`int8` over FlashAttention-2"
    for d, wanted in ((128, 1.72), (64, 1.6)):
        yield at_least(f"{block}, D {d}, kernel", wanted, f.faster("int8-block", FLASH, d)[0])
    for d in (128, 64):
        yield at_least(f"{block}, D {d}, end to end", 1.5, f.faster("int8-block", FLASH, d)[1])
    yield at_least(f"{int8}, D 128, kernel", 1.4, f.faster("int8", FLASH, 128)[0])
    for name, wanted in (("int8-block", 1.2), ("int8", 1.0)):
        ratios = [f.faster(name, PEER, *length) for length in LENGTHS]
        for i, part in enumerate(("kernel", "end to end")):
            measured = [x for x in (ratio[i] for ratio in ratios) if x is not None]
            slowest = min(measured, default=None)
            what = f"`{name}` over comfy-kitchen, {part}, slowest of D 64, 128, N 4096, 16384"
            yield at_least(what, wanted, slowest)
    for d in (128, 64):
        yield at_least(f"`fp16` over FlashAttention-2, D {d}", 0.9, f.faster("fp16", FLASH, d)[0])


def _costs(f: Figures) -> Iterator[list[str]]:
    for t in f.record.timings:
        if t.case.startswith("quantize-"):
            what = f"quantizer of {t.case[-1].upper()}, `{t.scheme}`, % of a copy's bandwidth"
            yield at_least(what, 0.8, f.share_of_copy(t), ".0f", 100)
    calls = [t.end_to_end_ms for t in f.record.timings if t.case == "host" and t.end_to_end_ms]
    slowest = max(calls, default=None)
    yield at_most("µs that a call keeps the host, slowest scheme", 0.04, slowest, ".0f", 1e3)


def _hopper_speeds(f: Figures) -> Iterator[list[str]]:
    yield from goals_default.of_kernels(f, HOPPER_KERNELS)
    for name, n, wanted in HOPPER_CALLS:
        measured = f.tops(name, 128, n)[1]
        yield at_least(f"`{name}`, TOPS, end to end, N {n}", wanted, measured, ".0f")
    short = [x for x in (f.tops(name, 128, 1024)[0] for name in FULL_INT8) if x is not None]
    what = "the fastest full INT8, TOPS, kernel, N 1024"
    yield at_least(what, HOPPER_SHORT, max(short, default=None), ".0f")


def _hopper_errors(f: Figures) -> Iterator[list[str]]:
    for name, distribution, lengths, limit in HOPPER_ERRORS:
        errors = [f.error(name, distribution, seqlen=n) for n in lengths]
        worst = max((x for x in errors if x is not None), default=None)
        where = " to ".join(str(n) for n in dict.fromkeys((lengths[0], lengths[-1])))
        yield at_most(f"`{name}`, error in %, {distribution}, N {where}", limit, worst, ".2f", 100)
    for name, limit in HOPPER_EMBEDDINGS:
        what = f"`{name}`, 1 − cosine of MiniLM's embedding, 10⁻⁵"
        yield at_most(what, limit, f.embedding(name), ".1f", 1e5)
