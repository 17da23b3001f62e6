"""Options of ``cuattn bench``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bench.cases import CORE, SCHEMES
from ...bench.grid import PARTS, QUICK, QUICK_ROUNDS, Grid, make
from ...choice.timing import ROUNDS
from ...errors import ArgumentError
from ...presets import resolve
from ..options import at_least, items, one_of
from ..outputs import add_outputs

__all__ = ["Plan", "add_options", "plan"]

CAUSAL = {"both": (False, True), "yes": (True,), "no": (False,)}

# By the names of their values: keywords of `make`, and all options of a measurement.
SIZES = {
    "schemes": "--schemes",
    "parts": "--only",
    "seqlens": "--seqlen",
    "head_dims": "--head-dim",
    "causal": "--causal",
    "batch": "--batch",
    "heads": "--heads",
    "kv_heads": "--kv-heads",
    "caches": "--caches",
}
OPTIONS = {
    **SIZES,
    "quick": "--quick",
    "no_baselines": "--no-baselines",
    "rounds": "--rounds",
    "json": "--json",
}
ALL = {**OPTIONS, "html": "--html", "compare": "--compare", "given": "--from"}


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and how often."""

    grid: Grid
    rounds: int
    with_baselines: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options."""
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--auto-table",
        action="store_true",
        help="nothing but what scheme='auto' is chosen by on this GPU, in half a minute; written "
        "to where it is looked for, or with --json elsewhere",
    )
    what.add_argument(
        "--quick", action="store_true", default=None, help="a few shapes, in a minute"
    )
    what.add_argument(
        "--schemes",
        type=_schemes,
        metavar="NAMES",
        help=f"comma-separated names, or all ({','.join(CORE)})",
    )
    what.add_argument(
        "--only",
        dest="parts",
        type=items(one_of(PARTS)),
        metavar="PARTS",
        help=f"some of {','.join(PARTS)}",
    )
    what.add_argument(
        "--no-baselines", action="store_true", default=None, help="no kernels by others"
    )
    what.add_argument(
        "--rounds",
        type=at_least(2),
        metavar="N",
        help=f"how often each is timed ({ROUNDS}, {QUICK_ROUNDS} with --quick)",
    )
    sizes = parser.add_argument_group("shapes")
    sizes.add_argument(
        "--seqlen",
        dest="seqlens",
        type=items(at_least(1)),
        metavar="N,...",
        help="of prefill (1024,4096,16384)",
    )
    sizes.add_argument(
        "--head-dim",
        dest="head_dims",
        metavar="N,...",
        type=items(at_least(1)),
        help="channels of a head (64,128; 128 of caches)",
    )
    sizes.add_argument(
        "--causal",
        type=_causal,
        metavar="yes|no|both",
        help="prefill with a causal mask, without one, or both (both)",
    )
    sizes.add_argument(
        "--batch",
        type=at_least(1),
        metavar="N",
        help="sequences of prefill (4, of long ones as many as have 65536 tokens)",
    )
    sizes.add_argument("--heads", type=at_least(1), metavar="N", help="query heads (32)")
    sizes.add_argument(
        "--kv-heads",
        type=at_least(1),
        metavar="N",
        help="heads of K and V, a divisor of --heads (the same; 8 of caches)",
    )
    sizes.add_argument(
        "--caches",
        type=items(_cache),
        metavar="BxN,...",
        help="sequences and tokens of each that are decoded (1x131072, 64x4096, 16x1024 to "
        "16x32768 and more)",
    )
    output = parser.add_argument_group("output")
    add_outputs(
        parser,
        output,
        json="write all figures here (- is standard output)",
        html="write a page with tables and pictures",
    )
    output.add_argument(
        "--compare", type=Path, metavar="FILE", help="say what changed since this file of --json"
    )
    output.add_argument(
        "--from",
        dest="given",
        type=Path,
        metavar="FILE",
        help="measure nothing: show, compare or draw this file of --json; needs no GPU",
    )


def plan(args: argparse.Namespace) -> Plan | None:
    """Return what the options ask for; None if it is the table of `scheme="auto"`.

    Raises
    ------
    ArgumentError
        If they do not fit together.
    """
    given = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    if args.auto_table:
        others = {name: given[name] for name in given if name != "json"}
        read = ("html", "compare", "given")
        others |= {name: value for name in read if (value := getattr(args, name)) is not None}
        for name, value in others.items():
            raise ArgumentError(ALL[name], value, "left out with --auto-table")
        return None
    if args.given is not None and given:
        name, value = next(iter(given.items()))
        raise ArgumentError(OPTIONS[name], value, "left out with --from")
    sizes = {name: value for name, value in given.items() if name in SIZES}
    defaults: dict[str, Any] = QUICK if args.quick else {}
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    return Plan(make(**{**defaults, **sizes}), rounds, not args.no_baselines)


def _schemes(text: str) -> list[str]:
    """Read names of schemes, or "all"."""
    return [*SCHEMES] if text == "all" else items(lambda name: resolve(name).name)(text)


def _causal(text: str) -> tuple[bool, ...]:
    return CAUSAL[one_of(CAUSAL)(text)]


def _cache(text: str) -> tuple[int, int]:
    """Read sequences and tokens, such as 16x8192."""
    batch, cross, tokens = text.partition("x")
    if not cross:
        raise argparse.ArgumentTypeError(f"must be sequences x tokens like 16x8192, got {text!r}")
    return at_least(1)(batch), at_least(1)(tokens)
