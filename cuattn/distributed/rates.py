"""What attention over several GPUs takes, by rates that one has been seen to have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..common.public import class_naming_keywords
from ..errors import ArgumentError
from ..records.record import Record
from .parcel import Carrier
from .parts import pieces_of, tokens_in
from .placement import Run, runs_of

__all__ = ["NVLINK", "Engine", "Link", "Prediction", "RateModel", "shard_bytes"]

Engine = Literal["ring", "ulysses", "all-gather"]


@class_naming_keywords
class Link(NamedTuple):
    """How fast ranks send: seconds of a message are ``latency + bytes / bandwidth``.

    Attributes
    ----------
    bandwidth : float
        Bytes a second, each way.
    latency : float
        Seconds.
    """

    bandwidth: float
    latency: float = 25e-6

    @classmethod
    def seen(cls, record: Record) -> Link | None:
        """Return the link that a record of several GPUs has times of: of NCCL's messages, if any.

        Those of the shortest and of the longest message decide.
        """
        times = {
            row.bytes_sent: 1e-3 * row.end_to_end_ms
            for row in record.timings
            if (row.case, row.implementation) == ("link", "NCCLGroup")
            and row.bytes_sent is not None
            and row.end_to_end_ms is not None
        }
        if len(times) < 2:
            return None
        few, many = min(times), max(times)
        bandwidth = (many - few) / (times[many] - times[few])
        return cls(bandwidth, max(0.0, times[few] - few / bandwidth))


# Of NCCL's shifts between two H200, through CuPy: 302 GB/s of 256 MB, 191 of 16, 33 of 1.
NVLINK = Link(310e9, 25e-6)


@dataclass(frozen=True)
class Prediction:
    """What one way is expected to take, of a layer's attention.

    Attributes
    ----------
    engine : {"ring", "ulysses", "all-gather"}
    seconds : float
        From arrays to the result, the same on all ranks.
    efficiency : float
        Of ranks times that, what one GPU would take for all of it.
    exposed : float
        Seconds in which a rank waits for bytes and computes nothing.
    bytes_sent : int
        By one rank.
    step_seconds : float
        Of a ring's step, the longer one of computing and sending; else that of all.
    """

    engine: Engine
    seconds: float
    efficiency: float
    exposed: float
    bytes_sent: int
    step_seconds: float


@dataclass(frozen=True)
class RateModel:
    """Rates of one GPU, and what a layer's attention takes with them.

    Attributes
    ----------
    lengths, rates : sequence of float
        Operations a second of calls on so many tokens, without a mask and of the scheme.
    copy : float
        Bytes a second that are read and written.
    """

    carrier: Carrier
    heads: int
    is_causal: bool
    lengths: Sequence[float]
    rates: Sequence[float]
    copy: float
    gpu: str

    @classmethod
    def of(
        cls, record: Record, carrier: Carrier, heads: int, head_dim: int, is_causal: bool
    ) -> RateModel:
        """Take the rates from a record.

        Raises
        ------
        ArgumentError
            If it has none.
        """
        name = carrier.scheme.name if carrier.wire != "int4" else "int8-token"
        rows = {
            float(row.seqlen_kv): row.tops * 1e12
            for row in record.timings
            if row.is_plain("prefill")
            and (row.implementation, row.scheme, row.head_dim) == ("cuattn", name, head_dim)
            and not row.is_causal
            and row.seqlen_q == row.seqlen_kv
            and row.tops is not None
        }
        copies = [row.rate * 1e9 for row in record.ceilings if row.what == "copy"]
        if not rows or not copies:
            known = sorted(
                {(x.scheme, x.head_dim) for x in record.timings if x.is_plain("prefill")}
            )
            raise ArgumentError(
                "scheme", (name, head_dim), f"one that the record has times of: {known}"
            )
        lengths = sorted(rows)
        rates = [rows[n] for n in lengths]
        return cls(carrier, heads, is_causal, lengths, rates, min(copies), record.gpu)

    def of_one(self, tokens: int) -> float:
        """Return the seconds of one GPU for all."""
        quantized = self._quantize_q(tokens) + self._quantize_kv(tokens)
        return self._products(tokens, tokens, 0.5 if self.is_causal else 1.0) + quantized

    def ring(self, tokens: int, gpus: int, link: Link, alone: float) -> Prediction:
        """Predict a ring."""
        own = tokens / gpus
        computing = self._step(own)
        sending = link.latency + self._bytes(tokens, gpus) / link.bandwidth
        step = max(computing, sending) if gpus > 1 else computing
        around = self._around(own, gpus)
        seconds = around + (gpus - 1) * step + computing
        exposed = (gpus - 1) * (step - computing)
        sent = (gpus - 1) * self._bytes(tokens, gpus)
        return Prediction("ring", seconds, alone / gpus / seconds, exposed, sent, step)

    def gathered(self, tokens: int, gpus: int, link: Link, alone: float) -> Prediction:
        """Predict that all keys are sent to all, before anything else."""
        own = tokens / gpus
        sent = (gpus - 1) * self._bytes(tokens, gpus)
        exposed = (gpus > 1) * link.latency + sent / link.bandwidth
        seconds = self._around(own, gpus) + gpus * self._step(own) + exposed
        efficiency = alone / gpus / seconds
        return Prediction("all-gather", seconds, efficiency, exposed, sent, seconds)

    def ulysses(self, tokens: int, gpus: int, link: Link, alone: float) -> Prediction:
        """Predict an exchange of tokens for heads."""
        carrier = self.carrier
        rows = 2 * carrier.batch * self.heads * carrier.head_dim * tokens / gpus
        share = (gpus - 1) / gpus
        sent = share * (2 * rows + self._bytes(tokens, gpus))
        exposed = 2 * (gpus > 1) * link.latency + sent / link.bandwidth
        products = self._products(tokens, tokens, 0.5 if self.is_causal else 1.0) / gpus
        # Rows of Q are quantized for each rank's keys, and what they see of each is merged.
        parts = (gpus + 1) / 2 if self.is_causal else gpus
        of_rows = parts * self._quantize_q(tokens) / gpus
        merging = self._merge(tokens / gpus, parts) if gpus > 1 else 0.0
        around = self._quantize_kv(tokens / gpus) + merging
        seconds = products + of_rows + around + exposed
        efficiency = alone / gpus / seconds
        return Prediction("ulysses", seconds, efficiency, exposed, round(sent), seconds)

    def _step(self, own: float) -> float:
        """Return the seconds of a step of a ring: with zig-zag each has half of the pairs."""
        rows = own / 2 if self.is_causal else own
        return self._products(rows, own, 1.0) + self._quantize_q(
            0.75 * own if self.is_causal else own
        )

    def _around(self, own: float, gpus: int) -> float:
        """Return the seconds of what is done before and after the steps."""
        merging = self._merge(own, gpus * (0.75 if self.is_causal else 1)) if gpus > 1 else 0.0
        return self._quantize_kv(own) + merging

    def _products(self, rows: float, keys: float, seen: float) -> float:
        carrier = self.carrier
        operations = 4.0 * carrier.batch * self.heads * carrier.head_dim * rows * keys * seen
        by_length = np.interp(math.log2(math.sqrt(rows * keys)), np.log2(self.lengths), self.rates)
        return operations / float(by_length)

    def _quantize_q(self, tokens: float) -> float:
        """Return seconds to read float16 and to write codes of 8 bits."""
        if self.carrier.scheme.qk == "fp16":
            return 0.0
        return 3 * self.carrier.batch * self.heads * self.carrier.head_dim * tokens / self.copy

    def _quantize_kv(self, tokens: float) -> float:
        """Return the same for K and V, which are read twice: for their statistics first."""
        carrier = self.carrier
        if carrier.scheme.qk == "fp16":
            return 0.0
        return 2 * 5 * carrier.batch * carrier.heads * carrier.head_dim * tokens / self.copy

    def _merge(self, tokens: float, parts: float) -> float:
        row = 2 * self.carrier.batch * self.heads * self.carrier.head_dim
        return (parts + 1) * row * tokens / self.copy

    def _bytes(self, tokens: int, gpus: int) -> int:
        """Return those of the longest parcel."""
        runs = runs_of(tokens, gpus, 0, "zigzag" if self.is_causal else "contiguous")
        return shard_bytes(self.carrier, runs, self.is_causal)


def shard_bytes(carrier: Carrier, runs: Sequence[Run], is_causal: bool) -> int:
    """Return the bytes of the keys and values of a rank that has these tokens, as they are sent."""
    pieces = pieces_of(runs, -1, 0 if is_causal else -1)
    return sum(carrier.nbytes(tokens_in(piece)) for piece in pieces)
