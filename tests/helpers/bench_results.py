"""Results of a bench run as a GPU might give them, made up: smooth figures, nothing measured."""

from dataclasses import asdict, replace

from cuattn.bench.cases import CORE, Case, decoding
from cuattn.bench.ceilings import tops_of
from cuattn.bench.decode import COPY
from cuattn.bench.results import Ceiling, Results
from cuattn.records.record import Accuracy, Timing

LENGTHS, HEAD_DIMS = (1024, 4096, 16384), (64, 128)
IQR = 0.004

CEILINGS = [
    Ceiling(what="copy", instruction="ld.global", rate=4200.0, iqr=12.0),
    Ceiling(what="read", instruction="ld.global", rate=4400.0, iqr=10.0),
    Ceiling(what="int8", instruction="wgmma", rate=1650.0, iqr=8.0),
    Ceiling(what="int8", instruction="mma.sync", rate=1270.0, iqr=5.0),
    Ceiling(what="fp8", instruction="wgmma", rate=1640.0, iqr=8.0),
    Ceiling(what="fp16", instruction="wgmma", rate=820.0, iqr=4.0),
]
# Implementation, scheme, and the share of its ceiling at 16384 tokens and 128 channels.
OTHERS = (
    ("pytorch-flash", "fp16", 0.4),
    ("pytorch-cudnn", "fp16", 0.8),
    ("cudnn-fp8", "fp8", 0.55),
    ("sageattention-1", "int8-fp16", 0.4),
)
SHARES = dict(zip(CORE, (0.48, 0.6, 0.66, 0.58, 0.62, 0.5, 0.43, 0.62, 0.6, 0.9), strict=True))
# Relative L1 errors on normal inputs with 128 channels.
ERRORS = dict(
    zip(CORE, (0.013, 0.016, 0.025, 0.037, 0.009, 0.19, 0.03, 0.009, 0.05, 0.0003), strict=True)
)
OTHER_ERRORS = {"pytorch-flash": 0.0003, "pytorch-cudnn": 0.0003, "cudnn-fp8": 0.06}
# Bytes of a token's K and V for each channel, and the share of the copy's speed.
CACHES = (
    ("cuattn", "kv-int8", 2 * 1.04, 0.95),
    ("cuattn", "kv-int4", 2 * 0.54, 0.85),
    ("pytorch-flash", "fp16", 4, 0.95),
    ("pytorch-cudnn", "fp16", 4, 0.98),
)


def results(*, schemes=CORE, lengths=LENGTHS, head_dims=HEAD_DIMS):
    """Return all that a run has."""
    shapes = [
        Case.square(4, 32, n, d, c) for d in head_dims for c in (False, True) for n in lengths
    ]
    swept = [decoding(16, 8, n) for n in lengths]
    timings = [t for case in shapes for t in prefill(case, schemes)]
    timings += [t for case in (*swept, decoding(1, 8, 131072)) for t in decode(case)]
    return Results(
        digest="8e3adcb4b666" + 52 * "0",
        gpu="NVIDIA H200",
        measured_at="2026-11-20T12:34:56+00:00",
        rounds=30,
        versions={"cuattn": "0.1.0", "torch": "2.11.0"},
        left_out={"flash_attn": "flash_attn does not import: <no such module>"},
        ceilings=list(CEILINGS),
        timings=timings,
        accuracy=[a for d in head_dims for a in errors(d, schemes)],
    )


def nothing(**fields):
    """Return what a run has that was ended at once, but for some fields."""
    empty = {"left_out": {}, "ceilings": [], "timings": [], "accuracy": []}
    return replace(results(schemes=(), lengths=(), head_dims=()), **{**empty, **fields})


def prefill(case, schemes):
    """Yield times that a longer sequence and a wider head bring nearer to the ceiling."""
    ours = [("cuattn", scheme, SHARES.get(scheme, 0.4)) for scheme in schemes]
    for implementation, scheme, share in (*ours, *OTHERS):
        near = share * case.seqlen_kv / (case.seqlen_kv + 500) * case.head_dim / (case.head_dim + 9)
        kernel = case.operations / (tops_of(CEILINGS, scheme) * near) * 1e-9
        quantizing = 0.0 if scheme == "fp16" else 7e-10 * case.input_bytes
        alone = scheme != "int4"
        yield Timing(
            **asdict(case),
            case="prefill",
            implementation=implementation,
            scheme=scheme,
            family="attention_wgmma" if implementation == "cuattn" else "baseline",
            kernel_ms=kernel if alone else None,
            kernel_iqr_ms=IQR * kernel if alone else None,
            end_to_end_ms=kernel + quantizing,
            end_to_end_iqr_ms=IQR * (kernel + quantizing),
            tops=case.operations / kernel * 1e-9 if alone else None,
        )


def decode(case):
    """Yield times that begin at a few microseconds."""
    for implementation, scheme, width, share in CACHES:
        moved = case.batch * case.num_kv_heads * case.seqlen_kv * case.head_dim * width
        yield read(case, "decode", implementation, scheme, moved, share)
    yield read(case, "copy-decode", COPY, "", 1 << 31, 1.0)


def read(case, name, implementation, scheme, moved, share):
    """Return the time of one call that reads, or copies."""
    ms = 0.004 + moved / (CEILINGS[0].rate * share) * 1e-6
    return Timing(
        **asdict(case),
        case=name,
        implementation=implementation,
        scheme=scheme,
        family="decode" if implementation == "cuattn" else "baseline",
        kernel_ms=ms,
        kernel_iqr_ms=IQR * ms,
        gbps=moved / ms * 1e-6,
    )


def errors(head_dim, schemes):
    """Yield errors that outliers make larger."""
    case = Case.square(1, 4, 4096, head_dim, False)
    for scheme, error in {**{x: ERRORS.get(x, 0.02) for x in schemes}, **OTHER_ERRORS}.items():
        for distribution, factor in (("normal", 1.0), ("outliers", 2.5)):
            yield Accuracy(
                **asdict(case),
                scheme=scheme,
                family="attention_wgmma",
                distribution=distribution,
                metrics={"relative_l1": error * factor, "cosine": 1 - error**2},
            )


def changed(given, *, drift=1.0, factors=(), errors=()):
    """Return other results with every time and rate changed.

    `factors` maps schemes of ours to that of their times, `errors` schemes to that of their errors.
    """
    factors, errors = dict(factors), dict(errors)

    def time(t):
        factor = drift * (factors.get(t.scheme, 1.0) if t.implementation == "cuattn" else 1.0)
        times = ("kernel_ms", "kernel_iqr_ms", "end_to_end_ms", "end_to_end_iqr_ms")
        by = {**dict.fromkeys(times, factor), "tops": 1 / factor, "gbps": 1 / factor}
        return replace(t, **{name: x * by[name] for name in by if (x := getattr(t, name))})

    def error(a):
        factor = errors.get(a.scheme, 1.0)
        return replace(a, metrics={**a.metrics, "relative_l1": a.metrics["relative_l1"] * factor})

    return replace(
        given,
        ceilings=[replace(c, rate=c.rate / drift) for c in given.ceilings],
        timings=[time(t) for t in given.timings],
        accuracy=[error(a) for a in given.accuracy],
    )
