"""What a run of ``cuattn bench`` has to say in a few sentences."""

from __future__ import annotations

from collections.abc import Iterator

from ...bench import prefill
from ...bench.ceilings import share
from ...bench.results import Results
from ...bench.series import Series, by_shape, end_to_end_tops
from ...bench.tradeoff import Tradeoff, front, tradeoffs
from ..table import number
from .decode import rows, speedups
from .look import shape_name

__all__ = ["findings"]


def findings(results: Results) -> Iterator[str]:
    """Yield sentences on the fastest, the most accurate, the choices worth making, and decoding."""
    for sentence in (_fastest(results), *_tradeoff(results), _decoding(results)):
        if sentence:
            yield sentence


def _fastest(results: Results) -> str:
    timed = by_shape(t for t in results.timings if t.is_plain(prefill.KIND) and t.end_to_end_ms)
    ours = {shape: x for shape, x in timed.items() if any(series.is_ours for series in x)}
    if not ours:
        return ""
    # Where most can be compared; of these shapes, that of the most work.
    shape = max(ours, key=lambda x: (len(ours[x]), x.operations))
    speeds = {series: end_to_end_tops(t) or 0.0 for series, t in ours[shape].items()}
    fastest = max((series for series in speeds if series.is_ours), key=lambda x: speeds[x])
    parts = [
        f"Of cuattn's schemes {fastest.name} is the fastest: {number(speeds[fastest])} TOPS from "
        f"float16 inputs to the output ({shape_name(shape)})"
    ]
    of_ceiling = share(results.ceilings, ours[shape][fastest])
    if of_ceiling:
        parts.append(f"its kernel alone at {100 * of_ceiling:.0f} % of the ceiling")
    others = [series for series in speeds if not series.is_ours]
    if others:
        other = max(others, key=lambda x: speeds[x])
        times = speeds[fastest] / speeds[other]
        parts.append(f"{number(times)} times the speed of {other.name}, the fastest of the others")
    return ", ".join(parts) + "."


def _tradeoff(results: Results) -> Iterator[str]:
    found = list(tradeoffs(results))
    if not found:
        return
    shown = max(
        found, key=lambda x: (len(x.points), not x.errors_on.is_causal, x.errors_on.head_dim)
    )
    where = f"on {shown.distribution} inputs, D {shown.errors_on.head_dim}"
    errors = {s: p.error for s, p in shown.points.items() if s.is_ours and s.scheme != "fp16"}
    if errors:
        best = min(errors, key=lambda x: errors[x])
        yield (
            f"The most accurate of its quantized schemes is {best.name}, with a relative L1 error "
            f"of {number(100 * errors[best])} % {where}{_beside_fp16(shown)}."
        )
    points = list(shown.points.values())
    names = [p.name for p in front(points)]
    behind = len(points) - len(names)
    others = f"; the other {behind} lie behind one of these" if behind else ""
    yield (
        f"The choices worth making {where} are, from the fastest to the most accurate, "
        f"{_listed(names)}{others}."
    )


def _beside_fp16(tradeoff: Tradeoff) -> str:
    point = tradeoff.points.get(Series("cuattn", "fp16"))
    return f", where fp16 has {number(100 * point.error)} %" if point else ""


def _decoding(results: Results) -> str:
    gains = {
        (series, shape): gain
        for shape, times in rows(results).items()
        for series, gain in speedups(times).items()
    }
    if not gains:
        return ""
    series, shape = max(gains, key=lambda x: gains[x])
    return (
        f"Decoding gains the most with {series.name}: {number(gains[series, shape])} times the "
        f"speed of the fastest implementation with a float16 cache ({shape_name(shape)})."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
