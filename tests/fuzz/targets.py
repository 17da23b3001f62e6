"""The targets by name, rounds of them, and a process that runs such until the time is over."""

import time
import traceback
from importlib import import_module

import hypothesis
from hypothesis import HealthCheck, Phase, settings

# Where no GPU is needed all run; on a GPU those whose arrays are there.
ALL = ("attention", "kv_cache", "files", "dlpack", "command_line")
OF_GPU = ("attention", "kv_cache")

_ROUND = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=False,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    stateful_step_count=30,
    print_blob=False,
)


def run_round(name, place, seed, counts):
    """Run a target; `counts` gets how often each end was seen."""

    def count(end):
        counts[end] = counts.get(end, 0) + 1

    target = import_module(f"fuzz.{name}_target")
    target.run(place, count, lambda test: hypothesis.seed(seed)(_ROUND(test)), _ROUND, seed)


def work(job, jobs, names, options, seed, answers):
    """Run the targets in turn, each a round at a time, until the time is over."""
    end = time.monotonic() + 60 * options.minutes
    counts, failures = {name: {} for name in names}, []
    turn = job
    while time.monotonic() < end and not failures:
        name = names[turn % len(names)]
        try:
            run_round(name, options.place, seed + turn, counts[name])
        except Exception:
            failures.append(f"{name}, seed {seed + turn}:\n{traceback.format_exc()}")
        # With as many processes as targets each would only ever have one of them.
        turn += jobs if jobs % len(names) else jobs + 1
    answers.put((counts, failures))
