"""What attention a command measures, and on what: options and words that commands share."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ..arrays.device import current_device, gpu_status
from ..errors import ArgumentError
from .options import schemes

__all__ = ["add_options", "headline", "keywords", "where"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which attention is meant."""
    attention = parser.add_argument_group("attention")
    attention.add_argument(
        "--schemes",
        type=schemes,
        default="all",
        help="comma-separated names, or all, on a GPU all that have kernels for it (all)",
    )
    attention.add_argument("--causal", action="store_true", help="hide the keys after a query")
    attention.add_argument("--scale", type=float, help="factor of the logits (1/sqrt(head_dim))")


def keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options as `cuattn.measure_error` takes them.

    Raises
    ------
    ArgumentError
        If the scale is not finite.
    """
    if args.scale is not None and not math.isfinite(args.scale):
        raise ArgumentError("--scale", args.scale, "a finite number")
    return {"is_causal": args.causal, "scale": args.scale}


def headline(args: argparse.Namespace) -> str:
    """Say which attention, and where, in one line."""
    how = "causal attention" if args.causal else "attention"
    if args.scale is not None:
        how += f" with scale {args.scale:g}"
    return f"{how}, {where()}"


def where() -> str:
    """Say what computes."""
    state, detail = gpu_status()
    if state == "ok":
        device = current_device()
        return f"computed on {device.name} (sm_{device.arch})"
    return f"emulated in NumPy, no GPU to be used: {detail.splitlines()[0]}"
