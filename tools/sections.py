"""What the documents say of a record: each section is a function from figures to Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial

from cuattn.presets import PRESETS
from cuattn.reference.distributions import DISTRIBUTIONS
from tools import decode_tables, paper_tables, scheme_tables
from tools.goals import FLASH, LENGTHS, goals, goals_hopper, goals_schemes
from tools.record_figures import Figures, pair, percent, show, table

WIDTH = 100

# What the presets that README.md shows are; in brackets the papers that it links.
ABOUT = {
    "int8": "**default**: INT8 Q, K, V per token; P against its block's maximum; K, V smoothed",
    "int8-block": "for speed: K per 128 keys, V per channel, the rest as `int8`",
    "int8-fast": "the fewest instructions: as `int8-block`, P against the running maximum",
    "int8-fp8": "INT8 Q Kᵀ, FP8 P V, as [SageAttention2]'s 8-bit products",
    "int8-fp16": "INT8 Q Kᵀ per token, K smoothed; float16 P V, as [SageAttention]",
    "int8-two-term": "as `int8`, P as the sum of two bytes",
    "int4": "INT4 Q, K, smoothed as [SageAttention2] does; V and P as `int8-block`",
    "int-flash": "INT8 throughout, one scale for V, as published: [INT-FlashAttention]",
    "int-flash-half": "INT8 Q Kᵀ, float16 P V, as published: [INT-FlashAttention]",
    "fp8": "FP8 throughout, one scale for a head, as [FlashAttention-3]",
    "fp16": "nothing quantized: [FlashAttention-2], the baseline",
}
BASELINES = {
    "pytorch-flash": "PyTorch, FlashAttention-2, float16",
    "pytorch-cudnn": "PyTorch, cuDNN, float16",
    "cudnn-fp8": "cuDNN, FP8 in and out",
    "sageattention-1": "SageAttention 1, INT8 Q Kᵀ",
    "comfy-kitchen": "comfy-kitchen, full INT8",
}
NAMES = {name: f"`{name}`" for name in ABOUT} | BASELINES
EVERYTHING = {name: f"`{name}`" for name in PRESETS} | BASELINES
# The short one is measured without a causal mask only.
WITH_SHORT = sorted([*LENGTHS, (128, 1024)])
# Where speed is set against error: D, and these N.
PARETO = (128, (16384, 4096))
# Errors that differ by less are as good as each other.
SAME = 1.01


def origin(f: Figures) -> str:
    """Say where the figures come from, and whether the code has moved on since."""
    record, versions = f.record, f.record.versions
    names = {
        "driver_cuda": "CUDA driver",
        "nvrtc": "NVRTC",
        "cupy-cuda12x": "cupy-cuda12x",
        "cupy-cuda13x": "cupy-cuda13x",
        "torch": "PyTorch",
        "nvidia-cudnn-cu12": "cuDNN",
        "nvidia-cudnn-cu13": "cuDNN",
        "comfy-kitchen": "comfy-kitchen",
    }
    used = [f"{name} {versions[x]}" for x, name in names.items() if x in versions]
    text = f"One {record.gpu}; {', '.join(used)}. Digest of the code: `{record.digest[:12]}`."
    if record.tests:
        text += (
            f" In the same run {record.tests.passed} tests passed and {record.tests.failed} failed,"
            f" compute-sanitizer's memcheck made {show(record.sanitizer.memcheck)} findings and its"
            f" racecheck {show(record.sanitizer.racecheck)}."
        )
    if record.failures:
        text += f" {record.failures}"
    if record.stale:
        text += f" **These figures are of older code:** {record.stale}"
    return _wrapped(text)


def claims(f: Figures) -> str:
    """Say in words what the tables have in detail."""
    int8, flash = (
        [percent(f.error(name, "normal", seqlen=n)) for n in (1024, 16384)]
        for name in ("int8", "int-flash")
    )
    kernel, end_to_end = (show(x, ".2f") for x in f.faster("int8-block", FLASH, 128))
    hopper = show(f.faster("int8-block", "pytorch-cudnn", 128)[0], ".2f")
    fp8 = show(f.faster("int8-fast", "cudnn-fp8", 128, 16384)[0], ".2f")
    long = [percent(f.error(name, "normal", seqlen=16384)) for name in ("int8-fast", "cudnn-fp8")]
    lines = [
        f"- **`int8`**, the default: every token of Q, K and V has a scale of its own. Relative L1 "
        f"error on N(0,1) inputs {int8[0]} % at 1024 keys and {int8[1]} % at 16384, where "
        f"INT-FlashAttention's formulas give {flash[0]} % and {flash[1]} %; "
        f"{show(f.tops('int8', 128)[0])} TOPS.",
        f"- **`int8-block`**, for speed: {percent(f.error('int8-block', 'normal'))} %, "
        f"{show(f.tops('int8-block', 128)[0])} TOPS. That is {kernel} times as fast as PyTorch's "
        f"FlashAttention-2 in the same run, {end_to_end} times if the quantization of Q, K and V "
        f"counts, and {hopper} times as fast as cuDNN's float16 kernel, which is made for Hopper.",
        f"- **`int8-fast`**, for long sequences: {show(f.tops('int8-fast', 128, 16384)[0])} TOPS "
        f"at 16384 tokens, {fp8} times as fast as cuDNN's FP8 kernel, with an error of {long[0]} % "
        f"where FP8 has {long[1]} %.",
        f"- **In a real model**, the sentence encoder MiniLM with INT8 attention in all of its "
        f"layers, the embedding moves by 1 − cosine = {show(f.embedding('int8'), '.1e')} with "
        f"`int8`, with INT-FlashAttention's formulas by {show(f.embedding('int-flash'), '.1e')}.",
    ]
    return "\n".join(map(_wrapped, lines))


def presets(f: Figures) -> str:
    """Return a row for each preset of README.md: what it is, its errors, its speed."""
    rows = [
        [
            NAMES[name],
            about,
            *(percent(f.error(name, distribution)) for distribution in ("normal", "outliers")),
            *(pair(f.tops(name, head_dim)) for head_dim in (64, 128)),
        ]
        for name, about in ABOUT.items()
    ]
    header = ["preset", "is", "error %, N(0,1)", "outliers", "TOPS, D 64", "D 128"]
    return table(header, rows, left=2)


def speed(f: Figures, *, causal: bool) -> str:
    """Return the speed of README.md's presets and of baselines, kernel only and end to end."""
    lengths = LENGTHS if causal else WITH_SHORT
    rows = []
    for name, title in NAMES.items():
        speeds = [f.tops(name, *length, causal) for length in lengths]
        if any(kernel for kernel, _ in speeds):
            rows.append([title, *map(pair, speeds)])
    return table(["TOPS", *_shapes(lengths)], rows)


def ratios(f: Figures) -> str:
    """Return how presets and baselines compare, kernel only and end to end."""
    rows = []
    for name in ("int8-fast", "int8-block", "int8", "fp16"):
        for other, title in BASELINES.items():
            faster = [f.faster(name, other, *length) for length in WITH_SHORT]
            alike = name != "fp16" or other.startswith("pytorch")
            if alike and any(kernel for kernel, _ in faster):
                rows.append([f"`{name}` over {title}", *(pair(x, ".2f") for x in faster)])
    return table(["times as fast", *_shapes(WITH_SHORT)], rows)


def pareto(f: Figures) -> str:
    """Return speed beside error, and what is beaten in both: one table for each length."""
    head_dim, lengths = PARETO
    return "\n\n".join(_pareto(f, head_dim, seqlen) for seqlen in lengths)


def _pareto(f: Figures, head_dim: int, seqlen: int) -> str:
    tops: dict[str, float] = {}
    errors: dict[str, tuple[float, float]] = {}
    for name in EVERYTHING:
        speed = f.tops(name, head_dim, seqlen)[0]
        normal, sharp = (f.error(name, x, head_dim, seqlen) for x in ("normal", "sharp"))
        if speed is not None and normal is not None and sharp is not None:
            tops[name], errors[name] = speed, (normal, sharp)
    rows = []
    for name in sorted(tops, key=lambda name: -tops[name]):
        better = [
            other
            for other in tops
            if tops[other] > tops[name]
            and all(a <= SAME * b for a, b in zip(errors[other], errors[name], strict=True))
        ]
        fastest = max(better, key=lambda other: tops[other], default=None)
        front = "on the front" if fastest is None else f"beaten by {EVERYTHING[fastest]}"
        rows.append([EVERYTHING[name], front, show(tops[name]), *map(percent, errors[name])])
    header = [f"D {head_dim}, N {seqlen}", "speed and errors", "TOPS, kernel", "error %, N(0,1)"]
    return table([*header, "sharp"], rows, left=2)


def accuracy(f: Figures) -> str:
    """Return the errors of README.md's presets and of baselines by distribution."""
    rows = []
    for name, title in NAMES.items():
        errors = [f.error(name, distribution) for distribution in DISTRIBUTIONS]
        if any(errors):
            rows.append([title, *map(percent, errors)])
    return table(["relative L1, %", *DISTRIBUTIONS], rows)


def lengths(f: Figures) -> str:
    """Return the errors of README.md's presets by length."""
    shapes = [(head_dim, seqlen) for head_dim in (64, 128) for seqlen in (1024, 4096, 16384)]
    rows = [
        [NAMES[name], *(percent(f.error(name, "normal", *shape)) for shape in shapes)]
        for name in ABOUT
    ]
    return table(["relative L1, %", *_shapes(shapes)], rows)


def minilm(f: Figures) -> str:
    """Return the errors of README.md's presets inside MiniLM."""
    rows = []
    for name in ABOUT:
        errors = [percent(f.layer(name, layer)) for layer in range(6)]
        rows.append([NAMES[name], *errors, show(f.embedding(name), ".1e")])
    layers = [f"layer {layer}" for layer in range(6)]
    return table(["relative L1, %", *layers, "embedding, 1 − cosine"], rows)


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


SECTIONS: dict[str, Callable[[Figures], str]] = {
    "origin": origin,
    "claims": claims,
    "presets": presets,
    "speed": partial(speed, causal=False),
    "speed-causal": partial(speed, causal=True),
    "ratios": ratios,
    "accuracy": accuracy,
    "lengths": lengths,
    "minilm": minilm,
    "quantizers": quantizers,
    "host": host,
    "pareto": pareto,
    "goals": goals,
    "goals-hopper": goals_hopper,
    "goals-schemes": goals_schemes,
    "goals-decode": decode_tables.goals,
    "decode": decode_tables.decode,
    "decode-summary": decode_tables.summary,
    "decode-errors": decode_tables.errors,
    "schemes": scheme_tables.schemes,
    "scheme-costs": scheme_tables.costs,
    "scheme-errors": scheme_tables.errors,
    "paper-int-flash": paper_tables.int_flash,
    "paper-sage": paper_tables.sage,
    "paper-granularity": paper_tables.granularity,
    "paper-smoothing": paper_tables.smoothing,
    "rotation": paper_tables.rotation,
    "paper-twin": paper_tables.twin,
}


def _shapes(lengths: list[tuple[int, int]]) -> list[str]:
    return [f"D {head_dim}, N {seqlen}" for head_dim, seqlen in lengths]


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
