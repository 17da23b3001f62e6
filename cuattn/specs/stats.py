"""What the kernels of statistics fix at compile time; mirrors quant/quantize_spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..common.sizes import ceil_div
from ..reference.smoothing import GROUPS
from ..scheme import Scheme
from .attention import Type
from .kernel_spec import KernelSpec

__all__ = ["FinishSpec", "StatsSpec"]

_THREADS = 256


@dataclass(frozen=True)
class StatsSpec(KernelSpec):
    """Template argument of `stats`: means of K and V, and ranges, over chunks of tokens.

    Parameters
    ----------
    input : Type
        Elements of Q, K and V.
    head_dim : int
        Padded, as above.
    aligned : bool
        As above.
    k_sample, v_sample : bool
        Whether the mean is that of at most 512 tokens, which are one chunk.
    qk_range : bool
        Whether the smallest and largest elements of Q's and K's channels are wanted; only then is Q
        looked at.
    v_range : bool
        The same of V.
    varlen : bool
        Whether lengths are read from memory.
    """

    source: ClassVar[str] = "stats.cu"
    entry: ClassVar[str] = "stats"
    function: ClassVar[str] = "stats"
    params: ClassVar[str] = "StatsParams"
    params_file: ClassVar[str] = "quant/quantize_params.cuh"
    num_threads: ClassVar[int] = _THREADS
    min_ctas: ClassVar[int] = 3

    input: Type
    head_dim: int
    aligned: bool
    k_sample: bool
    v_sample: bool
    qk_range: bool
    v_range: bool
    varlen: bool = False

    @classmethod
    def of(
        cls, scheme: Scheme, element: Type, head_dim: int, aligned: bool, varlen: bool = False
    ) -> StatsSpec:
        """Return the spec that a scheme needs for inputs of a type and padded head dimension."""
        by_channel = scheme.pv != "fp16" and scheme.v_scope in ("channel", "tensor")
        return cls(
            input=element,
            head_dim=head_dim,
            aligned=aligned,
            k_sample=scheme.smooth_k == "sample",
            v_sample=scheme.smooth_v == "sample",
            qk_range=scheme.k_scope == "tensor",
            v_range=by_channel and not scheme.rotates("v"),
            varlen=varlen,
        )

    @classmethod
    def of_rotated_values(cls, head_dim: int, varlen: bool = False) -> StatsSpec:
        """Return the spec for the range of V alone, which another kernel has rotated."""
        kind = Type.fp32, head_dim, True, False, False
        return cls(*kind, qk_range=False, v_range=True, varlen=varlen)

    @property
    def chunk(self) -> int:
        """Tokens of one CTA at most: 128 KiB, which take much longer than its start and end.

        Not chosen by the GPU, because the order of the additions depends on it.
        """
        return 128 * 1024 // (self.head_dim * self.input.nbytes) // 64 * 64

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `MeanGroups` or `GroupMoments`."""
        return _smem_bytes(self.head_dim, self.input, self.qk_range or self.v_range)

    def most(self, operand: Literal["q", "k", "v"]) -> int:
        """Return the tokens that one CTA looks at if a head has no more; 0 of a sample, any."""
        sampled = {"q": False, "k": self.k_sample, "v": self.v_sample}[operand]
        return 0 if sampled else self.chunk

    def chunks(self, operand: Literal["q", "k", "v"], seqlen: int) -> int:
        """Return the CTAs of one head of an operand: one, or as many for each group of tokens."""
        if not self.most(operand) or seqlen <= self.chunk:
            return min(seqlen, 1)
        return GROUPS * ceil_div(ceil_div(seqlen, GROUPS), self.chunk)

    def tokens(self, operand: Literal["q", "k", "v"], seqlen: int) -> int:
        """Return the tokens of each of these CTAs at most."""
        chunks = self.chunks(operand, seqlen)
        return ceil_div(ceil_div(seqlen, GROUPS), chunks // GROUPS) if chunks > 1 else seqlen

    def ranges(self, operand: Literal["q", "k", "v"]) -> bool:
        """Whether the smallest and largest elements of an operand are wanted."""
        return self.v_range if operand == "v" else self.qk_range

    def kinds(self, operand: Literal["q", "k", "v"]) -> int:
        """Return how many numbers of a channel `partial` holds for each chunk."""
        return 3 if self.ranges(operand) else 1

    @property
    def finish(self) -> FinishSpec:
        """The kernel that joins the chunks, where there is more than one."""
        return FinishSpec(self.head_dim, self.qk_range, self.v_range, self.varlen)


@dataclass(frozen=True)
class FinishSpec(KernelSpec):
    """Template argument of `stats_finish`; see `StatsSpec`."""

    source: ClassVar[str] = "stats.cu"
    entry: ClassVar[str] = "stats_finish"
    function: ClassVar[str] = "stats_finish"
    params: ClassVar[str] = "StatsParams"
    params_file: ClassVar[str] = "quant/quantize_params.cuh"
    num_threads: ClassVar[int] = _THREADS
    min_ctas: ClassVar[int] = 2

    head_dim: int
    qk_range: bool
    v_range: bool
    varlen: bool = False

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `MeanGroups` in quant/group_means.cuh."""
        return _smem_bytes(self.head_dim, Type.fp32, self.qk_range or self.v_range)


def _smem_bytes(head_dim: int, element: Type, ranges: bool) -> int:
    """Return what joins the sums of groups and, with ranges, what each row of threads has seen."""
    rows = _THREADS * 16 // (head_dim * element.nbytes)
    of_groups = GROUPS * max(rows // GROUPS, 1)
    return 4 * head_dim * (max(rows, of_groups) + (2 * rows if ranges else 0))
