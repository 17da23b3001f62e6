"""Times of chunks of a prompt against a long cache, beside attention to operands of that size.

Each number of queries goes both ways, whatever `MANY_ROWS` says: through codes that are made of the
cache's, and by the kernels of decoding; so the record shows where the one becomes faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import cuattn
from cuattn.arrays.device import Target
from cuattn.bench import caches, ours
from cuattn.bench.baselines import registry as baselines
from cuattn.bench.baselines.registry import Baseline
from cuattn.bench.cases import Case
from cuattn.bench.inputs import noise, token_noise
from cuattn.bench.left_out import LeftOut, room_for
from cuattn.bench.ours import Run
from cuattn.choice.timing import ColdL2, Median, time_gpu
from cuattn.compile.jit import Spec
from cuattn.kv import rows
from cuattn.kv.listing import prefill_specs
from cuattn.kv.operands_spec import OperandsSpec
from cuattn.kv.options import geometry_of
from cuattn.kv.queries_spec import QueriesSpec
from cuattn.kv.scores import Extra, Features
from cuattn.kv.spec import decode_spec
from cuattn.kv_format import KVFormat
from cuattn.plan.kernels import attention_spec
from cuattn.records.rows import Timing
from cuattn.reference.prefill import prefill_scheme
from cuattn.specs.attention import Type
from cuattn.specs.mask_map import MaskMapSpec
from cuattn.specs.rules import MaskKind, Rules

__all__ = [
    "CASES",
    "CHUNK",
    "DECODED",
    "KIND",
    "MASK",
    "PAGED",
    "ROPE",
    "SCHEME",
    "SDPA",
    "kernels",
    "kernels_of_options",
    "timings",
]

KIND = "chunk"
# What is timed of a cache, besides one in one piece.
PAGED, DECODED = "paged-16", "decoded"
# Options of calls: a mask of booleans that hides a tenth of the tokens, and queries that turn.
MASK, ROPE = "attn-mask", "rope"
PAGE_SIZE = 16
SCHEME = "int8"

CHUNK = Case(
    batch=1,
    num_q_heads=32,
    num_kv_heads=8,
    seqlen_q=512,
    seqlen_kv=32768,
    head_dim=128,
    is_causal=True,
)
CASES = [replace(CHUNK, seqlen_q=n) for n in (32, 64, 128, 256, 512)]

# Of a head of K and V.
_ROWS = CHUNK.num_q_heads // CHUNK.num_kv_heads * CHUNK.seqlen_q

ROUNDS, WARMUP = 15, 3
# Fillings of the cache between two calls, which draw much power.
REST = 40


class _Call(NamedTuple):
    implementation: str
    scheme: str
    family: str
    feature: str | None
    run: Callable[[], object]


def timings(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times of all cases; of the longest chunk also of pages, options and PyTorch.

    Parameters
    ----------
    left_out : callable
        Told about what cannot be measured here.
    """
    reason = SDPA.unavailable()
    if reason is not None:
        left_out(SDPA.name, reason)
    for case in CASES:
        with room_for(case, 8 * case.input_bytes, left_out) as fits:
            if fits:
                calls = list(_ours(case))
                if case == CHUNK and reason is None:
                    calls += _pytorch(left_out)
                yield from _timed(case, calls)


def kernels(facts: Target) -> Iterator[Spec]:
    """Yield the kernels of our calls, to be compiled beforehand."""
    for kv_format in _formats():
        yield decode_spec(kv_format, Type.fp16, _ROWS, facts)
        yield OperandsSpec.of(kv_format)
        yield from prefill_specs(kv_format, Type.fp16, facts)
    yield from kernels_of_options(facts)


def kernels_of_options(facts: Target) -> Iterator[Spec]:
    """Yield those that only calls with options have."""
    yield MaskMapSpec(MaskKind.bits, last=True)
    for kv_format in _formats():
        for features in (Features(attn_mask=Extra.boolean), Features(rope=True)):
            yield decode_spec(kv_format, Type.fp16, _ROWS, facts, features)
        yield QueriesSpec.of(kv_format, Type.fp16, rope=True)
        rules = Rules(attn_mask=MaskKind.bits, varlen=True)
        scheme = prefill_scheme(kv_format.rotate, smoothed=True)
        yield attention_spec(scheme, CHUNK.head_dim, Type.fp16, True, facts, rules=rules)


def _formats() -> Iterator[KVFormat]:
    for options in caches.SCHEMES.values():
        sizes = CHUNK.batch, CHUNK.num_kv_heads, CHUNK.head_dim, CHUNK.seqlen_kv
        yield geometry_of(*sizes, **options).kv_format


def _ours(case: Case) -> Iterator[_Call]:
    q, k, v = noise(case, 0), *(token_noise(case, case.seqlen_kv, seed) for seed in (1, 2))
    family = ours.family(SCHEME, case)
    kernel = ours.prepare(q, k, v, case, SCHEME).kernel
    assert kernel is not None
    yield _Call(ours.NAME, SCHEME, family, None, kernel)
    for scheme in caches.SCHEMES:
        cache = caches.filled(case, scheme)
        yield _Call(ours.NAME, scheme, family, None, _attend(q, cache, 0))
        # More rows than any call has.
        yield _Call(ours.NAME, scheme, caches.FAMILY, DECODED, _attend(q, cache, 2**31))
        if case == CHUNK:
            paged = caches.filled(case, scheme, page_size=PAGE_SIZE)
            yield _Call(ours.NAME, scheme, family, PAGED, _attend(q, paged, 0))
            for name, given in _options(case).items():
                yield _Call(ours.NAME, scheme, family, name, _attend(q, cache, 0, **given))
                decoded = _attend(q, cache, 2**31, **given)
                yield _Call(ours.NAME, scheme, caches.FAMILY, f"{name}-{DECODED}", decoded)


def _options(case: Case) -> dict[str, dict[str, object]]:
    import cupy

    shape = case.seqlen_q, case.seqlen_kv
    mask = cupy.random.default_rng(0).random(shape, dtype="float32") < 0.9
    pairs = case.head_dim // 2
    turns = 10000.0 ** -(cupy.arange(pairs) / pairs)
    angles = cupy.arange(case.seqlen_kv)[:, None] * turns
    rope = cuattn.Rope(cupy.cos(angles).astype("float32"), cupy.sin(angles).astype("float32"))
    return {MASK: {"attn_mask": mask}, ROPE: {"rope": rope}}


def _attend(
    q: Any, cache: cuattn.KVCache, many_rows: int, **options: object
) -> Callable[[], object]:
    """Return a call that is one of many rows from so many on; made once, to compile and plan."""
    import cupy

    out = cupy.empty_like(q)

    def run() -> Any:
        cache._memory.repetitions.clear()  # it does not ask again which way calls go
        with _many_rows(many_rows):
            return cache.attend(q, out=out, **options)

    run()
    return run


@contextmanager
def _many_rows(number: int) -> Iterator[None]:
    with patch.object(rows, "MANY_ROWS", number):
        yield


def _pytorch(left_out: LeftOut) -> Iterator[_Call]:
    """Yield PyTorch's attention to what an INT8 cache has, in float16."""
    k, v = caches.filled(CHUNK, "kv-int8").gather("float16")
    run = baselines.bound(SDPA, noise(CHUNK, 0), k, v, CHUNK, left_out)
    if run is not None:
        yield _Call(SDPA.name, SDPA.scheme, baselines.FAMILY, None, run.end_to_end)


def _flash(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind PyTorch's copy of FlashAttention-2, whose causal mask the last query and key align."""
    import torch

    of_tokens = [x.transpose(1, 2) for x in (q, k, v)]
    options = (None, None, case.seqlen_q, case.seqlen_kv, 0.0, True, False)

    def attend() -> Any:
        return torch.ops.aten._flash_attention_forward(*of_tokens, *options)[0]

    return Run(kernel=attend, end_to_end=attend)


SDPA = Baseline("pytorch-sdpa", "fp16", "torch", True, _flash)


def _timed(case: Case, calls: list[_Call]) -> Iterator[Timing]:
    """Yield the rows of calls that take turns."""
    functions = {i: call.run for i, call in enumerate(calls)}
    flush = partial(ColdL2, None, REST)
    times = time_gpu(functions, rounds=ROUNDS, warmup=WARMUP, flush=flush, order_seed=0)
    for i, call in enumerate(calls):
        yield _row(case, call, times[i])


def _row(case: Case, call: _Call, time: Median) -> Timing:
    return Timing(
        **asdict(case),
        case=KIND,
        implementation=call.implementation,
        scheme=call.scheme,
        family=call.family,
        feature=call.feature,
        kernel_ms=time.ms,
        kernel_iqr_ms=time.iqr_ms,
        tops=case.operations / time.ms * 1e-9,
    )
