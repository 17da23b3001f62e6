"""``cuattn scale``: what attention over several GPUs is expected to take."""

from __future__ import annotations

import argparse
from typing import Any

from ..distributed import Link, ParallelPlan, nvlink, plan_parallel
from ..errors import ArgumentError
from .options import at_least, items
from .table import Group, Row, Table

__all__ = ["add_to"]

_GPUS = [2, 4, 8, 16, 32, 64, 128, 256, 512]


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "scale",
        help="predict attention over several GPUs",
        description="How efficient rings, Ulysses and gathering are expected to be over several "
        "GPUs: predictions from rates that one GPU has been seen to have, not measurements.",
        allow_abbrev=False,
    )
    parser.add_argument("--heads", type=at_least(1), default=32, help="of Q (32)")
    parser.add_argument("--kv-heads", type=at_least(1), help="of K and V (those of Q)")
    parser.add_argument("--head-dim", type=at_least(1), default=128, help="(128)")
    parser.add_argument("--batch", type=at_least(1), default=1, help="(1)")
    parser.add_argument(
        "--tokens", type=at_least(1), default=16384, help="of each GPU, of one sequence (16384)"
    )
    parser.add_argument("--causal", action="store_true", help="with a causal mask")
    parser.add_argument("--scheme", default="int8-block", help="a preset (int8-block)")
    parser.add_argument("--wire", choices=["int4", "input"], help="how K and V travel (as codes)")
    parser.add_argument(
        "--gpus", type=items(_whole), default=_GPUS, help="how many, with commas (2 to 512)"
    )
    parser.add_argument(
        "--gb-per-s", type=at_least(1), default=50, help="of links between computers (50)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    groups = []
    near = nvlink()
    for title, link in (
        (f"NVLink, {near.bandwidth / 1e9:.0f} GB/s", near),
        (f"{args.gb_per_s} GB/s", Link(args.gb_per_s * 1e9)),
    ):
        plans = [_plan(args, gpus, link) for gpus in args.gpus]
        groups.append(Group(title, [_row(plan) for plan in plans]))
    columns = ["ms", "ring", "ulysses", "all-gather"]
    mask = "causal" if args.causal else "no mask"
    print(
        f"PREDICTED from rates of one {plans[0].gpu}: {args.scheme}, {args.tokens} tokens on each "
        f"GPU, {args.heads} heads of {args.head_dim}, {mask};"
    )
    print("milliseconds of the fastest way, and the efficiency of each\n")
    print(Table(columns, groups))


def _plan(args: argparse.Namespace, gpus: int, link: Link) -> ParallelPlan:
    return plan_parallel(
        (args.batch, args.heads, args.tokens * gpus, args.head_dim),
        gpus,
        link,
        num_kv_heads=args.kv_heads,
        is_causal=args.causal,
        scheme=args.scheme,
        wire=args.wire,
    )


def _row(plan: ParallelPlan) -> Row:
    found = {x.engine: x for x in plan.predictions}
    efficiencies = [
        found[engine].efficiency if engine in found else None
        for engine in ("ring", "ulysses", "all-gather")
    ]
    return f"{plan.gpus} GPUs", [1e3 * plan.predictions[0].seconds, *efficiencies]


def _whole(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise ArgumentError("gpus", word, "whole numbers with commas, such as 2,4,8")
    return int(word)
