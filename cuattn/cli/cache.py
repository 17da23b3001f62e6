"""``cuattn cache``: what the kernel cache holds, and how to make it smaller."""

from __future__ import annotations

import argparse
from typing import Any

from ..compile.cache_folder import Removed, clear, directory, max_bytes, prune, usage
from .options import at_least

__all__ = ["add_to", "summary"]

MIB = 2**20


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "cache",
        help="show the kernel cache, make it smaller, or empty it",
        description="The folder of compiled kernels, which all processes of a user share. Beyond "
        "$CUATTN_CACHE_MAX_MIB (2048) the kernels that were not used for longest are removed; "
        "$CUATTN_CACHE_DIR is another folder.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="folder, kernels and size", allow_abbrev=False)
    show.set_defaults(run=lambda args: print(summary()))
    smaller = actions.add_parser(
        "prune",
        help="remove leftovers of killed processes, and what was not used for longest",
        allow_abbrev=False,
    )
    smaller.add_argument(
        "--max-mib", type=at_least(0), help="MiB of kernels that may stay ($CUATTN_CACHE_MAX_MIB)"
    )
    smaller.set_defaults(run=_prune)
    empty = actions.add_parser("clear", help="remove all kernels", allow_abbrev=False)
    empty.set_defaults(run=lambda args: _say(clear()))


def summary() -> str:
    """Return folder, number of kernels and size, in a line."""
    kernels, size = usage()
    most = max_bytes() // MIB
    return f"{directory()}: {kernels} kernels, {size / MIB:.1f} MiB of at most {most}"


def _prune(args: argparse.Namespace) -> None:
    _say(prune(None if args.max_mib is None else args.max_mib * MIB))


def _say(removed: Removed) -> None:
    print(f"removed {removed.files} files, {removed.nbytes / MIB:.1f} MiB")
    print(summary())
