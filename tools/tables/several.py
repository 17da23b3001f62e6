"""Tables of rings and of decoding over several GPUs, beside what was predicted."""

from __future__ import annotations

from cuattn.distributed import plan_parallel
from cuattn.errors import ArgumentError
from cuattn.records.record import Record, load, records_of_several
from cuattn.records.rows import Timing
from tools.tables.record_figures import NONE, NOTHING, Figures, show, table

WAYS = ("ring", "all-gather", "ulysses")
OURS = "cuattn"
DECODING = ("decode-ranks", "decode-ranks-host")


def status(_: Figures) -> str:
    """Return whether anything has been measured, in a sentence."""
    found = [load(path) for path in records_of_several()]
    if not found:
        return (
            "**Not measured yet**: rings ran on several processes without a GPU. What several GPUs "
            "are expected to do is a [prediction](#how-many-and-which-way)."
        )
    gpus = " and ".join(record.gpu for record in found)
    return f"Rings and decoding were [measured](#measured) on {gpus}."


def rings(_: Figures) -> str:
    """Return speed and efficiency of all ways, a row for each length, way and mask."""
    rows = []
    for record in map(load, records_of_several()):
        alone = {_work(t): t for t in record.timings if t.case == "ring-one"}
        order = sorted(
            (t for t in record.timings if t.case in WAYS),
            key=lambda t: (t.seqlen_kv, not t.is_causal, WAYS.index(t.case)),
        )
        rows += [_row(t, alone.get(_work(t))) for t in order]
    if not rows:
        return NOTHING
    header = ["GPUs", "tokens each", "mask", "way", "K, V", "ms", "TOPS each", "efficiency"]
    return table([*header, "predicted", "MB sent"], rows, left=5)


def decoding(_: Figures) -> str:
    """Return times of decoding steps, and the share of the summed bandwidth of all GPUs."""
    rows = []
    for record in map(load, records_of_several()):
        for t in record.timings:
            if t.case in DECODING:
                own = _one(record, t)
                share = (
                    own.kernel_ms / t.kernel_ms if own and own.kernel_ms and t.kernel_ms else None
                )
                how = "replayed" if t.case == "decode-ranks" else "call by call"
                rows.append(
                    [
                        *(str(t.ranks), show(t.seqlen_kv), t.scheme.removeprefix("int"), how),
                        *(show(t.kernel_ms, ".1f", 1000), show(t.gbps, ".0f")),
                        *(show(own.kernel_ms if own else None, ".1f", 1000), show(share, ".2f")),
                    ]
                )
    if not rows:
        return NOTHING
    header = ["GPUs", "tokens", "bits", "steps", "us", "GB/s each", "us of each alone", "share"]
    return table(header, rows, left=4)


def links(_: Figures) -> str:
    """Return how fast a rank sends to the next one while it receives as much."""
    rows = []
    for record in map(load, records_of_several()):
        for t in record.timings:
            if t.case == "link":
                size = f"{(t.bytes_sent or 0) / 2**20:.3g} MiB"
                us = show(t.end_to_end_ms, ".1f", 1000)
                rows.append([str(t.ranks), size, us, show(t.gbps, ".1f")])
    return table(["GPUs", "message", "us", "GB/s each way"], rows, left=2) if rows else NOTHING


def _row(t: Timing, alone: Timing | None) -> list[str]:
    ranks = t.ranks or 1
    efficiency = None
    if alone and alone.end_to_end_ms and t.end_to_end_ms:
        efficiency = alone.end_to_end_ms / t.end_to_end_ms
    wire = {None: "codes", "input": "float16", "int4": "4 bits"}[t.wire]
    is_ours = t.implementation == OURS
    return [
        *(str(ranks), show(t.seqlen_kv // ranks), "causal" if t.is_causal else NONE),
        f"{t.case}, `{t.scheme}`" if is_ours else f"{t.case}, {t.implementation}",
        "float16" if t.scheme == "fp16" else wire,
        *(show(t.end_to_end_ms, ".2f"), show(t.tops, ".0f"), show(efficiency, ".3f")),
        *(show(_predicted(t) if is_ours else None, ".3f"), show(t.bytes_sent, ".0f", 1e-6)),
    ]


def _predicted(t: Timing) -> float | None:
    """Return the efficiency that `plan_parallel` expects, against one GPU with the same scheme."""
    ranks = t.ranks or 1
    shape = t.batch, t.num_q_heads, t.seqlen_kv, t.head_dim
    options = {"num_kv_heads": t.num_kv_heads, "is_causal": t.is_causal, "scheme": t.scheme}
    try:
        alone = plan_parallel(shape, 1, **options).predictions[0].seconds
        plan = plan_parallel(shape, ranks, wire=t.wire, **options)
    except ArgumentError:
        return None
    seconds = (x.seconds for x in plan.predictions if x.engine == t.case)
    return next((alone / ranks / x for x in seconds), None)


def _work(t: Timing) -> tuple[object, ...]:
    """Return what one GPU by itself is compared by."""
    return t.scheme, t.is_causal, t.seqlen_kv


def _one(record: Record, t: Timing) -> Timing | None:
    """Return the row of one GPU with the tokens that each has."""
    own = t.seqlen_kv // (t.ranks or 1)
    rows = (x for x in record.timings if x.case == "decode-one")
    return next((x for x in rows if (x.scheme, x.seqlen_kv) == (t.scheme, own)), None)
