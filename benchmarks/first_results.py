"""Seconds until the first result of a few kinds of call: cuattn new to the computer, and known."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.call_kernels import CACHES, kernels_of
from cuattn.arrays.device import current_device, target
from cuattn.errors import CuattnError
from cuattn.plan.kernels import supported
from cuattn.records.record import FirstCall

__all__ = ["CALLS", "GOAL_COLD", "GOAL_WARM", "HEAD_DIM", "cold_and_warm", "first_calls"]

ROOT = Path(__file__).resolve().parent.parent

# Seconds until the first result: of a kind of call that this computer has never seen, and from a
# cache on disk.
GOAL_COLD, GOAL_WARM = 5.0, 1.0

# A process takes seconds to begin, so there is one call of each kind of numbers.
CALLS = ("int8", "int8-block", "int4", "fp8", "fp16", *CACHES)
HEAD_DIM = 128

# Where there is a driver NVRTC remembers, in a cache of the driver's, what it has compiled.
NO_DRIVER_CACHE = {"CUDA_CACHE_DISABLE": "1"}


def first_calls() -> Iterator[FirstCall]:
    """Yield what each of `CALLS` takes that this computer's GPU can do."""
    arch = current_device().arch
    possible = {*(scheme.name for scheme in supported(target(arch))), *CACHES}
    for call in CALLS:
        if call in possible:
            cold, warm = cold_and_warm(call, HEAD_DIM)
            yield FirstCall(
                call=call,
                head_dim=HEAD_DIM,
                kernels=len(kernels_of(call, HEAD_DIM, arch)),
                cold_s=cold,
                warm_s=warm,
            )


def cold_and_warm(call: str, head_dim: int) -> tuple[float, float]:
    """Return the seconds of a call with an empty cache on disk, and again with the full one.

    Raises
    ------
    CuattnError
        If the call fails, with what it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _call(call, head_dim, folder), _call(call, head_dim, folder)


def _call(call: str, head_dim: int, cache: str) -> float:
    command = [sys.executable, "-m", "benchmarks.one_call", call, str(head_dim)]
    answer = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **NO_DRIVER_CACHE, "CUATTN_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise CuattnError(f"the first call of {call} failed:\n{answer.stderr}")
    return float(answer.stdout)
