"""Tables of times cold and sustained: shapes of real models, and others beside ours."""

from __future__ import annotations

from cuattn.bench.cases import COMPARED, COMPARISON, Case
from cuattn.bench.models import MODELS, Model
from cuattn.bench.series import Series, end_to_end_tops, shape_of
from cuattn.records.record import Timing
from cuattn.records.rows import State
from tools.names import FLOAT16, NAMES
from tools.record_figures import NONE, Figures, pair, show, table

__all__ = ["comparison", "models"]

# In the order of what a reader compares: ours first in float16.
SCHEMES = ("fp16", *(scheme for scheme in COMPARED if scheme != "fp16"))
STATES: tuple[State, State] = ("cold", "sustained")


def models(f: Figures) -> str:
    """Return milliseconds of a call from float16 on each model's shape, cold / sustained."""
    rows = [_model(f, model) for model in MODELS]
    header = ["model", "shape", "best float16 of others", *(f"`{x}`" for x in SCHEMES)]
    return table(header, [row for row in rows if row], left=2)


def comparison(f: Figures) -> str:
    """Return the speed of calls at the same shapes in the same run, cold / sustained, in TOPS.

    On operands that are quantized beforehand where there is such a form, so that kernels compare.
    """
    timings = [t for t in f.record.timings if t.case == "comparison"]
    found = {(Series.of(t).name, shape_of(t), t.state): t for t in timings}
    rows = []
    for name, title in NAMES.items():
        cells = [
            pair(_both([found.get((name, shape_of(case), state)) for state in STATES]))
            for case in COMPARISON
        ]
        if any(cell != NONE for cell in cells):
            rows.append([title, *cells])
    return table(["TOPS, cold / sustained", *map(_title, COMPARISON)], rows)


def _model(f: Figures, model: Model) -> list[str] | None:
    """Return a model's row; None if it was not measured."""
    times = [t for t in f.record.timings if t.case == "model" and t.model == model.name]
    if not times:
        return None
    found: dict[tuple[str, State], float | None] = {
        (Series.of(t).name, t.state): t.end_to_end_ms for t in times
    }
    others: list[tuple[float, str]] = []
    for name, state in found:
        ms = found[name, state]
        if name in FLOAT16 and state == STATES[1] and ms:
            others.append((ms, name))
    best = min(others, default=(0.0, ""))[1]
    cells = [_ms(found, name) for name in SCHEMES]
    return [model.name, _shape(model), _ms(found, best), *cells]


def _ms(found: dict[tuple[str, State], float | None], name: str) -> str:
    cold, sustained = (found.get((name, state)) for state in STATES)
    most = max(cold or 0.0, sustained or 0.0)
    return pair((cold, sustained), ".3f" if most < 1 else ".2f" if most < 10 else ".1f")


def _both(times: list[Timing | None]) -> tuple[float | None, float | None]:
    cold, sustained = (None if t is None else t.tops or end_to_end_tops(t) for t in times)
    return cold, sustained


def _shape(model: Model) -> str:
    heads = (
        show(model.heads) if model.heads == model.kv_heads else f"{model.heads}/{model.kv_heads}"
    )
    causal = ", causal" if model.is_causal else ""
    return f"B {model.batch}, {heads} heads, D {model.head_dim}, N {model.tokens}{causal}"


def _title(case: Case) -> str:
    heads = f"{case.num_q_heads}/{case.num_kv_heads}"
    causal = " causal" if case.is_causal else ""
    return f"B {case.batch}, {heads}, N {case.seqlen_kv}{causal}"
