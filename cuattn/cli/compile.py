"""``cuattn compile``: fill the kernel cache, on any computer with the compiler."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar

from ..arrays.device import Target, current_device, gpu_status, target
from ..compile.jit import Spec, precompile
from ..compile.nvrtc import checked_arch
from ..errors import ArgumentError
from ..kv.listing import kv_specs
from ..kv_format import KV_BITS, KV_HEAD_DIMS
from ..latent.listing import latent_specs
from ..operands.operand import DTYPES
from ..plan.kernels import has_kernels, supported
from ..plan.listing import attention_specs, mask_map_specs, merge_specs, rate_specs
from ..reference.layout import HEAD_DIMS, WIDE_HEAD_DIMS
from .cache import summary
from .options import at_least, items, one_of, schemes
from .progress import Bar, duration

__all__ = ["add_to"]

S = TypeVar("S", bound=Spec)

# What `--all` decides.
CHOICES = ("schemes", "head_dims", "dtypes", "kv")


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "compile",
        help="compile kernels into the cache; needs no GPU",
        description="Compile kernels for some architectures into the cache, so that the first call "
        "of a program need not. Needs the compiler but no GPU. Without further options: those of "
        "attention, of all schemes.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--arch",
        type=items(lambda name: target(name).arch),
        help="comma-separated targets, such as sm_80,sm_90a (this computer's GPU)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every kernel that there is: all schemes, head dims, types, KV caches, masks, merging "
        "and ceilings",
    )
    parser.add_argument(
        "--schemes",
        type=schemes,
        help="comma-separated names, or all that have kernels for the target (all)",
    )
    parser.add_argument(
        "--head-dims",
        type=items(_head_dim),
        help=f"comma-separated channels of a head, of {','.join(map(str, HEAD_DIMS))} (all of "
        f"these), {','.join(map(str, WIDE_HEAD_DIMS))}",
    )
    parser.add_argument(
        "--dtypes",
        type=items(one_of(DTYPES)),
        help=f"comma-separated types of q, k and v ({','.join(DTYPES)})",
    )
    parser.add_argument(
        "--kv",
        type=items(_bits),
        help="comma-separated bits of codes, 8,4: KVCache, too, with K and V of so many (none)",
    )
    parser.add_argument(
        "--jobs", type=at_least(1), help="kernels to compile at a time (as many as cores)"
    )


def run(args: argparse.Namespace) -> None:
    """Compile what the options name and say what was done."""
    for name in CHOICES if args.all else ():
        if getattr(args, name) is not None:
            raise ArgumentError("--all", True, f"left out with --{name.replace('_', '-')}")
    if args.arch is None and gpu_status()[0] != "ok":
        raise ArgumentError(
            "--arch", args.arch, "given on a computer without a GPU, such as sm_90a"
        )
    archs = [checked_arch(arch) for arch in args.arch or [current_device().arch]]
    jobs = args.jobs or os.cpu_count() or 1
    for arch in archs:
        specs = _specs(args, target(arch))
        # Ahead, for logs that have no bar: all kernels of a target take a core 20 to 30 minutes.
        print(f"sm_{arch}: {len(specs)} kernels, {jobs} at a time", flush=True)
        begun = time.monotonic()
        with Bar() as bar:
            new = precompile(specs, [arch], jobs, bar.task(f"sm_{arch}"))
        took = duration(time.monotonic() - begun)
        print(f"sm_{arch}: {new} kernels compiled in {took}, {len(specs) - new} were there")
    print(f"cache: {summary()}")


def _head_dim(text: str) -> int:
    """Read channels that kernels are made for; others run those of the next larger number."""
    value = at_least(1)(text)
    all_sizes = [*HEAD_DIMS, *WIDE_HEAD_DIMS]
    if value not in all_sizes:
        larger = min((x for x in all_sizes if x > value), default=None)
        hint = "" if larger is None else f", which runs the kernels of {larger}"
        raise argparse.ArgumentTypeError(f"must be among {all_sizes}, got {value}{hint}")
    return value


def _bits(text: str) -> int:
    return int(one_of([str(bits) for bits in KV_BITS])(text))


def _specs(args: argparse.Namespace, facts: Target) -> list[Spec]:
    head_dims = args.head_dims or HEAD_DIMS
    chosen = args.schemes or [x for x in supported(facts) if has_kernels(x, max(head_dims), facts)]
    dtypes = args.dtypes or DTYPES
    bits = KV_BITS if args.all else args.kv or ()
    return _mixed(
        [
            *attention_specs(chosen, head_dims, dtypes, facts),
            *kv_specs(args.head_dims or KV_HEAD_DIMS, dtypes, bits, facts),
            *(_others(dtypes, facts) if args.all else ()),
        ]
    )


def _others(dtypes: Iterable[str], facts: Target) -> list[Spec]:
    """List the kernels that only `--all` names."""
    of_dtypes = [*merge_specs(dtypes), *latent_specs(dtypes, facts)]
    return [*mask_map_specs(), *of_dtypes, *rate_specs(facts)]


def _mixed(specs: Iterable[S]) -> list[S]:
    """Spread the kernels of each file evenly, so that some of all tell how long the others take."""
    specs = list(specs)
    of_file = Counter(spec.source for spec in specs)
    seen: Counter[str] = Counter()
    place = {}
    for spec in specs:
        place[spec] = (seen[spec.source] + 0.5) / of_file[spec.source]
        seen[spec.source] += 1
    return sorted(specs, key=place.__getitem__)
