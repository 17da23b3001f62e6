"""Fuzz cuattn for a while: ``make fuzz``, or ``python tests/fuzz --help``.

Hypothesis makes the inputs. Every target counts what it tried, and how that ended; the first input
that shows a fault ends its process, is made as small as can be, printed, and the exit code is 1.
"""

import argparse
import json
import multiprocessing
import queue
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from fuzz import targets  # noqa: E402  (found by the lines above)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=1.0, help="time budget (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of the first round, else the time")
    parser.add_argument("--place", choices=("cpu", "gpu"), default="cpu", help="whose memory")
    parser.add_argument("--json", type=Path, help="file for the counts")
    parser.add_argument("targets", nargs="*", default=[], help=f"some of {', '.join(targets.ALL)}")
    options = parser.parse_args()
    names = options.targets or [
        name for name in targets.ALL if options.place == "cpu" or name in targets.OF_GPU
    ]
    if unknown := set(names) - set(targets.ALL):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    seed = options.seed if options.seed is not None else int(time.time())
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    jobs = [
        context.Process(target=targets.work, args=(n, options.jobs, names, options, seed, answers))
        for n in range(options.jobs)
    ]
    for job in jobs:
        job.start()
    total, failures = {}, []
    for counts, failed in _answers(jobs, answers):
        failures += failed
        for name, ends in counts.items():
            for end, count in ends.items():
                of_target = total.setdefault(name, {})
                of_target[end] = of_target.get(end, 0) + count
    for job in jobs:
        job.join()
    found = {
        "place": options.place,
        "process_minutes": options.minutes * options.jobs,
        "seed": seed,
        "counts": {name: dict(sorted(total[name].items())) for name in sorted(total)},
        "failures": len(failures),
    }
    print(json.dumps(found, indent=1))
    for text in failures:
        print(text, file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if failures else 0


def _answers(jobs, answers):
    """Yield what the processes found; one that a signal ended has found something, too."""
    waiting = len(jobs)
    while waiting:
        try:
            yield answers.get(timeout=1.0)
            waiting -= 1
        except queue.Empty:
            dead = [job for job in jobs if job.exitcode not in (None, 0)]
            if dead and waiting <= len(dead):
                for job in dead:
                    yield {}, [f"a process ended with {job.exitcode}; --jobs 1 --seed repeats it"]
                return


if __name__ == "__main__":
    raise SystemExit(main())
