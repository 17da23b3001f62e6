"""``cuattn report``: the error of every scheme against float64, and its time on this GPU."""

from __future__ import annotations

import argparse
from typing import Any

from ... import __version__
from ...choice.measure import measure_error
from ...common.output_files import Target, write_text
from ...common.typed_json import write
from ...errors import ArgumentError
from ...plan.kernels import runnable
from ...reference import exact
from ...scheme import Scheme
from ..inputs import Input, add_options, headline, inputs, keywords, where
from ..options import at_least
from ..outputs import add_outputs
from ..pages.page import needs_packages
from ..progress import Bar
from . import plot, sweep
from .measured import Measured, across_inputs, tables
from .page import CLOSE_UPS, page

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
    sweep.add_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--no-sources", action="store_true", help="leave out the errors by source: much faster"
    )
    add_outputs(
        parser,
        output,
        json="also write all figures here (- is standard output)",
        plot="also draw them here (.png)",
        html="also write a page with tables and pictures",
    )
    output.add_argument(
        "--close-ups",
        type=at_least(0),
        metavar="N",
        help="inputs of which the page has pictures of each scheme (the first, up to "
        f"{CLOSE_UPS} schemes in all)",
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write what the options ask for."""
    if args.plot is not None:
        plot.check(args.plot)
    if args.html is not None:
        needs_packages("--html")
    elif args.close_ups is not None:
        raise ArgumentError("--close-ups", args.close_ups, "left out without --html")
    sweep.check(args)
    options = keywords(args)
    given = inputs(args)
    print(headline(args), flush=True)
    with Bar() as bar:
        chosen = args.schemes or runnable()
        measured = [_measure(x, x.name, chosen, not args.no_sources, bar) for x in given]
        swept = sweep.sweeps(args, lambda x, name: _measure(x, name, chosen, False, bar))
    across = [across_inputs(measured)] if len(measured) > 1 else []
    for table in [*across, *tables(measured).values(), *(s.table() for s in swept)]:
        print(f"\n{table}")
    if args.json is not None:
        _write_json(args.json, measured, swept, options)
    if args.plot is not None:
        plot.draw(measured, args.plot)
    if args.html is not None:
        with Bar() as bar:
            text = page(measured, swept, headline(args), args.close_ups, bar.task)
        write_text(args.html, text)


def _write_json(
    target: Target, measured: list[Measured], swept: list[sweep.Sweep], options: dict[str, Any]
) -> None:
    document = {
        "cuattn": __version__,
        "where": where(),
        **options,
        "results": [row for m in measured for row in m.rows()],
        "sweeps": {s.axis.name.removeprefix("sweep_"): s.rows() for s in swept},
    }
    write(document, target)


def _measure(x: Input, name: str, chosen: list[Scheme], by_source: bool, bar: Bar) -> Measured:
    qkv = (x.q, x.k, x.v)
    reference, _ = exact.attention(*qkv, **x.options, progress=bar.task(f"{name}, float64"))
    reports = [
        measure_error(
            *qkv,
            **x.options,
            scheme=scheme,
            by_source=by_source,
            progress=bar.task(f"{name}, {scheme.name}"),
            reference=reference,
        )
        for scheme in chosen
    ]
    return Measured(x, reports)
