"""What one run of `cuattn bench` found, as a JSON file, and versions of what took part."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import cuattn

from ..common.typed_json import read, write
from ..compile.nvrtc import nvrtc_version
from ..records.record import Accuracy, Ceiling, Timing
from .baselines import registry as baselines

__all__ = ["PACKAGES", "Ceiling", "Results", "load", "save", "versions"]

PACKAGES = ("numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", *baselines.PACKAGES)


@dataclass
class Results:
    """Ceilings, times and errors of one GPU.

    Attributes
    ----------
    digest : str
        `cuattn.records.record.digest()` of the code that ran.
    gpu : str
        Name of the GPU, as the driver gives it.
    measured_at : str
        When, in UTC, as ISO 8601 has it.
    rounds : int
        How often each was timed; a time is the median.
    versions : dict of str to str
        Of the packages, the compiler and the driver.
    left_out : dict of str to str
        Schemes, baselines and shapes that were not measured, and why.
    ceilings : list of Ceiling
    timings : list of Timing
        Of cases "prefill", "decode" and "copy-decode".
    accuracy : list of Accuracy
        Of every scheme and baseline on the inputs of `cuattn.bench.errors`.
    """

    digest: str
    gpu: str
    measured_at: str
    rounds: int
    versions: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    ceilings: list[Ceiling] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    accuracy: list[Accuracy] = field(default_factory=list)


def load(path: Path) -> Results:
    """Read what `save` wrote.

    Raises
    ------
    ArgumentError
        If the file cannot be read or is not JSON, or a field is missing, unknown or of another
        type; names the field.
    """
    results: Results = read(path, Results, "a JSON file of cuattn bench")
    return results


def save(results: Results, path: Path) -> None:
    """Write results, whole or not at all; a figure that is not finite becomes null."""
    write(asdict(results), path)


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
