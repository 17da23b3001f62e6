"""What commands measure, and with which attention: Q, K and V from files or distributions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.device import current_device, gpu_status
from ..choice.calibration import check_finite
from ..common.text import printable
from ..errors import ArgumentError
from ..reference.arrays import Shape
from ..reference.distributions import DISTRIBUTIONS, make
from ..reference.files import read_call
from .options import at_least, schemes

__all__ = ["Input", "add_options", "headline", "inputs", "keywords", "where"]

# Option, its name in `distributions.make`, and the least value.
SIZES = (
    ("--batch", "batch", 0, "sequences (1)"),
    ("--heads", "num_q_heads", 1, "query heads (4)"),
    ("--kv-heads", "num_kv_heads", 1, "heads of K and V, a divisor of --heads (the same)"),
    ("--seqlen-q", "seqlen_q", 0, "query tokens (1024)"),
    ("--seqlen-kv", "seqlen_kv", 0, "key tokens (the same)"),
    ("--head-dim", "head_dim", 1, "channels of a head (128)"),
    ("--seed", "seed", 0, "of the random numbers (0)"),
)


@dataclass(frozen=True, eq=False)
class Input:
    """Q, K and V with a name for tables, and the attention that is meant.

    Attributes
    ----------
    name : str
        Fit to be printed.
    q : ndarray [batch, num_q_heads, seqlen_q, head_dim]
    k, v : ndarray [batch, num_kv_heads, seqlen_kv, head_dim]
    is_causal : bool
    scale : float or None
        Factor of the logits; None for 1/sqrt(head_dim).
    own : tuple of str
        What of this its file says, in words for the title.
    """

    name: str
    q: NDArray[np.floating]
    k: NDArray[np.floating]
    v: NDArray[np.floating]
    is_causal: bool
    scale: float | None
    own: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The attention's, as `cuattn.measure_error` takes them."""
        return {"is_causal": self.is_causal, "scale": self.scale}

    @property
    def shape(self) -> Shape:
        """The sizes of the call."""
        return Shape.of(self.q.shape, self.k.shape, self.v.shape)

    @property
    def title(self) -> str:
        """The name, the sizes, the type and what is special in one line."""
        s = self.shape
        heads = f"{s.num_q_heads}" + (
            f" over {s.num_kv_heads}" if s.num_kv_heads != s.num_q_heads else ""
        )
        notes = [*self.own]
        if not self.q.size:
            notes.append("no outputs, so no errors either")
        elif not s.seqlen_kv:
            notes.append("no keys, so all outputs are 0")
        return ", ".join(
            [
                f"{self.name}: batch {s.batch}",
                f"heads {heads}",
                f"tokens {s.seqlen_q} x {s.seqlen_kv}",
                f"head_dim {s.head_dim}",
                self.q.dtype.name,
                *notes,
            ]
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the inputs, the schemes and the attention."""
    source = parser.add_argument_group("input")
    kinds = source.add_mutually_exclusive_group()
    kinds.add_argument(
        "--distribution",
        nargs="+",
        choices=[*DISTRIBUTIONS, "all"],
        metavar="NAME",
        help="; ".join(f"{name}: {d.description}" for name, d in DISTRIBUTIONS.items())
        + "; all: each of them",
    )
    kinds.add_argument(
        "--input",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=".npz or .safetensors files with arrays q, k, v [batch, head, token, head_dim], and "
        "scale and is_causal where they have them",
    )
    source.add_argument(
        "--keys",
        type=_keys,
        metavar="q=NAME,...",
        help="names of the arrays in the files, such as q=query,k=key,v=value",
    )
    drawn = parser.add_argument_group("sizes of a distribution")
    for option, name, least, text in SIZES:
        drawn.add_argument(option, dest=name, type=at_least(least), metavar="N", help=text)
    drawn.add_argument("--dtype", choices=("float16", "float32"), help="of the arrays (float16)")
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


def inputs(args: argparse.Namespace) -> list[Input]:
    """Load or draw the inputs that the options name.

    Raises
    ------
    ArgumentError
        If a file cannot be used or has an element that is not finite, or the options do not fit
        together.
    """
    options = keywords(args)
    if args.input is None:
        if args.keys is not None:
            raise ArgumentError("--keys", args.keys, "left out without --input")
        names = args.distribution or ["normal"]
        chosen = DISTRIBUTIONS if "all" in names else names
        return [_drawn(name, args, options) for name in chosen]
    sizes = {**{name: option for option, name, *_ in SIZES}, "dtype": "--dtype"}
    for name, option in sizes.items():
        if (value := getattr(args, name)) is not None:
            raise ArgumentError(option, value, "left out with --input")
    stems = [path.stem for path in args.input]
    return [
        _read(path, path.stem if stems.count(path.stem) == 1 else str(path), args.keys, options)
        for path in args.input
    ]


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
    why = detail.splitlines()[0]
    if state == "no-cupy":  # what to install fills lines, which who has no GPU does not need
        why = f"{why.partition('; ')[0]} (see cuattn info)"
    return f"emulated in NumPy, no usable GPU: {why}"


def _keys(text: str) -> dict[str, str]:
    """Read names of arrays, such as q=query,k=key."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    keys = {of: name for of, _, name in pairs}
    if len(keys) != len(pairs) or not keys.keys() <= {"q", "k", "v"} or not all(keys.values()):
        raise argparse.ArgumentTypeError(f"must be like q=query,k=key,v=value, got {text!r}")
    return keys


def _read(
    path: Path, name: str, keys: Mapping[str, str] | None, options: Mapping[str, Any]
) -> Input:
    call = read_call(path, keys)
    for array in ("q", "k", "v"):
        check_finite(f"{printable(str(path))}: {array}", getattr(call, array))
    own = []
    causal, scale = options["is_causal"], options["scale"]
    if call.is_causal is not None:
        if causal and not call.is_causal:
            raise ArgumentError("--causal", True, f"left out with {path}, which is not causal")
        causal = call.is_causal
        own.append("causal" if causal else "not causal")
    if call.scale is not None:
        if scale not in (None, call.scale):
            raise ArgumentError("--scale", scale, f"left out with {path}, which has {call.scale:g}")
        scale = call.scale
        own.append(f"scale {scale:g}")
    return Input(printable(name), call.q, call.k, call.v, causal, scale, tuple(own))


def _drawn(distribution: str, args: argparse.Namespace, options: Mapping[str, Any]) -> Input:
    def size(name: str, default: int) -> int:
        value = getattr(args, name)
        return default if value is None else value

    heads, tokens = size("num_q_heads", 4), size("seqlen_q", 1024)
    kv_heads = size("num_kv_heads", heads)
    if heads % kv_heads:
        raise ArgumentError("--kv-heads", kv_heads, f"a divisor of --heads, {heads}")
    q, k, v = make(
        distribution,
        batch=size("batch", 1),
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        seqlen_q=tokens,
        seqlen_kv=size("seqlen_kv", tokens),
        head_dim=size("head_dim", 128),
        seed=size("seed", 0),
    )
    dtype = args.dtype or "float16"
    return Input(distribution, q.astype(dtype), k.astype(dtype), v.astype(dtype), **options)
