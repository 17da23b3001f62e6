"""Tables of what the GPU can do at most, and of what it takes to begin."""

from __future__ import annotations

from tools.record_figures import Figures, show, table

WHAT = {
    "copy": "copying memory",
    "read": "reading memory",
    "int8": "INT8 products",
    "fp8": "FP8 products",
    "fp16": "float16 products, float32 sums",
}


def ceilings(f: Figures) -> str:
    """Return the rates of the kernels that only copy, read or multiply."""
    rows = [
        [WHAT[c.what], c.instruction, f"{show(c.rate)} {c.unit}", show(c.iqr, ".1f")]
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
