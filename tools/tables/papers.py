"""The papers' own tables with our figures beside the published ones, for docs/papers.md."""

from __future__ import annotations

from benchmarks import papers
from benchmarks.papers import Table
from cuattn.scheme import Scheme
from tools.tables.record_figures import NONE, Figures, pair, percent, show, table

# Cosine in %, relative L1 and RMSE as the papers print them.
SAGE = {  # arXiv 2410.02367, N(0,1)
    "sage-t": "100 / .019 / 6.8e-4",
    "sage-b": "100 / .021 / 7.3e-4",
    "sage-vt": "99.9 / .064 / .065",
    "sage-vb": "98.9 / .138 / .067",
}
# The release of SageAttention 1, which has this kernel of the four.
SAGE_RELEASE = ("sageattention-1", "sage-b")
# arXiv 2411.10958, INT4 Q Kᵀ, means over the layers of CogvideoX.
GRANULARITY = {
    "token": "99.45 / .0649 / .0335",
    "thread": "99.45 / .0622 / .0313",
    "block": "98.03 / .1492 / .0744",
    "tensor": "97.15 / .1800 / .0865",
}
SMOOTHING = {
    "none": "80.04 / .3906 / .2223",
    "Hadamard": "79.77 / .3782 / .2180",
    "K": "98.07 / .1493 / .0743",
    "Q": "98.30 / .1250 / .0712",
    "Q + K": "99.46 / .0648 / .0334",
}


def int_flash(f: Figures) -> str:
    """Return INT-FlashAttention's two tables: errors by length."""
    return "\n\n".join(_by_length(f, name) for name in papers.INT_FLASH.distributions)


def _by_length(f: Figures, distribution: str) -> str:
    cases = papers.INT_FLASH.cases
    rows = []
    errors: dict[str, list[float | None]] = {}
    for name, scheme in papers.INT_FLASH.rows.items():
        shapes = [(scheme.name, distribution, c.head_dim, c.seqlen_kv) for c in cases]
        errors[name] = [f.metric("relative_l1", *shape) for shape in shapes]
        relative = [f.metric("mean_relative", *shape) for shape in shapes]
        both = zip(errors[name], relative, strict=True)
        rows.append([f"`{name}`", *(pair(x, ".2f", 100) for x in both)])
    saved = [
        1 - mine / theirs if mine and theirs else None
        for mine, theirs in zip(errors["int-flash"], errors["fp8"], strict=True)
    ]
    rows.append(["`int-flash` below `fp8` by, %", *(show(x, ".0f", 100) for x in saved)])
    header = [f"{distribution}: relative L1 / mean relative, %"]
    return table([*header, *(f"N {c.seqlen_kv}" for c in cases)], rows)


def sage(f: Figures) -> str:
    """Return SageAttention's table of its four kernels on N(0,1)."""
    ours = {name: (name, SAGE[name]) for name in papers.SAGE.rows}
    release, kernel = SAGE_RELEASE
    named = {f"`{name}`": row for name, row in ours.items()}
    named |= {f"its release, as `{kernel}`": (release, SAGE[kernel])}
    rows = [
        [title, published, *(_three(f, name, "normal", c) for c in papers.SAGE.cases)]
        for title, (name, published) in named.items()
    ]
    shapes = [f"D {c.head_dim}, N {c.seqlen_kv}" for c in papers.SAGE.cases]
    return table(["cosine in % / relative L1 / RMSE", "published", *shapes], rows)


def granularity(f: Figures) -> str:
    """Return SageAttention2's table of the scopes of scales with INT4 Q Kᵀ."""
    return _beside(f, papers.GRANULARITY, GRANULARITY, "scales of")


def smoothing(f: Figures) -> str:
    """Return SageAttention2's table of what is subtracted with INT4 Q Kᵀ."""
    return _beside(f, papers.SMOOTHING, SMOOTHING, "smoothed")


def rotation(f: Figures) -> str:
    """Return the errors with and without rotation on every distribution."""
    return _errors(f, papers.ROTATION)


def twin(f: Figures) -> str:
    """Return the errors of twin-uniform P by its split, beside other 8-bit P."""
    return _errors(f, papers.TWIN)


def _beside(f: Figures, of: Table, published: dict[str, str], what: str) -> str:
    (case,) = of.cases
    rows = [
        [
            title,
            published.get(title, NONE),
            *(_three(f, scheme.name, x, case) for x in of.distributions),
        ]
        for title, scheme in of.rows.items()
    ]
    header = [f"{what}; cosine in % / relative L1 / RMSE", "published", *of.distributions]
    return table(header, rows)


def _errors(f: Figures, of: Table) -> str:
    (case,) = of.cases

    def row(scheme: Scheme) -> list[str]:
        sizes = (case.head_dim, case.seqlen_kv)
        return [percent(f.error(scheme.name, x, *sizes)) for x in of.distributions]

    rows = [[title, *row(scheme)] for title, scheme in of.rows.items()]
    return table(["relative L1, %", *of.distributions], rows)


def _three(f: Figures, name: str, distribution: str, case: papers.Case) -> str:
    found = [
        f.metric(metric, name, distribution, case.head_dim, case.seqlen_kv)
        for metric in ("cosine", "relative_l1", "rmse")
    ]
    if None in found:
        return NONE
    cosine, l1, rmse = found
    small = show(rmse, ".1e").replace("e-0", "e-")
    return f"{show(cosine, '.3f', 100)} / {show(l1, '.4f').lstrip('0')} / {small}"
