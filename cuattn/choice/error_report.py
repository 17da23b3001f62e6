"""The result of measuring one scheme on one input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..common.public import class_naming_keywords
from ..reference.arrays import Shape
from ..reference.by_row import RowErrors
from ..scheme import Scheme

__all__ = ["Backend", "ErrorReport"]

Backend = Literal["gpu", "emulation"]


@class_naming_keywords
@dataclass(frozen=True)
class ErrorReport:
    """Distance of one scheme's output from attention in float64; `str` shows it as a table.

    Attributes
    ----------
    scheme : Scheme
    shape : Shape
        Sizes: batch, num_q_heads, num_kv_heads, seqlen_q, seqlen_kv, head_dim.
    is_causal : bool
    backend : {"gpu", "emulation"}
        Where the output came from: this computer's GPU, or NumPy emulating it.
    metrics : dict of str to float
        As from `cuattn.reference.metrics.metrics`.
    by_source : dict of str to dict of str to float, or None
        The same metrics for "q", "k", "p" and "v": with only that step quantized, as emulated.
    seconds : float or None
        Median time of one call on the GPU, quantization of Q, K and V included.
    tops : float or None
        10¹² operations a second in that time: 2 of the head_dim of Q and 2 of that of V for each
        pair of a query and a key that it sees by its position. None with a mask as well.
    by_row : RowErrors or None
        The error of each row and of each head.
    options : tuple of str
        Names of the options of scores that the call had besides.
    """

    scheme: Scheme
    shape: Shape
    is_causal: bool
    backend: Backend
    metrics: dict[str, float]
    by_source: dict[str, dict[str, float]] | None = None
    seconds: float | None = None
    tops: float | None = None
    by_row: RowErrors | None = field(default=None, compare=False, repr=False)
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        s = self.shape
        where = "on the GPU" if self.backend == "gpu" else "emulated in NumPy"
        columns = {"error": self.metrics, **(self.by_source or {})}
        lines = [
            f"{self.scheme.name} {where}: batch {s.batch}, heads {s.num_q_heads} over "
            f"{s.num_kv_heads}, tokens {s.seqlen_q} over {s.seqlen_kv}, head_dim {s.head_dim}"
            + (", causal" if self.is_causal else "")
            + "".join(f", {name}" for name in self.options),
            f"{'':13}" + "".join(f"{title:>12}" for title in columns),
        ]
        for name in self.metrics:
            row = "".join(f"{column[name]:12.5g}" for column in columns.values())
            lines.append(f"{name:13}{row}")
        if self.seconds is not None:
            rate = "" if self.tops is None else f", {self.tops:.1f} TOPS"
            lines.append(f"{self.seconds * 1e3:.3f} ms{rate}")
        return "\n".join(lines)
