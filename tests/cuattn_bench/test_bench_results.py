"""Versions of what takes part in a measurement."""

import platform
import sys
from types import SimpleNamespace

import numpy as np

import cuattn
from cuattn.bench import results


def test_versions_are_those_of_what_is_installed(monkeypatch):
    runtime = SimpleNamespace(driverGetVersion=lambda: 13020)
    cuda = SimpleNamespace(runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    monkeypatch.setattr(results, "nvrtc_version", lambda: (12, 9))
    found = results.versions(("numpy", "no-such-package"))
    assert found == {
        "cuattn": cuattn.__version__,
        "python": platform.python_version(),
        "driver_cuda": "13.2",
        "nvrtc": "12.9",
        "numpy": np.__version__,
    }
