"""Versions of what takes part in a measurement."""

from __future__ import annotations

import platform
from importlib import metadata

import cuattn

from ..compile.nvrtc import nvrtc_version
from .baselines import all as baselines

__all__ = ["versions"]

PACKAGES = ("numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", *baselines.PACKAGES)


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the versions of this package, Python, driver, compiler, and packages installed."""
    from cupy.cuda import runtime

    driver = runtime.driverGetVersion()
    found = {
        "cuattn": cuattn.__version__,
        "python": platform.python_version(),
        "driver_cuda": f"{driver // 1000}.{driver % 1000 // 10}",
        "nvrtc": "{}.{}".format(*nvrtc_version()),
    }
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
