"""``cuattn bench``: what this GPU can do, what every scheme makes of it, and what others do."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ...bench import results as files
from ...bench import run as runs
from ...bench.compare import compare
from ...bench.results import Results
from ...common.output_files import Target, write_text
from ..pages.page import needs_packages
from ..progress import Bar
from . import auto_table, changes, options, tables
from .options import Plan
from .page import page

__all__ = ["add_to"]

# The versions that the first line names; files have all.
SHOWN = ("cuattn", "driver_cuda", "nvrtc", "torch")


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "bench",
        help="speed and error of every scheme on this GPU, beside others' and the GPU's limits",
        description="Measure what this GPU can do at most, then every scheme on a grid of shapes, "
        "kernel only and end to end, in turns with the kernels of others that can be imported, "
        "and their errors against float64.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    options.add_options(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write what the options ask for."""
    plan = options.plan(args)
    if plan is None:
        auto_table.run(args.json)
        return
    if args.html is not None:
        needs_packages("--html")
    old = None if args.compare is None else files.load(args.compare)
    results = runs.begun(plan.rounds) if args.given is None else files.load(args.given)
    print(_headline(results), flush=True)
    if args.given is None:
        _measure(plan, results, args.json)
    else:
        for what, reason in results.left_out.items():
            print(_left_out(what, reason), file=sys.stderr)
    for table in tables.tables(results):
        print(f"\n{table}")
    if line := tables.spread(results):
        print(f"\n{line}")
    comparison = None if old is None else compare(old, results)
    if comparison is not None:
        print(f"\n{changes.text(comparison)}")
    if args.html is not None:
        write_text(args.html, page(results, comparison))


def _measure(plan: Plan, results: Results, path: Target | None) -> None:
    """Fill the results, and write them, even if they are not complete."""
    try:
        with Bar() as bar:
            runs.measure(
                plan.grid,
                results,
                with_baselines=plan.with_baselines,
                task=bar.task,
                say=lambda what, reason: bar.note(_left_out(what, reason)),
            )
    except BaseException:
        if path is not None and (results.ceilings or results.timings or results.accuracy):
            files.save(results, path)
            where = path if isinstance(path, Path) else "standard output"
            print(f"interrupted; {where} has what was measured", file=sys.stderr)
        raise
    if path is not None:
        files.save(results, path)


def _headline(results: Results) -> str:
    """Say in a line where, when and what was measured."""
    about = [f"{name} {results.versions[name]}" for name in SHOWN if name in results.versions]
    return ", ".join([results.gpu, *about, results.measured_at, f"digest {results.digest[:12]}"])


def _left_out(what: str, reason: str) -> str:
    return f"left out: {what}: {reason}"
