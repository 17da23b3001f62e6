"""``cuattn choose``: the fastest scheme within a bound on the error, for each input."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ..choice.progress import Stages
from ..choice.scheme_plan import SchemePlan, plan_schemes
from .inputs import add_options, headline, inputs
from .options import between
from .outputs import add_outputs
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
    add_options(parser)
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
    add_outputs(
        parser,
        output,
        save="write the scheme of each input as a plan (.json; - is standard output)",
    )


def run(args: argparse.Namespace) -> None:
    """Choose, print, and write the plan if there is to be one."""
    given = inputs(args)
    print(headline(args), flush=True)
    plans = []
    with Bar() as bar:
        stages = Stages(bar.task("choosing"), len(given))
        for x in given:  # by itself, as its file may say which attention it is of
            plans.append(
                plan_schemes(
                    {x.name: (x.q, x.k, x.v)},
                    **x.options,
                    schemes=args.schemes,
                    min_cosine=args.min_cosine,
                    max_relative_l1=args.max_relative_l1,
                    progress=stages.next(),
                )
            )
    plan = SchemePlan(
        {key: scheme for found in plans for key, scheme in found.schemes.items()},
        {key: choice for found in plans for key, choice in found.choices.items()},
    )
    for x in given:
        print(f"\n{x.title}\n{plan.choices[x.name]}")
    if len(plan.schemes) > 1:
        print(f"\nplan\n{plan}")
    if args.save is not None:
        plan.save(args.save)
