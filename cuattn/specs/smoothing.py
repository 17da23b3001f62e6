"""What the kernels that smooth Q fix at compile time; mirrors quant/smoothing_params.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.sizes import ceil_div, round_up
from ..reference.smoothing import Q_BLOCK
from .attention import Type
from .kernel_spec import KernelSpec, joined_bytes

__all__ = ["KEY_PAD", "BlockMeansSpec", "DeltaSpec"]

# Keys that rows of products are padded to.
KEY_PAD = 128

# Rows of means that a CTA multiplies at a time.
_ROWS = 16


@dataclass(frozen=True)
class BlockMeansSpec(KernelSpec):
    """Template argument of `block_means`: the mean of each 128 rows of Q, in float32.

    Parameters
    ----------
    input : Type
        Elements of Q.
    head_dim : int
        Padded: one of those of `cuattn.reference.layout`.
    aligned : bool
        Whether base and strides of Q are multiples of 16 bytes.
    varlen : bool
        Whether lengths are read from memory.
    """

    source: ClassVar[str] = "block_means.cu"
    entry: ClassVar[str] = "block_means"
    function: ClassVar[str] = "block_means"
    params: ClassVar[str] = "BlockMeansParams"
    params_file: ClassVar[str] = "quant/smoothing_params.cuh"
    num_threads: ClassVar[int] = 256
    min_ctas: ClassVar[int] = 4

    input: Type
    head_dim: int
    aligned: bool
    varlen: bool = False

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `GroupMoments` in quant/moments.cuh."""
        return joined_bytes(self.num_threads, self.head_dim, self.input.nbytes)

    @staticmethod
    def blocks(seqlen: int) -> int:
        """Return the blocks, and CTAs, of one head."""
        return ceil_div(seqlen, Q_BLOCK)


@dataclass(frozen=True)
class DeltaSpec(KernelSpec):
    """Template argument of `deltas`: the products of the means of Q's blocks with the keys.

    SageAttention2 (arXiv 2411.10958, section 3.1) adds them to the logits again.

    Parameters
    ----------
    input : Type
        Elements of K.
    head_dim : int
        Padded, as above.
    aligned : bool
        As above, of K.
    varlen : bool
        As above.
    """

    derived: ClassVar[tuple[str, ...]] = ("keys", "num_threads", "min_ctas", "smem_bytes")
    source: ClassVar[str] = "deltas.cu"
    entry: ClassVar[str] = "deltas"
    function: ClassVar[str] = "deltas"
    params: ClassVar[str] = "DeltaParams"
    params_file: ClassVar[str] = "quant/smoothing_params.cuh"
    num_threads: ClassVar[int] = 256

    input: Type
    head_dim: int
    aligned: bool
    varlen: bool = False

    @property
    def min_ctas(self) -> int:
        """CTAs of a multiprocessor: as many as have registers for the terms of their keys."""
        return 2 if self.input is Type.fp16 and self.head_dim <= 128 else 1

    @property
    def keys(self) -> int:
        """Keys of one CTA: 16 of each warp, or 8 where registers hold no more of their terms."""
        return self.num_threads // 32 * (16 if self.head_dim <= 128 else 8)

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: two `MeanTerms` in deltas.cu."""
        terms = 2 if self.input is Type.fp16 else 3
        return 2 * _ROWS * self.head_dim * terms * Type.bf16.nbytes

    def tiles(self, seqlen: int) -> int:
        """Return the CTAs of one head of K, whose padding they write too."""
        return round_up(seqlen, KEY_PAD) // self.keys
