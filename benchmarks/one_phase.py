"""One process of phases of the GPU check.

python -m benchmarks.one_phase FOLDER PART PARTS PYTEST_OPTIONS NAME [NAME ...]

What each phase finds is written to FOLDER, whole or not at all, before the next one begins. An
exception ends the process: what it left of the GPU may be of no use to another phase.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.phases import PHASES, Share
from cuattn.common.typed_json import write

__all__ = ["file"]


def file(folder: Path, phase: str, part: int) -> Path:
    """Return where a process writes what it found."""
    return folder / f"{phase}.{part}.json"


def main() -> None:
    """Run the phases."""
    folder, part, parts, options, *names = sys.argv[1:]
    for name in names:
        print(f"== {name}", flush=True)
        found = PHASES[name].run(Share(int(part), int(parts), options))
        write(asdict(found), file(Path(folder), name, int(part)))


if __name__ == "__main__":
    main()
