"""Rings on a simulated GPU: kernels find codes where parcels have them."""

import numpy as np
import pytest
from ring_cases import inputs, over_ranks

from cuattn.distributed import DistributedKVCache, ring_attention, run_virtual

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU

CASES = [
    ("int8", None, True, (-1, -1)),
    ("int8-token", None, True, (-1, -1)),
    ("int8-block", None, False, (-1, -1)),
    ("int8-fp16", None, False, (40, 20)),
    ("int8", "int4", True, (-1, -1)),
    ("int8-block", "input", True, (-1, -1)),
]
# Chunks are whole blocks: keys of a rank are quantized together, and some rows see the first ones.
OF_WHOLE_BLOCKS = [
    ("int8", None, True, (-1, -1)),
    ("int8", "int4", True, (-1, -1)),
    ("int8-fp16", "input", True, (-1, -1)),
]


@pytest.mark.parametrize(
    ("size", "tokens", "case"),
    [(3, 301, case) for case in CASES] + [(2, 512, case) for case in OF_WHOLE_BLOCKS],
)
def test_kernels_find_what_has_travelled(monkeypatch, rng, size, tokens, case):
    arrays = inputs(rng, tokens, np.float16)
    options = dict(zip(("scheme", "wire", "is_causal", "window_size"), case, strict=True))
    wanted, wanted_lse = over_ranks(ring_attention, arrays, size, "zigzag", **options)
    gpu = SimulatedGPU(monkeypatch)
    o, lse = over_ranks(ring_attention, arrays, size, "zigzag", **options)
    assert "merge_states" in {spec.function for spec in gpu.specs}
    np.testing.assert_allclose(o, wanted, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("queries", [1, 3])
def test_a_decoding_step_writes_into_its_message(monkeypatch, rng, queries):
    """The kernel's o and lse are gathered from where it has written them, and merged there."""
    q, k, v = inputs(rng, 90, np.float16)
    q = q[:, :, -queries:]

    def work(group, **device):
        cache = DistributedKVCache(group, 1, 2, 64, 128, interleave=4, **device)
        cache.append(k, v)
        return cache.attend(q, softcap=30.0, return_lse=True)

    wanted = run_virtual(3, lambda group: work(group, device="cpu"))
    SimulatedGPU(monkeypatch)
    for (o, lse), (wanted_o, wanted_lse) in zip(run_virtual(3, work), wanted, strict=True):
        np.testing.assert_allclose(o, wanted_o, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(lse, wanted_lse, rtol=1e-4, atol=1e-4)
