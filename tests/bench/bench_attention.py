"""Time of attention: ours and others', on quantized operands and from float16 inputs."""

import functools

import pytest

from cuattn.bench.baselines.registry import BASELINES
from cuattn.bench.ceilings import tops_of
from cuattn.bench.grid import make
from cuattn.bench.inputs import noise
from cuattn.bench.ours import family, prepare
from cuattn.choice.timing import Stamp
from cuattn.errors import UnsupportedError
from cuattn.presets import resolve
from cuattn.reference import exact, metrics

pytestmark = pytest.mark.gpu

# That of `cuattn bench`.
GRID = make()

# The last queries of one head: under a bottom-right mask they make a call of their own.
CHECKED_ROWS = 64
# Relative L1 on normal noise: twice the worst that any published scheme has at 16k tokens.
MOST = 0.1
# The same of those with 4 bits.
MOST_INT4 = 0.5


@functools.lru_cache(maxsize=1)
def operands(case):
    return tuple(noise(case, seed) for seed in range(3))


@functools.lru_cache(maxsize=1)
def expected(case):
    q, k, v = (x[:1, :1].get().astype("float64") for x in operands(case))
    return exact.attention(q[:, :, -CHECKED_ROWS:], k, v, is_causal=case.is_causal)[0]


def measure(benchmark, cold_l2, ceilings, case, run, part, scheme):
    import cupy

    call = getattr(run, part)
    if part == "kernel" and call in (None, run.end_to_end):
        pytest.skip("has no call apart from the one from float16 inputs")
    o = call()
    if o is None:  # of a type that CuPy does not know
        o = run.end_to_end()
    rows = cupy.from_dlpack(o)[:1, :1, -CHECKED_ROWS:].get().astype("float64")
    how = resolve(scheme)
    most = MOST_INT4 if "int4" in (how.qk, how.pv) else MOST
    assert metrics.metrics(rows, expected(case))["relative_l1"] < most
    benchmark.group = f"{case} {part}"
    benchmark.pedantic(call, setup=cold_l2, rounds=30, warmup_rounds=5)
    if benchmark.enabled:
        tops = case.operations / benchmark.stats.stats.median * 1e-12
        ceiling = tops_of(ceilings, scheme)
        benchmark.extra_info["tops"] = round(tops, 1)
        benchmark.extra_info["percent_of_ceiling"] = ceiling and round(100 * tops / ceiling, 1)


@pytest.mark.benchmark(timer=Stamp)
@pytest.mark.parametrize("part", ["kernel", "end_to_end"])
@pytest.mark.parametrize("scheme", GRID.schemes)
@pytest.mark.parametrize("case", GRID.prefill, ids=str)
def bench_attention(benchmark, cold_l2, ceilings, case, scheme, part):
    try:
        family(scheme, case)
    except UnsupportedError as error:
        pytest.skip(str(error))
    run = prepare(*operands(case), case, scheme)
    measure(benchmark, cold_l2, ceilings, case, run, part, scheme)


@pytest.mark.benchmark(timer=Stamp)
@pytest.mark.parametrize("part", ["kernel", "end_to_end"])
@pytest.mark.parametrize("baseline", BASELINES, ids=lambda baseline: baseline.name)
@pytest.mark.parametrize("case", GRID.prefill, ids=str)
def bench_baseline(benchmark, cold_l2, ceilings, case, baseline, part):
    reason = baseline.unavailable()
    if reason is None and case.is_causal and not baseline.causal:
        reason = "has no causal mask"
    if reason is not None:
        pytest.skip(reason)
    run = baseline.bind(*operands(case), case)
    measure(benchmark, cold_l2, ceilings, case, run, part, baseline.scheme)
