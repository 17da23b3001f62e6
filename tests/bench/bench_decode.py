"""Bandwidth of decoding from caches of 8 and 4 bits, and from float16 by others."""

import functools

import pytest

from cuattn.bench.baselines.registry import BASELINES
from cuattn.bench.caches import SCHEMES, filled
from cuattn.bench.ceilings import best
from cuattn.bench.decode import KIND, attend, copy
from cuattn.bench.grid import make
from cuattn.bench.inputs import noise, token_noise
from cuattn.choice.timing import Stamp
from cuattn.reference import exact, metrics

pytestmark = pytest.mark.gpu

# That of `cuattn bench`.
CASES = make().decode

# Relative L1 on normal noise: twice that of the GPU check's longest cache, by bits.
MOST = {"kv-int8": 0.04, "kv-int4": 0.5}
MOST_FLOAT16 = 0.01


@functools.lru_cache(maxsize=1)
def operands(case):
    return noise(case, 0), *(token_noise(case, case.seqlen_kv, seed) for seed in (1, 2))


@functools.lru_cache(maxsize=1)
def expected(case):
    q, k, v = (x[:1, :1].get().astype("float64") for x in operands(case))
    return exact.attention(q, k, v)[0]


def measure(benchmark, clean_l2, ceilings, case, call, moved, most):
    import cupy

    head = cupy.from_dlpack(call())[:1, :1].get().astype("float64")
    assert metrics.metrics(head, expected(case))["relative_l1"] < most
    time(benchmark, clean_l2, ceilings, str(case), call, moved)


def time(benchmark, clean_l2, ceilings, group, call, moved):
    benchmark.group = group
    benchmark.pedantic(call, setup=clean_l2, rounds=30, warmup_rounds=5)
    if benchmark.enabled:
        gbps = moved / benchmark.stats.stats.median * 1e-9
        benchmark.extra_info["gbps"] = round(gbps, 1)
        benchmark.extra_info["percent_of_ceiling"] = round(100 * gbps / best(ceilings, "copy"), 1)


@pytest.mark.benchmark(timer=Stamp)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def bench_cache(benchmark, clean_l2, ceilings, case, scheme):
    lengths = [case.seqlen_kv] * case.batch
    call = attend(KIND, scheme, case, noise(case, 0), filled(case, scheme), lengths)
    measure(benchmark, clean_l2, ceilings, case, call.run, call.moved, MOST[scheme])


@pytest.mark.benchmark(timer=Stamp)
@pytest.mark.parametrize(
    "baseline", [x for x in BASELINES if x.decodes], ids=lambda baseline: baseline.name
)
@pytest.mark.parametrize("case", CASES, ids=str)
def bench_baseline(benchmark, clean_l2, ceilings, case, baseline):
    if (reason := baseline.unavailable()) is not None:
        pytest.skip(reason)
    q, k, v = operands(case)
    call = baseline.bind(q, k, v, case).end_to_end
    measure(benchmark, clean_l2, ceilings, case, call, k.nbytes + v.nbytes, MOST_FLOAT16)


@pytest.mark.benchmark(timer=Stamp)
def bench_copy(benchmark, clean_l2, ceilings):
    call = copy()
    time(benchmark, clean_l2, ceilings, "copy", call.run, call.moved)
