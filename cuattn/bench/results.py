"""What one run of `cuattn bench` found, as a JSON file, and versions of what took part."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import cuattn

from ..common.output_files import Target
from ..common.typed_json import read, write
from ..compile.nvrtc import nvrtc_version
from ..errors import ArgumentError
from ..records.record import Accuracy, Ceiling, Shape, Timing
from .baselines import registry as baselines

__all__ = ["PACKAGES", "Ceiling", "Results", "load", "save", "versions"]

PACKAGES = ("numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", *baselines.PACKAGES)

# No time, rate or size of a GPU is smaller, apart from spreads, or larger.
LEAST, MOST = 1e-9, 1e12
SIZES = ("batch", "num_q_heads", "num_kv_heads", "seqlen_q", "seqlen_kv", "head_dim")


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
        If the file cannot be read or is not JSON, or a field is missing, unknown, of another
        type, or a figure that no measurement gives; names the field.
    """
    results: Results = read(path, Results, "a JSON file of cuattn bench")
    for where, figure, least in _figures(results):
        if figure is not None and not least <= figure <= MOST:
            expected = f"from {least:g} to {MOST:g}"
            raise ArgumentError(f"{path.name}.{where}", figure, expected)
    return results


def _figures(results: Results) -> Iterator[tuple[str, float | None, float]]:
    """Yield the place of each figure, the figure, and the least that it can be."""
    yield "rounds", results.rounds, 1
    for i, c in enumerate(results.ceilings):
        yield f"ceilings[{i}].rate", c.rate, LEAST
        yield f"ceilings[{i}].iqr", c.iqr, 0
    for i, t in enumerate(results.timings):
        for name in ("kernel_ms", "end_to_end_ms", "tops", "gbps"):
            yield f"timings[{i}].{name}", getattr(t, name), LEAST
        for name in ("kernel_iqr_ms", "end_to_end_iqr_ms"):
            yield f"timings[{i}].{name}", getattr(t, name), 0
    for i, a in enumerate(results.accuracy):
        yield f"accuracy[{i}].metrics.relative_l1", a.metrics.get("relative_l1"), 0
    rows: dict[str, Sequence[Shape]] = {"timings": results.timings, "accuracy": results.accuracy}
    for of, shapes in rows.items():
        for i, shape in enumerate(shapes):
            for name in SIZES:
                yield f"{of}[{i}].{name}", getattr(shape, name), 1


def save(results: Results, target: Target) -> None:
    """Write results, whole or not at all; a figure that is not finite becomes null."""
    write(asdict(results), target)


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
