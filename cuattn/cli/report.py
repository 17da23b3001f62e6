"""``cuattn report``: the error of every scheme against float64, and its time on this GPU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cuattn import __version__
from cuattn.measure import measure_error
from cuattn.plan import runnable
from cuattn.reference import exact
from cuattn.scheme import Scheme
from cuattn.typed_json import finite

from . import plot, setting
from .inputs import Input, add_options, inputs
from .measured import Measured, tables
from .options import check_folder
from .progress import Bar
from .threads import one_blas_thread

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
    output = parser.add_argument_group("output")
    output.add_argument(
        "--no-sources", action="store_true", help="leave out the errors by source: much faster"
    )
    output.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    output.add_argument("--plot", type=Path, metavar="FILE", help="also draw them here (.png)")


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write what the options ask for."""
    check_folder("--json", args.json)
    check_folder("--plot", args.plot)
    if args.plot is not None:
        plot.check(args.plot)
    options = setting.keywords(args)
    given = inputs(args)
    print(setting.headline(args), flush=True)
    with Bar() as bar:
        chosen = args.schemes or runnable()
        measured = [_measure(x, chosen, options, not args.no_sources, bar) for x in given]
    for table in tables(measured):
        print(f"\n{table}")
    if args.json is not None:
        document = {
            "cuattn": __version__,
            "where": setting.where(),
            **options,
            "results": [row for m in measured for row in m.rows()],
        }
        text = json.dumps(finite(document), indent=1, allow_nan=False)
        args.json.write_text(text + "\n", encoding="utf-8")
    if args.plot is not None:
        plot.draw(measured, args.plot)


def _measure(
    x: Input, chosen: list[Scheme], options: dict[str, Any], by_source: bool, bar: Bar
) -> Measured:
    qkv = (x.q, x.k, x.v)
    reference, _ = exact.attention(*qkv, **options, progress=bar.task(f"{x.name}, float64"))
    with one_blas_thread():
        reports = [
            measure_error(
                *qkv,
                **options,
                scheme=scheme,
                by_source=by_source,
                progress=bar.task(f"{x.name}, {scheme.name}"),
                reference=reference,
            )
            for scheme in chosen
        ]
    return Measured(x, reports)
