"""``cuattn report``: the error of every scheme against float64, and its time on this GPU."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ... import __version__
from ...choice.measure import measure_error
from ...common.typed_json import write
from ...errors import ArgumentError
from ...plan.kernels import runnable
from ...reference import exact
from ...scheme import Scheme
from .. import figures, setting
from ..inputs import Input, add_options, inputs
from ..options import at_least, check_folder
from ..progress import Bar
from . import html as html_report
from . import plot, sweep
from .measured import Measured, tables

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "report",
        help="error of every scheme against float64, and its time on this GPU",
        description="Error of every scheme against attention in float64, by all metrics and by "
        "source, and its time on the GPU; without a GPU, the schemes are emulated.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    add_options(parser)
    setting.add_options(parser)
    sweep.add_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--no-sources", action="store_true", help="leave out the errors by source: much faster"
    )
    output.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    output.add_argument("--plot", type=Path, metavar="FILE", help="also draw them here (.png)")
    output.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with tables and pictures"
    )
    output.add_argument(
        "--close-ups",
        type=at_least(0),
        metavar="N",
        help="inputs of which the page has pictures of each scheme (the first, up to "
        f"{html_report.CLOSE_UPS} schemes in all)",
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write what the options ask for."""
    check_folder("--json", args.json)
    check_folder("--plot", args.plot)
    check_folder("--html", args.html)
    if args.plot is not None:
        plot.check(args.plot)
    if args.html is not None:
        figures.needs_matplotlib("--html")
    elif args.close_ups is not None:
        raise ArgumentError("--close-ups", args.close_ups, "left out without --html")
    sweep.check(args)
    options = setting.keywords(args)
    given = inputs(args)
    headline = setting.headline(args)
    print(headline, flush=True)
    with Bar() as bar:
        chosen = args.schemes or runnable()
        measured = [_measure(x, x.name, chosen, options, not args.no_sources, bar) for x in given]
        swept = sweep.sweeps(args, lambda x, name: _measure(x, name, chosen, options, False, bar))
    for table in [*tables(measured), *(s.table() for s in swept)]:
        print(f"\n{table}")
    if args.json is not None:
        _write_json(args.json, measured, swept, options)
    if args.plot is not None:
        plot.draw(measured, args.plot)
    if args.html is not None:
        with Bar() as bar, figures.style():
            html_report.write(
                args.html, measured, swept, options, headline, args.close_ups, bar.task
            )


def _write_json(
    path: Path, measured: list[Measured], swept: list[sweep.Sweep], options: dict[str, Any]
) -> None:
    document = {
        "cuattn": __version__,
        "where": setting.where(),
        **options,
        "results": [row for m in measured for row in m.rows()],
        "sweeps": {s.axis.name.removeprefix("sweep_"): s.rows() for s in swept},
    }
    write(document, path)


def _measure(
    x: Input,
    name: str,
    chosen: list[Scheme],
    options: dict[str, Any],
    by_source: bool,
    bar: Bar,
) -> Measured:
    qkv = (x.q, x.k, x.v)
    reference, _ = exact.attention(*qkv, **options, progress=bar.task(f"{name}, float64"))
    reports = [
        measure_error(
            *qkv,
            **options,
            scheme=scheme,
            by_source=by_source,
            progress=bar.task(f"{name}, {scheme.name}"),
            reference=reference,
        )
        for scheme in chosen
    ]
    return Measured(x, reports)
