"""Times of options: windows, caps, sinks, slopes, masks and lengths, beside plain calls.

Calls of a shape take turns, so each option has its plain counterpart in the same rounds. Only
FlexAttention follows by itself, in a process of its own, as it is compiled first, which may fail
or take long: python -m benchmarks.features FILE
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from cuattn.bench import ours, prefill
from cuattn.bench.baselines import registry as baselines
from cuattn.bench.baselines.registry import Baseline
from cuattn.bench.cases import LONG_FROM, Case
from cuattn.bench.inputs import noise, token_noise
from cuattn.bench.left_out import LeftOut, in_a_line, room_for
from cuattn.bench.ours import Run
from cuattn.bench.prefill import Who
from cuattn.choice.timing import ColdL2, time_gpu
from cuattn.common.typed_json import read, write
from cuattn.errors import CuattnError
from cuattn.records.rows import Timing

from .commands import ROOT
from .feature_arrays import prepare
from .feature_baselines import FLEX, beside
from .feature_cases import FEATURES, SCHEMES, WHOLE, Feature, apart

__all__ = ["FLEX_LIMIT_S", "flex", "timings"]

Runs: TypeAlias = Mapping[Feature, Mapping[Who, Run]]

ROUNDS, WARMUP = 10, 2
# Fillings of the cache between two calls of more tokens than `LONG_FROM`, which draw more power.
REST_OF_LONG = 40

# Seconds until FlexAttention has been imported, compiled and timed.
FLEX_LIMIT_S = 35.0

FAILURES = (CuattnError, RuntimeError, MemoryError)


def timings(left_out: LeftOut) -> Iterator[Timing]:
    """Yield the times of `FEATURES`, ours and others'.

    Parameters
    ----------
    left_out : callable
        Told about schemes, baselines and options that cannot be measured here.
    """
    schemes = ours.supported_schemes(SCHEMES, left_out)
    others = [x for of_case in FEATURES.values() for feature in of_case for x in beside(feature)]
    missing = {x.name: reason for x in [*others, FLEX] if (reason := x.unavailable())}
    for name, reason in missing.items():
        left_out(name, reason)
    for case, features in FEATURES.items():
        wanted = {f: [x for x in beside(f) if x.name not in missing] for f in features}
        yield from _of_case(case, wanted, schemes, left_out)
    if FLEX.name not in missing:
        yield from flex(left_out)


def _of_case(
    case: Case,
    wanted: Mapping[Feature, Sequence[Baseline]],
    schemes: Sequence[str],
    left_out: LeftOut,
) -> Iterator[Timing]:
    """Yield the times on one shape."""
    # Of each preset codes, and an output for them and for float16.
    calls = sum(2 * len(schemes) + len(others) for others in wanted.values())
    with room_for(case, prefill.bytes_needed(case, calls), left_out) as fits:
        if not fits:
            return
        arrays = _arrays(case)
        runs: dict[Feature, dict[Who, Run]] = {}
        try:
            for feature, others in wanted.items():
                runs[feature] = _ours(arrays, feature, schemes, left_out)
                for baseline in others:
                    runs[feature].update(_other(arrays, feature, baseline, left_out))
            yield from _timed(runs)
        except FAILURES as error:
            left_out(f"options of scores, {case}", in_a_line(error))


def _timed(runs: Runs) -> Iterator[Timing]:
    """Yield the rows of calls that take turns."""
    functions = {
        (feature, call): function
        for feature, of_feature in runs.items()
        for call, function in prefill.calls(of_feature).items()
    }
    is_long = any(feature.case.seqlen_kv > LONG_FROM for feature in runs)
    flush = partial(ColdL2, None, REST_OF_LONG if is_long else prefill.REST)
    times = time_gpu(functions, rounds=ROUNDS, warmup=WARMUP, flush=flush, order_seed=0)
    for feature, of_feature in runs.items():
        found = {call: time for (of, call), time in times.items() if of == feature}
        about: dict[str, Any] = {"feature": feature.name, "operations": feature.operations}
        yield from prefill.rows(feature.case, of_feature, found, **about)


def _arrays(case: Case) -> tuple[Any, Any, Any]:
    k, v = (token_noise(case, case.seqlen_kv, seed) for seed in (1, 2))
    return noise(case, 0), k, v


def _ours(
    arrays: tuple[Any, Any, Any], feature: Feature, schemes: Sequence[str], left_out: LeftOut
) -> dict[Who, Run]:
    """Bind our calls, and make each once, so that what fails fails here."""
    case = feature.case
    runs = {}
    for name in schemes:
        try:
            run = prepare(*arrays, feature, name)
            if run.kernel not in (None, run.end_to_end):
                kernel = prepare(*arrays, feature, apart(name)).kernel
                run = Run(kernel, run.end_to_end)
            for function in filter(None, (run.kernel, run.end_to_end)):
                function()
        except FAILURES as error:
            left_out(f"{name}, {feature.name}, {case}", in_a_line(error))
        else:
            runs[Who(ours.NAME, name, ours.family(name, case))] = run
    return runs


def _other(
    arrays: tuple[Any, Any, Any], feature: Feature, baseline: Baseline, left_out: LeftOut
) -> dict[Who, Run]:
    def told(what: str, reason: str) -> None:
        left_out(f"{what}, {feature.name}", reason)

    run = baselines.bound(baseline, *arrays, feature.case, told)
    who = Who(baseline.name, baseline.scheme, baselines.FAMILY)
    return {} if run is None else {who: run}


def flex(left_out: LeftOut, limit_s: float = FLEX_LIMIT_S) -> Iterator[Timing]:
    """Yield the times of FlexAttention, if a process has them within so many seconds."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Compiled in that process alone: none is left if it has to be ended.
    env = {**os.environ, "PYTHONPATH": path, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.features", str(file)]
        try:
            subprocess.run(command, cwd=ROOT, env=env, timeout=limit_s, check=True)
            yield from read(file, list[Timing])
        except subprocess.TimeoutExpired:
            left_out(FLEX.name, f"took longer than {limit_s:g} s")
        except subprocess.CalledProcessError as error:
            left_out(FLEX.name, f"its process ended with {error.returncode}")


def main() -> None:
    """Time FlexAttention alone and write the rows."""
    from .measurements import left_out

    (feature,) = (x for x in FEATURES[WHOLE] if x.name == "mask-documents")
    runs = {feature: _other(_arrays(WHOLE), feature, FLEX, left_out)}
    write([asdict(row) for row in _timed(runs)], Path(sys.argv[1]))


if __name__ == "__main__":
    main()
