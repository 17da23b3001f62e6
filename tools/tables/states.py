"""Tables of times in two states of the GPU: single calls from a cold L2 cache, and sustained calls.

The record has them in rows of the cases "comparison", of ours and others' kernels at the same
shapes, and "model", of calls at shapes of published models.
"""

from __future__ import annotations

from cuattn.bench.series import Series
from cuattn.records.rows import Shape, Timing, shape_of
from tools.tables.names import EVERYTHING, FLOAT16, SHORT
from tools.tables.record_figures import NOTHING, Figures, pair, show, table

COLD, SUSTAINED = STATES = ("cold", "sustained")
# Of ours, the columns of the table of models.
CALLS = ("fp16", "int8", "int8-block", "int8-fast")


def comparison(f: Figures) -> str:
    """Return the speed of kernels in both states, a column for each shape."""
    found = _by_state(f, "comparison")
    shapes = list(dict.fromkeys(shape_of(t) for t in f.record.timings if t.case == "comparison"))
    if not shapes:
        return NOTHING
    rows = []
    for name, title in EVERYTHING.items():
        speeds = [tuple(found.get((state, shape, name)) for state in STATES) for shape in shapes]
        if any(any(times) for times in speeds):
            cells = [pair(tuple(t.tops if t else None for t in times)) for times in speeds]
            rows.append([title, *cells])
    return table(["TOPS, cold / sustained", *map(_title, shapes)], rows)


def models(f: Figures) -> str:
    """Return the times of calls from float16, a row for each model."""
    timings = [t for t in f.record.timings if t.case == "model"]
    if not timings:
        return NOTHING
    rows = []
    for model in dict.fromkeys(_model(t) for t in timings):
        of_model = [t for t in timings if _model(t) == model]
        ms = {Series.of(t).name: t.end_to_end_ms for t in of_model}
        others = [(x, name) for name, x in ms.items() if x and name in FLOAT16]
        best = min(others)[1] if others else ""
        cells = [_ms(ms.get(name)) for name in (*CALLS, best)]
        shape = _title(shape_of(of_model[0]))
        rows.append([str(model), shape, *cells, SHORT.get(best, "")])
    header = ["ms of a call", "shape", *(f"`{name}`" for name in CALLS)]
    return table([*header, "best other FP16", "which is"], rows, left=2)


def faster(f: Figures, name: str, other: str, state: str) -> list[float | None]:
    """Return how many times as fast one kernel is as another, at each shape of the comparison."""
    found = _by_state(f, "comparison")
    ratios = []
    for (of, shape, who), mine in found.items():
        theirs = found.get((state, shape, other))
        if (of, who) == (state, name) and theirs:
            ratios.append(mine.tops / theirs.tops if mine.tops and theirs.tops else None)
    return ratios


def _by_state(f: Figures, case: str) -> dict[tuple[str, Shape, str], Timing]:
    rows = (t for t in f.record.timings if t.case == case)
    return {(_state(t), shape_of(t), Series.of(t).name): t for t in rows}


def _ms(x: float | None) -> str:
    most = x or 0.0
    return show(x, ".3f" if most < 1 else ".2f" if most < 10 else ".1f")


def _title(shape: Shape) -> str:
    heads = str(shape.num_q_heads)
    if shape.num_kv_heads != shape.num_q_heads:
        heads += f" over {shape.num_kv_heads}"
    causal = ", causal" if shape.is_causal else ""
    return f"{shape.batch} × {heads}, N {show(shape.seqlen_kv)}, D {shape.head_dim}{causal}"


def _state(t: Timing) -> str:
    return getattr(t, "state", COLD)


def _model(t: Timing) -> str | None:
    return getattr(t, "model", None)
