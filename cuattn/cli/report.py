"""``cuattn report``: the error of every scheme against float64, and its time on this GPU."""

from __future__ import annotations

import argparse
import json
import math
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from cuattn import __version__
from cuattn.device import current_device, gpu_status
from cuattn.errors import ArgumentError
from cuattn.measure import measure_error
from cuattn.plan import runnable
from cuattn.reference import exact
from cuattn.scheme import Scheme
from cuattn.typed_json import finite

from . import plot
from .inputs import Input, add_options, inputs
from .measured import Measured, tables
from .options import schemes
from .progress import Bar

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
    attention = parser.add_argument_group("attention")
    attention.add_argument(
        "--schemes",
        type=schemes,
        default="all",
        help="comma-separated names, or all, on a GPU all that have kernels for it (all)",
    )
    attention.add_argument("--causal", action="store_true", help="hide the keys after a query")
    attention.add_argument("--scale", type=float, help="factor of the logits (1/sqrt(head_dim))")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--no-sources", action="store_true", help="leave out the errors by source: much faster"
    )
    output.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    output.add_argument("--plot", type=Path, metavar="FILE", help="also draw them here (.png)")


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write what the options ask for."""
    for option, path in (("--json", args.json), ("--plot", args.plot)):
        if path is not None and not path.parent.is_dir():
            raise ArgumentError(option, str(path), "a file in an existing folder")
    if args.plot is not None:
        plot.check(args.plot)
    if args.scale is not None and not math.isfinite(args.scale):
        raise ArgumentError("--scale", args.scale, "a finite number")
    options = {"is_causal": args.causal, "scale": args.scale}
    given = inputs(args)
    where = _where()
    how = "causal attention" if args.causal else "attention"
    if args.scale is not None:
        how += f" with scale {args.scale:g}"
    print(f"{how}, {where}", flush=True)
    with Bar() as bar:
        chosen = args.schemes or runnable()
        measured = [_measure(x, chosen, options, not args.no_sources, bar) for x in given]
    for table in tables(measured):
        print(f"\n{table}")
    if args.json is not None:
        document = {
            "cuattn": __version__,
            "where": where,
            **options,
            "results": [row for m in measured for row in m.rows()],
        }
        text = json.dumps(finite(document), indent=1, allow_nan=False)
        args.json.write_text(text + "\n", encoding="utf-8")
    if args.plot is not None:
        plot.draw(measured, args.plot)


def _where() -> str:
    state, detail = gpu_status()
    if state == "ok":
        device = current_device()
        return f"computed on {device.name} (sm_{device.arch})"
    return f"emulated in NumPy, no GPU to be used: {detail.splitlines()[0]}"


def _measure(
    x: Input, chosen: list[Scheme], options: dict[str, Any], by_source: bool, bar: Bar
) -> Measured:
    qkv = (x.q, x.k, x.v)
    reference, _ = exact.attention(*qkv, **options, progress=bar.task(f"{x.name}, float64"))
    with _one_blas_thread():
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


def _one_blas_thread() -> AbstractContextManager[object]:
    """Keep matrix products in one thread if threadpoolctl is installed.

    Those of the emulation are small, and threads of OpenBLAS wait for each other in busy loops:
    where other processes run, that takes ten times as long.
    """
    try:
        limits = import_module("threadpoolctl").threadpool_limits
    except ImportError:
        return nullcontext()
    return limits(1, user_api="blas")  # type: ignore[no-any-return]
