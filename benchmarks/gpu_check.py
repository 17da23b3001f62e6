"""Check the kernels on this computer's GPU and write what was found into its record.

Each phase replaces its own part of the record, so a check can be made in several calls. A record of
other code is begun anew. Run from the root of the project: python -m benchmarks.gpu_check
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import tables
from benchmarks.phases import PHASES
from cuattn.arrays.device import current_device
from cuattn.bench.results import PACKAGES, versions
from cuattn.errors import CuattnError
from cuattn.records import record

RECORDS = Path(__file__).resolve().parent / "records"

# What tests take, besides what is timed.
TESTED_WITH = ("pytest", "hypothesis", "jax")

# What only a person can say about a record.
REASONS = {
    "stale": "why there is no newer one: no GPU could be had",
    "failures": "which tests failed, and why for reasons outside the code",
}


def main() -> int:
    """Run the phases asked for; return 0 if nothing failed."""
    options = _options()
    said = {key: getattr(options, key) for key in REASONS if getattr(options, key) is not None}
    if said:
        for path in record.records():
            record.save(replace(record.load(path), **said), path)
        return 0
    gpu = current_device().name
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{_slug(gpu)}.json"
    found = _begun(path, gpu)
    for phase in options.phases.split(","):
        start = time.monotonic()
        PHASES[phase](found, options)
        record.save(found, path)
        print(f"== {phase}: {time.monotonic() - start:.0f} s", flush=True)
    print(tables.show(found))
    return 1 if (found.tests and found.tests.failed) or _findings(found) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=RECORDS, help="folder of the record")
    parser.add_argument(
        "--phases", default=",".join(PHASES), help="some of %(default)s, in the order to run"
    )
    parser.add_argument("--pytest", default="", metavar="OPTIONS", help="passed to pytest")
    for key, about in REASONS.items():
        parser.add_argument(
            f"--{key}", metavar="REASON", help=f"only write into the records {about}"
        )
    options = parser.parse_args()
    unknown = set(options.phases.split(",")) - set(PHASES)
    if unknown:
        parser.error(f"no such phase: {', '.join(sorted(unknown))}")
    for key in REASONS:
        if (reason := getattr(options, key)) is not None and not reason.strip():
            parser.error(f"--{key} needs a reason in words")
    return options


def _begun(path: Path, gpu: str) -> record.Record:
    """Return the record that this run adds to: the one at hand if it is of this very code."""
    now = record.digest()
    used = versions((*PACKAGES, *TESTED_WITH))
    for known in (path, RECORDS / path.name):
        if known.exists():
            old = record.load(known)
            if old.digest == now:
                return replace(old, stale=None, versions=used)
    return record.Record(digest=now, gpu=gpu, versions=used)


def _findings(found: record.Record) -> int:
    return (found.sanitizer.memcheck or 0) + (found.sanitizer.racecheck or 0)


def _slug(gpu: str) -> str:
    """Return a file name: "NVIDIA H200" becomes "h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-")


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except CuattnError as error:
        raise SystemExit(f"gpu_check: {error}") from None
