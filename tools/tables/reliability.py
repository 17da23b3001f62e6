"""What docs/reliability.md says of runs that look for faults: mutants, fuzzing, the sanitizer.

Beside the record these are in files of ``benchmarks/reliability/``, each written by the run itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.tables.record_figures import NONE, Figures, table

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "reliability"

# Where inputs are made, by the name of the file.
PLACES = {"fuzz_host.json": "host", "fuzz_gpu.json": "GPU"}
NO_RUN = "There has been no run of which counts were kept."


def mutants(f: Figures) -> str:
    """Return how many mutants of each module the tests killed."""
    del f
    found = _read("mutants.json")
    if found is None:
        return NO_RUN
    rows = [_mutants(f"`{module}`", counts) for module, counts in found["modules"].items()]
    every: dict[str, int] = {}
    for counts in found["modules"].values():
        for end, n in counts.items():
            every[end] = every.get(end, 0) + n
    header = ["module", "mutants", "killed", "survived", "no test reaches", "killed, %"]
    about = f"{found['tool']}, {found['date']}:"
    if left := every.get("not tried"):
        about = f"{about[:-1]}; not tried: {left}:"
    return f"{about}\n\n{table(header, [*rows, _mutants('all', every)])}"


def _mutants(title: str, counts: dict[str, int]) -> list[str]:
    # Tests that no longer end have noticed the change.
    killed = counts.get("killed", 0) + counts.get("timeout", 0)
    total = sum(counts.values()) - counts.get("not tried", 0)
    left = [counts.get("survived", 0), counts.get("no tests", 0)]
    return [
        title,
        *map(str, (total, killed, *left)),
        f"{100 * killed / total:.1f}" if total else NONE,
    ]


def fuzz(f: Figures) -> str:
    """Return how many inputs each target has tried, and how that ended."""
    del f
    runs = {place: found for name, place in PLACES.items() if (found := _read(name))}
    if not runs:
        return NO_RUN
    rows, sentences = [], []
    for place, found in runs.items():
        for target, counts in found["counts"].items():
            ends = ", ".join(f"{end} {n}" for end, n in counts.items())
            rows.append([target.replace("_", " "), place, str(sum(counts.values())), ends])
        minutes, failures = f"{found['process_minutes']:g}", found["failures"]
        sentences.append(f"{place}: {minutes} minutes of processes, {failures} failures.")
    header = ["target", "memory", "tried", "ended"]
    return "\n\n".join([table(header, rows, left=2), " ".join(sentences)])


def sanitizer(f: Figures) -> str:
    """Return what compute-sanitizer's tools found in the record's run."""
    found = {} if f.record.sanitizer is None else asdict(f.record.sanitizer)
    rows = [[f"`{tool}`", str(n)] for tool, n in found.items() if n is not None]
    if not rows:
        return NO_RUN
    return f"{f.record.gpu}:\n\n{table(['tool', 'findings'], rows)}"


def _read(name: str) -> Any:
    path = FOLDER / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
