"""What documents say of a record in sentences."""

from __future__ import annotations

import textwrap

from tools.tables.goals import FLASH
from tools.tables.record_figures import Figures, percent, show

WIDTH = 100

# Those of which documents say from which length on quantizing is worth its time.
WORTH = ("int8", "int8-block", "int8-fast")
LENGTHS = (1024, 4096, 16384)


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


def first_call(f: Figures) -> str:
    """Say what a user waits for before the first result, as one of README.md's limits."""
    cold, warm = (show(x, ".2f") for x in f.first_call())
    return _wrapped(
        f"- The first call of a kind compiles its kernels, one to six of them: until its result it "
        f"takes up to {cold} s. Later processes find them on disk and take up to {warm} s."
    )


def worth(f: Figures) -> str:
    """Say from which length on a call that quantizes float16 inputs is faster than `fp16`."""
    begin = (
        "Quantizing takes time, too. Without a mask, a call from float16 inputs is faster than one "
        "of `fp16`, which quantizes nothing (TOPS of the two):"
    )
    lines = []
    for head_dim in (128, 64):
        clauses = [x for x in (_worth(f, name, head_dim) for name in WORTH) if x]
        lines.append(_wrapped(f"- D = {head_dim}: {'; '.join(clauses) or 'not measured'}."))
    return "\n".join([_wrapped(begin), "", *lines])


def _worth(f: Figures, name: str, head_dim: int) -> str:
    """Say so of a scheme; empty if it was not measured."""
    pairs = {n: (f.tops(name, head_dim, n)[1], f.tops("fp16", head_dim, n)[1]) for n in LENGTHS}
    known = {n: (a, b) for n, (a, b) in pairs.items() if a and b}
    slower = [n for n, (a, b) in known.items() if a <= b]
    faster = [n for n in known if n > max(slower, default=0)]

    def at(n: int) -> str:
        return " against ".join(map(show, known[n]))

    clauses = []
    if faster:
        clauses.append(f"from {faster[0]} tokens on ({at(faster[0])})")
    if slower:
        clauses.append(f"not {'' if faster else 'even '}at {slower[-1]} ({at(slower[-1])})")
    return f"`{name}` {', '.join(clauses)}" if clauses else ""


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
