"""`plan_parallel`: which way to take over several GPUs, by rates that one has been seen to have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

from ..common.public import class_naming_keywords, naming_keywords
from ..common.sizes import is_whole_number
from ..errors import ArgumentError
from ..presets import resolve
from ..records.record import Record, load, records, records_of_several
from .parcel import Carrier, Wire
from .rates import NVLINK, Engine, Link, Prediction, RateModel

__all__ = ["ParallelPlan", "nvlink", "plan_parallel"]


@class_naming_keywords
@dataclass(frozen=True)
class ParallelPlan:
    """Predictions for a shape, the fastest first; `str()` says them in a table.

    Attributes
    ----------
    gpus : int
    predictions : tuple of Prediction
    gpu : str
        Whose rates they are made of.
    """

    gpus: int
    predictions: tuple[Prediction, ...]
    gpu: str

    @property
    def engine(self) -> Engine:
        """What to take."""
        return self.predictions[0].engine

    def __str__(self) -> str:
        lines = [f"predicted for {self.gpus} GPUs, from rates of one {self.gpu}:"]
        for x in self.predictions:
            lines.append(
                f"{x.engine:10} {1e3 * x.seconds:9.3f} ms, efficiency {x.efficiency:.2f}, "
                f"{1e3 * x.exposed:.3f} ms of it waiting, {x.bytes_sent / 1e6:.1f} MB sent"
            )
        return "\n".join(lines)


@naming_keywords
def plan_parallel(
    shape: tuple[int, int, int, int],
    gpus: int,
    bandwidth: float | Link | None = None,
    *,
    num_kv_heads: int | None = None,
    is_causal: bool = False,
    scheme: str = "int8-block",
    wire: Wire = None,
    record: str | PathLike[str] | None = None,
) -> ParallelPlan:
    """Predict how long ways over several GPUs take, and so which to take.

    Parameters
    ----------
    shape : tuple of int
        (batch, num_q_heads, tokens of the whole sequence, head_dim), of float16.
    gpus : int
        Ranks.
    bandwidth : float or Link, optional
        Bytes a second that a rank sends while it receives as many; by default `nvlink()`.
    num_kv_heads : int, optional
        `num_q_heads` by default, which it divides.
    is_causal : bool
        With placement "zigzag" in the ring and in all-gather.
    scheme : str
        A preset of which the record has times.
    wire : {None, "int4", "input"}
        As for `ring_attention`.
    record : path, optional
        Of a GPU check; by default the one that comes with the package.

    Returns
    -------
    ParallelPlan
        Ulysses is part of it where the ranks divide `num_kv_heads`.

    Raises
    ------
    ArgumentError
        If an argument is wrong, or the record has no times of the scheme.

    Notes
    -----
    A prediction, not a measurement. Time of a kernel is its operations over the rate that the
    record has for the nearest lengths, between two of them by their logarithms; of quantizing and
    merging, bytes over the rate of a copy. A ring's step takes as long as computing or sending,
    whichever is longer, and sending disturbs no computing.
    """
    _check_sizes(shape, gpus, num_kv_heads)
    link = _link(bandwidth)
    batch, heads, tokens, head_dim = shape
    kv_heads = heads if num_kv_heads is None else num_kv_heads
    carrier = Carrier(resolve(scheme), wire, batch, kv_heads, head_dim, head_dim, "float16", "HND")
    model = RateModel.of(_record(record), carrier, heads, head_dim, is_causal)
    alone = model.of_one(tokens)
    found = [model.ring(tokens, gpus, link, alone), model.gathered(tokens, gpus, link, alone)]
    if kv_heads % gpus == 0:
        found.append(model.ulysses(tokens, gpus, link, alone))
    order = sorted(found, key=lambda x: x.seconds)
    return ParallelPlan(gpus, tuple(order), model.gpu)


def _check_sizes(shape: Any, gpus: Any, num_kv_heads: Any) -> None:
    is_shape = isinstance(shape, (tuple, list)) and len(shape) == 4
    if not is_shape or not all(is_whole_number(x) and x >= 1 for x in shape):
        expected = "(batch, num_q_heads, tokens, head_dim), whole numbers from 1 on"
        raise ArgumentError("shape", shape, expected)
    if not is_whole_number(gpus) or gpus < 1:
        raise ArgumentError("gpus", gpus, "a whole number from 1 on")
    if num_kv_heads is None:
        return
    if not is_whole_number(num_kv_heads) or num_kv_heads < 1 or shape[1] % num_kv_heads:
        expected = f"a whole number that divides the {shape[1]} heads of Q"
        raise ArgumentError("num_kv_heads", num_kv_heads, expected)


def _link(bandwidth: Any) -> Link:
    link = nvlink() if bandwidth is None else bandwidth
    if isinstance(link, (int, float)):
        link = Link(link)
    if not isinstance(link, Link) or not link.bandwidth > 0:
        raise ArgumentError("bandwidth", bandwidth, "bytes a second, above 0, or a Link")
    return link


@naming_keywords
@lru_cache(1)
def nvlink() -> Link:
    """Return what NCCL has been seen to do over NVLink between H200.

    Of the record of several GPUs that comes along, if one does that has times of messages.
    """
    seen = [Link.seen(load(path)) for path in records_of_several()]
    return next((link for link in seen if link is not None), NVLINK)


def _record(path: str | PathLike[str] | None) -> Record:
    if path is not None:
        return load(Path(path))
    found = records()
    if not found:
        raise ArgumentError("record", path, "the file of a GPU check, as none comes along")
    return _loaded(found[0])


@lru_cache(1)
def _loaded(path: Path) -> Record:
    """Return the record that comes along, which nobody edits meanwhile."""
    return load(path)
