"""What a record has rows of: errors, times, ceilings, first calls and models' texts."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from ..common.typed_json import ADDED
from ..reference import arrays
from ..reference.masking import operations

__all__ = [
    "Accuracy",
    "Ceiling",
    "FirstCall",
    "LanguageModelRow",
    "Shape",
    "State",
    "Timing",
    "shape_of",
]

State = Literal["cold", "sustained"]


@dataclass(frozen=True, kw_only=True)
class Shape(arrays.Shape):
    """Sizes of one attention call, and its mask."""

    is_causal: bool

    @property
    def operations(self) -> int:
        """Multiplications and additions of Q Kᵀ and P V over the pairs that the mask leaves."""
        return operations(self, self.is_causal)


def shape_of(row: Shape) -> Shape:
    """Return the sizes of a row alone, which can be compared with those of another."""
    return Shape(**{field.name: getattr(row, field.name) for field in fields(Shape)})


@dataclass(frozen=True, kw_only=True)
class Accuracy(Shape):
    """Error of one scheme on one input against float64; a baseline's name stands as its scheme."""

    scheme: str
    family: str
    distribution: str
    metrics: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Timing(Shape):
    """Median times of one case, with inter-quartile ranges; null where a figure does not apply.

    Attributes
    ----------
    case : str
        What is timed: benchmarks/records/README.md lists the cases.
    implementation, scheme, family : str
        Whose call, what it computes, and by which kernels.
    kernel_ms, end_to_end_ms : float, optional
        Of a call on quantized operands, and from float16 inputs; GPU time in milliseconds.
    tops, gbps : float, optional
        Speed of the former.
    state : {"cold", "sustained"}
        Of the GPU: single calls, each behind a flush of the L2 cache; or calls in a row for so long
        that its clocks have settled.
    model : str, optional
        Whose shape it is, in rows of the case "model".
    feature : str, optional
        Which option of scores is timed, or "plain" of what is timed beside such: `tops` are of the
        pairs that are seen then. None in all other rows.
    ranks : int, optional
        Of rows about several of them, and of "merge" the states that are merged; their tops are
        those of all ranks together if these share a GPU, and else of each.
    placement, wire : str, optional
        Which tokens ranks have, and how K and V travel: `cuattn.distributed.ring_attention`.
    bytes_sent : int, optional
        By each rank, in a call.
    hidden : float, optional
        Which part of the time that sending takes by itself did not make the call longer.
    """

    case: str
    implementation: str
    scheme: str
    family: str
    kernel_ms: float | None = None
    kernel_iqr_ms: float | None = None
    end_to_end_ms: float | None = None
    end_to_end_iqr_ms: float | None = None
    tops: float | None = None
    gbps: float | None = None
    state: State = field(default="cold", metadata=ADDED)
    model: str | None = field(default=None, metadata=ADDED)
    feature: str | None = field(default=None, metadata=ADDED)
    ranks: int | None = field(default=None, metadata=ADDED)
    placement: str | None = field(default=None, metadata=ADDED)
    wire: str | None = field(default=None, metadata=ADDED)
    bytes_sent: int | None = field(default=None, metadata=ADDED)
    hidden: float | None = field(default=None, metadata=ADDED)

    def is_plain(self, case: str) -> bool:
        """Return whether it is a row of this case, and not one of an option of scores."""
        return self.case == case and self.feature is None


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The most that a small kernel, which does nothing else, got out of the GPU.

    Attributes
    ----------
    what : str
        "copy" and "read" of memory; "int8", "fp8" and "fp16" products, the last with float32 sums.
    instruction : str
        What the kernel is made of, such as "wgmma".
    rate : float
        In `unit`: multiplications and additions, or bytes read and written.
    iqr : float
        Inter-quartile range of the rate.
    """

    what: Literal["copy", "read", "int8", "fp8", "fp16"]
    instruction: str
    rate: float
    iqr: float

    @property
    def unit(self) -> str:
        """Return "GB/s" or "TOPS"."""
        return "GB/s" if self.what in ("copy", "read") else "TOPS"


@dataclass(frozen=True, kw_only=True)
class FirstCall:
    """Seconds of one kind of call from its beginning to its result, in a process of its own.

    Attributes
    ----------
    call : str
        A scheme, or a KV cache by its bits.
    head_dim : int
    kernels : int
        How many the call loads.
    cold_s, warm_s : float
        With nothing in the cache on disk, and with all kernels there.
    """

    call: str
    head_dim: int
    kernels: int
    cold_s: float
    warm_s: float


@dataclass(frozen=True, kw_only=True)
class LanguageModelRow:
    """What quantized attention in all layers makes of a language model's predictions of a text.

    Attributes
    ----------
    model, text : str
        The names of their files; a text's may have a digest behind it.
    tokens : int
        Of the text, from its first one on.
    scheme : str
        Of `cuattn.attention`; "exact" is float32, with nothing quantized.
    cache : str, optional
        Through which the text was decoded, such as "int8" and "int4"; None without one.
    perplexity : float, optional
    delta_nll : float, optional
        Mean negative log-likelihood of a token less that with exact attention, in nats.
    kl : float, optional
        Mean divergence of the next token's distribution from that with exact attention, in nats.
    same_top1 : float, optional
        Share of predictions whose most likely token is the same. None stands for what is not finite
        in these four.
    where : {"gpu", "host"}
        By kernels, or by the emulation.
    """

    model: str
    text: str
    tokens: int
    scheme: str
    cache: str | None
    perplexity: float | None
    delta_nll: float | None
    kl: float | None
    same_top1: float | None
    where: Literal["gpu", "host"]
