"""Launches of the largest calls that the checks let through: nothing of theirs overflows.

Only what is computed on the host is looked at. No memory is taken.
"""

import sys
from types import SimpleNamespace

import pytest
from simulated_gpu import SimulatedDriver, SimulatedLaunches, gpu_of

from cuattn.arrays.device import target
from cuattn.compile import launch, params, tensor_map
from cuattn.compile.chain import Chain
from cuattn.compile.launch import Buffers
from cuattn.operands.operand import Array
from cuattn.operands.problem import Options, Problem
from cuattn.plan.kernels import supported
from cuattn.plan.pipeline import GIVEN, pipeline

ARCHS = ("80", "90a")
MAX_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)

# Shapes of Q and of K: many tokens, many rows of all heads, many batches, many heads of K.
SHAPES = {
    "tokens": ((1, 1, 2**30, 8), (1, 1, 2**30, 8)),
    "rows": ((1, 127, 2**24 + 3, 256), (1, 127, 2**24 + 3, 256)),
    "batches": ((70_000, 8, 49, 32), (70_000, 4, 49, 32)),
    "short": ((2**22 - 1, 2, 1, 128), (2**22 - 1, 1, 9, 128)),
    "heads": ((1, 2**17 - 2, 300, 128), (1, 2**16 - 1, 300, 128)),
}


@pytest.fixture(params=ARCHS)
def launched(request, monkeypatch):
    """Plan calls for a GPU, enqueue them without running anything, and return what was launched."""
    pytest.importorskip("cupy")
    device = gpu_of(request.param)
    grids, driver = [], SimulatedLaunches(monkeypatch)

    def load(spec, device):
        dtype = params.record(spec.params, spec.params_file)

        return driver.kernel(lambda grid, *rest: grids.append((spec, grid, dtype)))

    monkeypatch.setattr(launch, "begin", lambda spec, device: None)
    monkeypatch.setattr(launch, "load", load)
    monkeypatch.setattr("cupy.cuda.alloc", lambda nbytes: SimpleNamespace(ptr=2**45))
    monkeypatch.setattr("cupy.cuda.runtime.memsetAsync", lambda *arguments: None)
    monkeypatch.setattr(sys.modules["cuattn.plan.pipeline"], "current_device", lambda: device)
    monkeypatch.setattr(tensor_map, "_driver", SimulatedDriver)
    tensor_map._encoded.cache_clear()

    def run(scheme, q_shape, k_shape, *, is_causal):
        arrays = [of_shape(shape) for shape in (q_shape, k_shape, k_shape)]
        problem = Problem.of(*arrays, Options(scheme, None, is_causal, True, "HND"))
        buffers = Buffers(*GIVEN)
        launches = pipeline(problem, of_shape(q_shape).strides, buffers)
        grids.clear()
        Chain(launches, buffers)(tuple(2**46 + 2**40 * i for i in range(len(GIVEN))), 0)
        return problem, list(grids)

    run.arch = request.param
    return run


def of_shape(shape):
    strides = [1]
    for n in shape[:0:-1]:
        strides.append(strides[-1] * n)
    return Array(shape, tuple(reversed(strides)), "float16", (2, 0))


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_grids_and_arguments_fit(launched, shapes, is_causal):
    for scheme in supported(target(launched.arch)):
        # Arguments that do not fit their fields would be refused.
        problem, grids = launched(scheme, *shapes, is_causal=is_causal)
        assert grids
        for _, grid, _ in grids:
            assert all(1 <= n <= most for n, most in zip(grid, MAX_GRID, strict=False))
        # All batches of all heads are attended to.
        attending = [(spec, grid) for spec, grid, _ in grids if spec.source.startswith("attention")]
        if attending[0][0].function == "attention_mma":
            batches = [(*grid, 1, 1)[2] for _, grid in attending]
            assert sum(batches) == problem.k.shape[0]
        else:
            assert len(attending) == 1
