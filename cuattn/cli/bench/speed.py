"""Pictures of speed against length: one pair for each head dimension and mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...bench import prefill
from ...bench.results import Results
from ...bench.series import Series, end_to_end_tops
from ...records.record import Timing
from ..pages.figures import canvas, svg
from ..pages.labels import Label, height_of, label_ends
from ..pages.page import Card
from .look import look

__all__ = ["draw", "groups", "title_of"]

TEXTS = {
    "kernel only": "Attention alone: Q, K and V are quantized already.",
    "end to end": "From float16 inputs: quantization of Q, K and V is included.",
}
TOPS: dict[str, Callable[[Timing], float | None]] = {
    "kernel only": lambda timing: timing.tops,
    "end to end": end_to_end_tops,
}

# Head dimension, whether causal, heads of Q and of K.
Group = tuple[int, bool, int, int]


def groups(results: Results) -> dict[Group, list[Timing]]:
    """Return the times of attention to as many keys as queries, by what a picture has one of."""
    found: dict[Group, list[Timing]] = {}
    for t in results.timings:
        if t.is_plain(prefill.KIND):
            group = t.head_dim, t.is_causal, t.num_q_heads, t.num_kv_heads
            found.setdefault(group, []).append(t)
    return dict(sorted(found.items()))


def title_of(group: Group) -> str:
    """Return what a group is called."""
    head_dim, is_causal, q, kv = group
    heads = f"{q} heads" if q == kv else f"{q} heads over {kv}"
    return f"D {head_dim}, {heads}, {'causal' if is_causal else 'no mask'}"


def draw(results: Results, prefix: str) -> Iterator[Card]:
    """Yield pictures of TOPS against length, two of a group with the same scale."""
    for i, (group, timings) in enumerate(groups(results).items()):
        pair = {kind: _lines(timings, tops) for kind, tops in TOPS.items()}
        speeds = [x for lines in pair.values() for of in lines.values() for x in of.values()]
        height = height_of(max(map(len, pair.values())))
        for j, (kind, lines) in enumerate(pair.items()):
            if lines:
                picture = _picture(lines, max(speeds), height, f"{prefix}-{i}-{j}")
                text = f"{TEXTS[kind]} {_batches(timings)}"
                yield Card(f"{title_of(group)}: {kind}", picture, text)


def _lines(
    timings: list[Timing], tops: Callable[[Timing], float | None]
) -> dict[Series, dict[int, float]]:
    """Return the speeds of each series by length; of several batches that of the largest."""
    found: dict[Series, dict[int, float]] = {}
    for t in sorted(timings, key=lambda t: (t.seqlen_kv, t.batch)):
        speed = tops(t)
        if speed:
            found.setdefault(Series.of(t), {})[t.seqlen_kv] = speed
    return found


def _batches(timings: list[Timing]) -> str:
    batches = {t.batch for t in timings}
    if len(batches) == 1:
        return f"Batch {batches.pop()}."
    each = {
        t.seqlen_kv: max(x.batch for x in timings if x.seqlen_kv == t.seqlen_kv) for t in timings
    }
    return "Batch " + ", ".join(f"{each[n]} at {n}" for n in sorted(each)) + "."


def _picture(lines: dict[Series, dict[int, float]], most: float, height: float, prefix: str) -> str:
    figure, axes = canvas(height)
    labels = []
    for series, speeds in lines.items():
        shown = look(series)
        axes.plot(list(speeds), list(speeds.values()), **shown(), clip_on=False)
        last = max(speeds)
        labels.append(Label(series.name, last, speeds[last], shown.color))
    lengths = sorted({n for speeds in lines.values() for n in speeds})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n}" for n in lengths])
    axes.minorticks_off()
    axes.set_ylim(0, 1.05 * most)
    axes.set_xlabel("tokens")
    axes.set_ylabel("10¹² operations a second")
    label_ends(axes, labels, height)
    return svg(figure, prefix)
