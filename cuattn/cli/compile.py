"""``cuattn compile``: fill the kernel cache, on any computer with the compiler."""

from __future__ import annotations

import argparse
from typing import Any

from cuattn import cache
from cuattn.compiler import checked_arch
from cuattn.device import current_device, gpu_status, target
from cuattn.errors import ArgumentError
from cuattn.jit import precompile
from cuattn.listing import attention_specs
from cuattn.operand import DTYPES
from cuattn.plan import supported
from cuattn.reference.layout import HEAD_DIMS

from .options import at_least, items, one_of, schemes
from .progress import Bar

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "compile",
        help="compile kernels into the cache; needs no GPU",
        description="Compile the kernels of some schemes for some architectures into the cache, "
        "so that the first call of a program need not. Needs the compiler but no GPU.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--arch",
        type=items(lambda name: target(name).arch),
        help="comma-separated targets, such as sm_80,sm_90a (this computer's GPU)",
    )
    parser.add_argument(
        "--schemes",
        type=schemes,
        default="all",
        help="comma-separated names, or all that have kernels for the target (all)",
    )
    parser.add_argument(
        "--head-dims",
        type=items(at_least(1)),
        default=list(HEAD_DIMS),
        help="comma-separated channels of a head (all that have kernels)",
    )
    parser.add_argument(
        "--dtypes",
        type=items(one_of(DTYPES)),
        default=list(DTYPES),
        help=f"comma-separated types of q, k and v ({','.join(DTYPES)})",
    )
    parser.add_argument(
        "--jobs", type=at_least(1), help="kernels to compile at a time (as many as cores)"
    )


def run(args: argparse.Namespace) -> None:
    """Compile what the options name and say what was done."""
    if args.arch is None and gpu_status()[0] != "ok":
        raise ArgumentError("--arch", args.arch, "given on a computer without a GPU")
    archs = [checked_arch(arch) for arch in args.arch or [current_device().arch]]
    for arch in archs:
        facts = target(arch)
        chosen = args.schemes or supported(facts)
        specs = attention_specs(chosen, args.head_dims, args.dtypes, facts)
        with Bar() as bar:
            new = precompile(specs, [arch], args.jobs, bar.task(f"sm_{arch}"))
        print(f"sm_{arch}: {new} kernels compiled, {len(specs) - new} were there")
    print(f"cache: {cache.directory()}")
