"""Phases of the GPU check as processes: side by side, or one after the other, each within its time.

Each runs in a session of its own, so that it can be ended with all that it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import one_phase
from benchmarks.phases import PHASES, Findings
from cuattn.common.typed_json import read

__all__ = ["Outcome", "Schedule"]

ROOT = Path(__file__).resolve().parent.parent
ONE_PHASE = (sys.executable, "-m", "benchmarks.one_phase")
POLL_S = 0.1
# Of a log, what is shown of a process that failed.
LAST_LINES = 30


@dataclass(frozen=True)
class Outcome:
    """How a phase ended.

    Attributes
    ----------
    findings : Findings or None
        None if it failed.
    failed : str or None
        In a line, what went wrong.
    log : str
        All that its processes wrote.
    """

    phase: str
    seconds: float
    findings: Findings | None
    failed: str | None
    log: str


class Schedule:
    """Runs phases.

    Parameters
    ----------
    folder : Path
        For what processes find and write; it exists, and has nothing in it of an earlier run.
    options : str
        For pytest.
    end : float
        Of `time.monotonic`; no phase goes on beyond it.
    command : sequence of str
        Takes the arguments of `benchmarks.one_phase`.
    """

    def __init__(
        self, folder: Path, options: str, end: float, command: Sequence[str] = ONE_PHASE
    ) -> None:
        self._folder = folder
        self._options = options
        self._end = end
        self._command = command

    def together(self, names: Sequence[str]) -> Iterator[Outcome]:
        """Run phases side by side, each in as many processes as it has parts."""
        begun = time.monotonic()
        running = {name: [self._start(name, i) for i in range(_parts(name))] for name in names}
        try:
            while running:
                time.sleep(POLL_S)
                for name, processes in [*running.items()]:
                    failed = self._trouble(name, processes, begun)
                    if failed is not None or all(x.poll() == 0 for x in processes):
                        del running[name]
                        _end(processes)
                        yield self._outcome(name, begun, failed)
        finally:
            for processes in running.values():
                _end(processes)

    def in_turn(self, names: Sequence[str]) -> Iterator[Outcome]:
        """Run phases one after the other; those that follow one another share a process.

        After one that failed the others get a new process.
        """
        left = list(names)
        while left:
            process = self._start(left[0], 0, *left[1:])
            log_of = left[0]
            failed = None
            try:
                while left and failed is None:
                    name, begun = left[0], time.monotonic()
                    written = one_phase.file(self._folder, name, 0)
                    while not written.exists() and failed is None:
                        time.sleep(POLL_S)
                        # It may have been written just before the process ended.
                        failed = None if written.exists() else self._trouble(name, [process], begun)
                        if failed is None and process.poll() == 0 and not written.exists():
                            failed = "ended without a word"
                    left.pop(0)
                    yield self._outcome(name, begun, failed, log_of)
            finally:
                _end([process], gently=failed is None and not left)

    def _start(self, name: str, part: int, *others: str) -> subprocess.Popen[bytes]:
        parts = str(_parts(name))
        what = [str(self._folder), str(part), parts, self._options, name, *others]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self._log(name, part).open("wb") as log:
            return subprocess.Popen(
                [*self._command, *what],
                cwd=ROOT,
                # Threads of BLAS wait busily for one another, and there are processes enough.
                env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _trouble(
        self, name: str, processes: Sequence[subprocess.Popen[bytes]], begun: float
    ) -> str | None:
        """Return why a phase has to be given up, if it has."""
        for process in processes:
            if process.poll() not in (None, 0):
                return f"ended with status {process.returncode}"
        now = time.monotonic()
        limit = PHASES[name].limit_s
        if now - begun > limit:
            return f"took longer than {limit:g} s"
        return "no time was left" if now > self._end else None

    def _outcome(
        self, name: str, begun: float, failed: str | None, log_of: str | None = None
    ) -> Outcome:
        seconds = time.monotonic() - begun
        logs = [self._log(log_of or name, part) for part in range(_parts(name))]
        log = "".join(x.read_text(encoding="utf-8", errors="replace") for x in logs)
        log = log.rpartition(f"== {name}\n")[2] if log_of else log
        if failed is not None:
            return Outcome(name, seconds, None, failed, log)
        findings = Findings()
        for part in range(_parts(name)):
            findings = findings + read(one_phase.file(self._folder, name, part), Findings)
        return Outcome(name, seconds, findings, None, log)

    def _log(self, name: str, part: int) -> Path:
        return self._folder / f"{name}.{part}.log"


def _parts(name: str) -> int:
    return PHASES[name].parts


def _end(processes: Sequence[subprocess.Popen[bytes]], *, gently: bool = False) -> None:
    """End processes with all that they started; `gently` those that are about to end."""
    for process in processes:
        if gently:
            process.wait()
        elif process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
