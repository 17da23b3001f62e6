"""``cuattn choose``: the fastest scheme within a bound on the error, for each input."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from ..choice.scheme_plan import plan_schemes
from . import inputs, setting
from .options import between, check_folder
from .progress import Bar

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "choose",
        help="the fastest scheme within a bound on the error, for each input",
        description="Compare schemes on each input, such as those of a model's layers, and choose "
        "the fastest whose error is within the bound. Without a GPU the order of speed is that of "
        "an H200.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    inputs.add_options(parser)
    setting.add_options(parser)
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument(
        "--min-cosine",
        type=between(0, 1),
        default=0.998,
        metavar="X",
        help="least cosine similarity to float64 (0.998)",
    )
    bounds.add_argument(
        "--max-relative-l1",
        type=between(0, math.inf),
        metavar="X",
        help="largest relative L1 error (none)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--save", type=Path, metavar="FILE", help="write the scheme of each input as a plan (.json)"
    )


def run(args: argparse.Namespace) -> None:
    """Choose, print, and write the plan if there is to be one."""
    check_folder("--save", args.save)
    options = setting.keywords(args)
    given = inputs.inputs(args)
    print(setting.headline(args), flush=True)
    with Bar() as bar:
        plan = plan_schemes(
            {x.name: (x.q, x.k, x.v) for x in given},
            **options,
            schemes=args.schemes,
            min_cosine=args.min_cosine,
            max_relative_l1=args.max_relative_l1,
            progress=bar.task("choosing"),
        )
    for x in given:
        print(f"\n{x.title}\n{plan.choices[x.name]}")
    if len(plan.schemes) > 1:
        print(f"\nplan\n{plan}")
    if args.save is not None:
        plan.save(args.save)
