"""What one run of `cuattn bench` found, as a JSON file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..common.typed_json import read, write
from ..records.record import Accuracy, Ceiling, Timing

__all__ = ["Ceiling", "Results", "load", "save"]


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
