"""What documents say of a record in sentences."""

from __future__ import annotations

import textwrap
from dataclasses import asdict

from benchmarks.decode_rows import DecodeRows
from cuattn.arrays.device import TARGETS
from cuattn.bench.caches import SCHEMES as CACHE_SCHEMES
from cuattn.bench.cases import DECODE
from cuattn.records.record import Record
from tools.tables import states
from tools.tables.goals import LENGTHS as CASES
from tools.tables.names import BASELINES, PEERS
from tools.tables.record_figures import NONE, STATE, Figures, percent, show
from tools.tables.speed import WITH_SHORT
from tools.tables.support import RECORDED

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
            f" compute-sanitizer's tools made {_findings(record)}."
        )
    if record.failures:
        text += f" {record.failures}"
    absent = _absent(f)
    if absent:
        text += f" Without figures in this run: {'; '.join(absent)}."
    if record.stale:
        text += f" **These figures are of older code:** {record.stale}"
    return _wrapped(text)


def _absent(f: Figures) -> list[str]:
    """Return what a full record has, and this one has not."""
    known = {x.implementation for x in f.record.timings if x.is_plain("prefill")}
    absent = [BASELINES[name] for name in PEERS if name not in known]
    return absent + [
        f"{name} ({phase.left_out})"
        for name, phase in f.record.phases.items()
        if phase.left_out is not None
    ]


def _findings(record: Record) -> str:
    """Say what the sanitizer's tools found: "0 findings (memcheck, racecheck)"."""
    counts = {x: n for x, n in asdict(record.sanitizer).items() if n is not None}
    if not any(counts.values()):
        return f"0 findings ({', '.join(counts)})"
    return f"findings: {', '.join(f'{x} {n}' for x, n in counts.items())}"


def status(f: Figures) -> str:
    """Say which GPU has run the code, and for which it is compiled only."""
    record = f.record
    ran = RECORDED.get(record.gpu)
    others = [f"sm_{arch.rstrip('a')}" for arch in TARGETS if arch != ran]
    version = "an earlier version" if record.stale else "this version"
    text = f"Only one GPU has run {version}: an {record.gpu}"
    if record.tests:
        text += (
            f", where {record.tests.passed} tests passed and {record.tests.failed} failed"
            f"{' ([why](docs/results.md))' if record.failures else ''}, and compute-sanitizer's "
            f"tools made {_findings(record)}"
        )
    text += f". For {', '.join(others[:-1])} and {others[-1]} kernels are compiled, not run."
    return _wrapped(text)


def claims(f: Figures) -> str:
    """Say in words how fast and how wrong it is, beside others in the same run."""
    fp16, fp8, calls = (
        _range(f, "int8-fast", other, part)
        for other, part in (("pytorch-cudnn", 0), ("cudnn-fp8", 0), ("pytorch-cudnn", 1))
    )
    int8, ours, theirs = (
        percent(f.error(name, "normal", seqlen=16384))
        for name in ("int8", "int8-fast", "cudnn-fp8")
    )
    of_fp8 = _if_known(fp8, " and {} times as fast as its FP8 kernel")
    error_of_fp8 = _if_known(theirs, ", {} % with cuDNN's FP8")
    rows = DecodeRows(f.record.timings)
    faster = [
        _least_and_most([rows.faster(name, case) for case in DECODE]) for name in CACHE_SCHEMES
    ]
    lines = [
        f"- **Speed**: `int8-fast` is {fp16} times as fast as cuDNN's FP16 kernel{of_fp8}, by "
        f"[shape](docs/results.md#speed): 64 and 128 channels, 1024 to 16384 tokens, causal or "
        f"not; kernels alone, {STATE}.{_sustained(f)} With quantization it is {calls} times as "
        f"fast as cuDNN's FP16 kernel.",
        f"- **Error**: at 16384 tokens, 128 channels and N(0,1) inputs {int8} % with `int8` and "
        f"{ours} % with `int8-fast`{error_of_fp8}.",
        f"- **Decoding**: {faster[0]} times as fast as PyTorch's fastest FP16 kernel with 8 bits, "
        f"{faster[1]} times with 4 ([{len(DECODE)} shapes](docs/results.md#decoding)).",
    ]
    return "\n".join(map(_wrapped, lines))


def _sustained(f: Figures) -> str:
    """Say the same of sustained calls, if the record has any."""
    fp16, fp8 = (
        _least_and_most(states.faster(f, "int8-fast", other, states.SUSTAINED))
        for other in ("pytorch-cudnn", "cudnn-fp8")
    )
    if fp16 == NONE:
        return ""
    where = "[other shapes](docs/results.md#cold-and-sustained)"
    return f" In sustained calls, at {where}, it is {fp16}{_if_known(fp8, ' and {}')} times."


def _if_known(figure: str, text: str) -> str:
    """Return a text with a figure in it, or nothing if there is none."""
    return "" if figure == NONE else text.format(figure)


def _range(f: Figures, name: str, other: str, part: int) -> str:
    """Return how many times as fast one is as another, over all shapes: 0 kernels, 1 calls."""
    shapes = [*((d, n, False) for d, n in WITH_SHORT), *((d, n, True) for d, n in CASES)]
    return _least_and_most([f.faster(name, other, *shape)[part] for shape in shapes])


def _least_and_most(ratios: list[float | None]) -> str:
    known = [x for x in ratios if x is not None]
    if not known:
        return show(None)
    least, most = show(min(known), ".2f"), show(max(known), ".2f")
    return least if least == most else f"{least} to {most}"


def first_call(f: Figures) -> str:
    """Say what a user waits for before the first result, as one of the limits."""
    cold, warm = (show(x, ".2f") for x in f.first_call())
    return _wrapped(
        f"- The first call with new shapes, types or options compiles one to six kernels, and "
        f"takes up to {cold} s until its result. Later processes find them on disk: up to {warm} s."
    )


def worth(f: Figures) -> str:
    """Say from which length on a call that quantizes float16 inputs is faster than `fp16`."""
    begin = (
        "Quantizing takes time. Without a mask, a call that quantizes float16 inputs is faster "
        "than one of `fp16`, which quantizes nothing, at these lengths (TOPS of the two):"
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
