"""The table of what options of scores cost, and the goals of it.

The record has them in rows of the case "prefill" with a feature; each stands beside "plain" of its
shape, which was timed in the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterator

from cuattn.bench.series import Series
from cuattn.records.rows import Shape, shape_of
from tools.tables.record_figures import NOTHING, Figures, at_least, at_most, show, table

__all__ = ["features", "goal_rows", "goals"]

PLAIN, WINDOW, DOCUMENTS = "plain", "window-1023", "mask-documents"
VARLEN, ALONE = WHOLE_CALLS = ("varlen", "varlen-singles")
# What options are called, by the features of the record.
OPTIONS = {
    PLAIN: "none",
    "softcap-50": "`softcap=50`",
    "sinks": "`sinks`",
    "alibi": "`alibi_slopes`",
    "score-mod": "`score_mod` that does the same",
    WINDOW: "`window_size=(1023, 0)`",
    DOCUMENTS: "`attn_mask` of 16 documents",
    "dv-128": "V of 128 channels",
    VARLEN: "`cu_seqlens_q`, 16 times 256 … 8192 tokens, with quantization",
    ALONE: "these in 16 calls",
}
SCHEMES = ("int8-block", "int8", "fp16")
FLASH, SDPA, FLEX = "pytorch-flash", "pytorch-sdpa-mask", "pytorch-flex"
OTHERS = {FLASH: "FlashAttention-2", SDPA: "PyTorch's SDPA", FLEX: "FlexAttention"}

# Of all schemes: as fast as without the option. Of one: times as fast as others.
AS_FAST = (("softcap-50", 0.85), ("sinks", 0.98), ("alibi", 0.85), ("score-mod", 0.85))
OF_CAUSAL = 0.2
OF_CALLS, AS_OPTION, DEEP_OVER_HALF = 1.02, 0.95, 1.3
SCHEME = "int8-block"
FASTER = ((WINDOW, FLASH, 1.25), (DOCUMENTS, SDPA, 2.5), (DOCUMENTS, FLEX, 1.2))

# Times of kernels in milliseconds by whose they are, of an option at a shape.
Times = dict[tuple[str, Shape], dict[str, float | None]]


def features(f: Figures) -> str:
    """Return the times of kernels, a row for each option at a shape."""
    found = _times(f)
    if not found:
        return NOTHING
    rows = []
    for (feature, shape), ms in found.items():
        where = f"N {shape.seqlen_kv}{', causal' if shape.is_causal else ''}"
        others = [f"{OTHERS.get(x, x)} {_ms(ms[x])}" for x in ms if x not in SCHEMES]
        cells = [_ms(ms.get(name)) for name in SCHEMES]
        rows.append([where, OPTIONS.get(feature, f"`{feature}`"), *cells, ", ".join(others)])
    header = ["ms, kernel", "option", *(f"`{name}`" for name in SCHEMES), "others, float16"]
    return table(header, rows, left=2)


def goals(f: Figures) -> str:
    """Return the table of goals."""
    header = ["goal of options of scores (kernel, D = 128)", "wanted", "measured", "reached"]
    return table(header, list(goal_rows(f)))


def goal_rows(f: Figures) -> Iterator[list[str]]:
    """Yield the rows of the table."""
    found = _times(f)
    shares = [_ratio(found, (WINDOW, name), (PLAIN, name)) for name in SCHEMES]
    what = f"time with {OPTIONS[WINDOW]} over causal, N 16384, slowest scheme"
    yield at_most(what, OF_CAUSAL, max((x for x in shares if x), default=None))
    for feature, least in AS_FAST:
        speeds = [_ratio(found, (PLAIN, name), (feature, name)) for name in SCHEMES]
        what = f"speed with {OPTIONS[feature]} over that without, slowest scheme"
        yield at_least(what, least, min((x for x in speeds if x), default=None))
    mods = [_ratio(found, ("alibi", name), ("score-mod", name)) for name in SCHEMES]
    what = f"speed with a `score_mod` over that with {OPTIONS['alibi']}, slowest scheme"
    yield at_least(what, AS_OPTION, min((x for x in mods if x), default=None))
    times = [_ratio(found, (VARLEN, name), (ALONE, name)) for name in SCHEMES]
    what = "time of one call of 16 sequences over that of 16 calls, slowest scheme"
    yield at_most(what, OF_CALLS, max((x for x in times if x), default=None))
    what = f"`{SCHEME}` over `fp16`, heads of 192 channels with 128 of V"
    yield at_least(what, DEEP_OVER_HALF, _ratio(found, ("dv-128", "fp16"), ("dv-128", SCHEME)))
    for feature, other, least in FASTER:
        speed = _ratio(found, (feature, other), (feature, SCHEME))
        what = f"`{SCHEME}` with {OPTIONS[feature]} over {OTHERS[other]}"
        yield at_least(what, least, speed)


def _times(f: Figures) -> Times:
    found: Times = {}
    for t in f.record.timings:
        if t.case == "prefill" and t.feature is not None:
            # What quantizes its operands itself has no kernel to be timed by itself.
            ms = t.end_to_end_ms if t.feature in WHOLE_CALLS else t.kernel_ms
            found.setdefault((t.feature, shape_of(t)), {})[Series.of(t).name] = ms
    return found


def _ratio(found: Times, over: tuple[str, str], under: tuple[str, str]) -> float | None:
    """Return the quotient of the times of two at the same shape, the first that has both."""
    for (feature, shape), ms in found.items():
        if feature == over[0]:
            a, b = ms.get(over[1]), found.get((under[0], shape), {}).get(under[1])
            if a and b:
                return a / b
    return None


def _ms(x: float | None) -> str:
    return show(x, ".2f")
