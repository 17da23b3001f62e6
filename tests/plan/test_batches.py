"""More batches than a grid has along one axis, on the simulated GPU."""

import numpy as np
import pytest
from simulated_gpu import SimulatedGPU, gpu_of

import cuattn
from cuattn.plan import pipeline
from cuattn.plan.prepared import forget_plans
from cuattn.presets import PRESETS

pytest.importorskip("cupy")


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp16"])
@pytest.mark.parametrize(("arch", "launches"), [("80", 3), ("90a", 1)])
def test_batches_are_shared_out_to_launches(monkeypatch, rng, scheme, arch, launches):
    gpu = SimulatedGPU(monkeypatch, gpu_of(arch))
    shapes = (8, 4, 5, 32), (8, 2, 9, 32), (8, 2, 9, 32)
    inputs = [rng.standard_normal(shape).astype(np.float16) for shape in shapes]
    options = {"scheme": PRESETS[scheme], "return_lse": True, "is_causal": True}
    whole = [x.copy() for x in cuattn.attention(*inputs, **options)]
    assert gpu.launched.count("attention") == 1
    gpu.launched.clear()
    monkeypatch.setattr(pipeline, "_MAX_GRID_Z", 3)
    forget_plans()
    for x, y in zip(cuattn.attention(*inputs, **options), whole, strict=True):
        np.testing.assert_array_equal(x, y)
    assert gpu.launched.count("attention") == launches
