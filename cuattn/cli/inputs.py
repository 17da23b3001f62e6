"""Where commands take Q, K and V from: files, or named distributions."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from ..reference.arrays import Shape
from ..reference.distributions import DISTRIBUTIONS, load, make
from .options import at_least

__all__ = ["Input", "add_options", "inputs"]

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
    """Q, K and V with a name for tables."""

    name: str
    q: NDArray[np.floating]
    k: NDArray[np.floating]
    v: NDArray[np.floating]

    @property
    def shape(self) -> Shape:
        """The sizes of the call."""
        return Shape.of(self.q.shape, self.k.shape, self.v.shape)

    @property
    def title(self) -> str:
        """The name, the sizes and the type in one line."""
        s = self.shape
        heads = f"{s.num_q_heads}" + (
            f" over {s.num_kv_heads}" if s.num_kv_heads != s.num_q_heads else ""
        )
        return (
            f"{self.name}: batch {s.batch}, heads {heads}, tokens {s.seqlen_q} x {s.seqlen_kv}, "
            f"head_dim {s.head_dim}, {self.q.dtype.name}"
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the inputs."""
    source = parser.add_argument_group("input").add_mutually_exclusive_group()
    source.add_argument(
        "--distribution",
        nargs="+",
        choices=[*DISTRIBUTIONS, "all"],
        metavar="NAME",
        help="; ".join(f"{name}: {d.description}" for name, d in DISTRIBUTIONS.items())
        + "; all: each of them",
    )
    source.add_argument(
        "--input",
        nargs="+",
        type=Path,
        metavar="FILE",
        help=".npz or .safetensors files with arrays q, k, v [batch, head, token, head_dim]",
    )
    drawn = parser.add_argument_group("sizes of a distribution")
    for option, name, least, text in SIZES:
        drawn.add_argument(option, dest=name, type=at_least(least), metavar="N", help=text)
    drawn.add_argument("--dtype", choices=("float16", "float32"), help="of the arrays (float16)")


def inputs(args: argparse.Namespace) -> list[Input]:
    """Load or draw the inputs that the options name.

    Raises
    ------
    ArgumentError
        If a file cannot be used or the options do not fit together.
    """
    if args.input is None:
        names = args.distribution or ["normal"]
        return [_draw(name, args) for name in (DISTRIBUTIONS if "all" in names else names)]
    options = {**{name: option for option, name, *_ in SIZES}, "dtype": "--dtype"}
    for name, option in options.items():
        if (value := getattr(args, name)) is not None:
            raise ArgumentError(option, value, "left out with --input")
    stems = [path.stem for path in args.input]
    return [
        Input(path.stem if stems.count(path.stem) == 1 else str(path), *load(path))
        for path in args.input
    ]


def _draw(distribution: str, args: argparse.Namespace) -> Input:
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
    return Input(distribution, q.astype(dtype), k.astype(dtype), v.astype(dtype))
