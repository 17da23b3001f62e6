"""What the tests of the latent cache share."""

import pytest


@pytest.fixture
def gpu(monkeypatch):
    pytest.importorskip("cupy")
    from simulated_gpu import SimulatedGPU

    return SimulatedGPU(monkeypatch)
