"""Run mutmut on the modules named in pyproject.toml, and write down how many mutants were killed.

A mutant is a function with one small change. The tests that reach the function run on it, and kill
it if one of them fails; one that survives is a fault that no test would notice, unless it changes
nothing that matters. From the root of the project: ``make mutants``, or::

    python -m tools.mutants --jobs 2
    python -m mutmut show NAME    # afterwards: what a survivor is

Counts of all modules go to benchmarks/reliability/mutants.json; ``make figures`` has them in
docs/reliability.md. With ``--again``, after tests have been added, those are tried that the run
before has not killed. Given names, such as ``'cuattn.kv.pages*'``, only these are tried, and the
counts are not written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ROOT / "benchmarks" / "reliability" / "mutants.json"
# mutmut's own folder: mutated modules, and what became of each mutant.
MUTANTS = ROOT / "mutants"

# Exit codes of a mutant's tests, as mutmut stores them: pytest's, its own, and those of a signal.
# Whatever else ends the tests has been noticed too.
SURVIVED, NO_TESTS = (0,), (5, 33)
TIMED_OUT = (-24, 24, 36, 152)
# Tests that could not be begun, such as one whose name pytest does not find again.
NOT_BEGUN = (None, 255)


def ending(code: int | None) -> str:
    """Return what became of a mutant."""
    if code in NOT_BEGUN:
        return "not tried"
    if code in SURVIVED:
        return "survived"
    if code in NO_TESTS:
        return "no tests"
    return "timeout" if code in TIMED_OUT else "killed"


def endings(folder: Path) -> dict[str, dict[str, str]]:
    """Return what became of each mutant, by module and name."""
    found = {}
    for meta in sorted(folder.rglob("*.py.meta")):
        codes = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        module = meta.relative_to(folder).as_posix().removesuffix(".meta")
        found[module] = {name: ending(code) for name, code in codes.items()}
    return found


def counts(found: dict[str, dict[str, str]]) -> dict[str, dict[str, int]]:
    """Return how many mutants of each module ended how."""
    return {module: dict(sorted(Counter(of.values()).items())) for module, of in found.items()}


def not_killed(of: dict[str, str]) -> dict[str, str]:
    """Return the mutants of a module that no test has noticed."""
    return {name: end for name, end in of.items() if end not in ("killed", "timeout")}


def forget_not_killed(folder: Path) -> None:
    """Have mutmut try again what no test has noticed, as it does what it knows nothing of."""
    for meta in folder.rglob("*.py.meta"):
        kept = json.loads(meta.read_text(encoding="utf-8"))
        codes = kept["exit_code_by_key"]
        for name in not_killed({name: ending(code) for name, code in codes.items()}):
            codes[name] = None
        meta.write_text(json.dumps(kept, indent=4), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--again", action="store_true", help="only what is not killed yet")
    parser.add_argument("names", nargs="*", help="patterns of mutants; all by default")
    options = parser.parse_args()
    if options.again:
        forget_not_killed(MUTANTS)
    elif not options.names:
        # What was found on older code and older tests says nothing of these.
        shutil.rmtree(MUTANTS, ignore_errors=True)
    log = MUTANTS / "log.txt"
    if code := mutmut(["run", "--max-children", str(options.jobs), *options.names], log):
        print(f"mutmut ended with {code}: see {log.relative_to(ROOT)}", file=sys.stderr)
        return 1
    found = endings(MUTANTS)
    for module, of in found.items():
        for name, end in not_killed(of).items():
            print(f"{end}: {name}")
        print(f"{module}: {', '.join(f'{end} {n}' for end, n in counts(found)[module].items())}")
    if not options.names:
        save(found)
    return 0


def save(found: dict[str, dict[str, str]]) -> None:
    """Write the counts down, with the day and the tool."""
    written = {
        "tool": f"mutmut {version('mutmut')}",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "modules": counts(found),
    }
    COUNTS.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def mutmut(arguments: list[str], log: Path) -> int:
    """Run mutmut, and return its exit code; it shows its progress by writing over a line."""
    log.parent.mkdir(exist_ok=True)
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    with log.open("wb") as stream:
        return subprocess.run(
            [sys.executable, "-m", "mutmut", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
