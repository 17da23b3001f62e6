"""Tables of speed: attention, quantizers, the host, first calls, and the most the GPU can do."""

from __future__ import annotations

from cuattn.bench.series import Series
from tools.tables.goals import LENGTHS
from tools.tables.names import BASELINES, EVERYTHING, FLOAT16, NAMES
from tools.tables.record_figures import NOTHING, Figures, pair, shape_titles, show, speeds_of, table

# The short one is measured without a causal mask only.
WITH_SHORT = sorted([*LENGTHS, (128, 1024)])
OF_THE_GPU = {
    "copy": "copying memory",
    "read": "reading memory",
    "int8": "INT8 products",
    "fp8": "FP8 products",
    "fp16": "float16 products, float32 sums",
}


def speed(f: Figures, *, causal: bool) -> str:
    """Return the speed of the main presets and of baselines, kernel only and end to end."""
    lengths = LENGTHS if causal else WITH_SHORT
    rows = []
    for name, title in NAMES.items():
        speeds = [f.tops(name, *length, causal) for length in lengths]
        if any(kernel for kernel, _ in speeds):
            rows.append([title, *map(pair, speeds)])
    return table(["TOPS", *shape_titles(lengths)], rows)


def ratios(f: Figures) -> str:
    """Return how presets and baselines compare, kernel only and end to end."""
    rows = []
    for name in ("int8-fast", "int8-block", "int8", "fp16"):
        for other, title in BASELINES.items():
            faster = [f.faster(name, other, *length) for length in WITH_SHORT]
            alike = name != "fp16" or other in FLOAT16
            if alike and any(kernel for kernel, _ in faster):
                rows.append([f"`{name}` over {title}", *(pair(x, ".2f") for x in faster)])
    return table(["times as fast", *shape_titles(WITH_SHORT)], rows)


def shares(f: Figures) -> str:
    """Return the speed of kernels as a share of the ceiling of each one's products."""
    rows = []
    for name, title in NAMES.items():
        times = [f.time(name, *length) for length in WITH_SHORT]
        found = [f.share_of_ceiling(t) if t else None for t in times]
        if any(found):
            ceiling = next(f.ceiling(t.scheme) for t in times if t)
            rows.append([title, show(ceiling), *(show(x, ".0f", 100) for x in found)])
    return table(["% of the ceiling", "ceiling, TOPS", *shape_titles(WITH_SHORT)], rows)


def mma_sync(f: Figures) -> str:
    """Return the speed of the kernels that serve every GPU but Hopper, beside FlashAttention-2."""
    found = {
        (Series.of(t).name, t.head_dim, t.seqlen_kv): speeds_of(t)
        for t in f.record.timings
        if t.case == "mma-sync"
    }
    if not found:
        return NOTHING
    rows = []
    for name in dict.fromkeys(name for name, *_ in found):
        cells = [pair(found.get((name, *length), (None, None))) for length in WITH_SHORT]
        rows.append([EVERYTHING[name], *cells])
    return table(["TOPS by `mma.sync`", *shape_titles(WITH_SHORT)], rows)


def quantizers(f: Figures) -> str:
    """Return the bandwidth of the quantizers beside that of a copy."""
    moved = [t for t in f.record.timings if t.case == "copy" or t.case.startswith("quantize")]
    rows = []
    for t in moved:
        operand = t.case.partition("-")[2].upper() or "all three"
        what = "device-to-device copy" if t.case == "copy" else f"{operand} for `{t.scheme}`"
        share = show(f.share_of_copy(t), ".0f", 100)
        rows.append([what, show(t.kernel_ms, ".3f"), show(t.gbps), share])
    return table(["1 GiB each", "ms", "GB/s", "% of the copy"], rows)


def host(f: Figures) -> str:
    """Return how long a call keeps the host."""
    calls = [t for t in f.record.timings if t.case == "host"]
    rows = [[f"`{t.scheme}`", show(t.end_to_end_ms, ".1f", 1e3)] for t in calls]
    return table(["scheme", "µs of the host"], rows)


def ceilings(f: Figures) -> str:
    """Return the rates of the kernels that only copy, read or multiply."""
    rows = [
        [OF_THE_GPU[c.what], c.instruction, f"{show(c.rate)} {c.unit}", show(c.iqr, ".1f")]
        for c in f.record.ceilings
    ]
    return table(["the most of", "made of", "median", "inter-quartile range"], rows, left=2)


def first_calls(f: Figures) -> str:
    """Return the seconds to the first result of each kind of call."""
    rows = [
        [
            call.call if " " in call.call else f"`{call.call}`",
            str(call.kernels),
            show(call.cold_s, ".2f"),
            show(call.warm_s, ".2f"),
        ]
        for call in f.record.first_calls
    ]
    header = ["first call of", "kernels", "s, empty cache", "s, kernels on disk"]
    return table(header, rows)
