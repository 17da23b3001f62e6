"""What a kernel does to scores besides the causal mask; the mirror of Rules in spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .mods import ModSource

__all__ = ["PLAIN", "MaskKind", "Rules"]


class MaskKind(Enum):
    """How a mask is read: packed to bits, or as floats that are added to logits."""

    __hash__ = object.__hash__  # as in `Type`

    none = "none"
    bits = "bits"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


@dataclass(frozen=True)
class Rules:
    """Field of the specs of attention kernels; all is off by default.

    Attributes
    ----------
    windowed : bool
        Rows see no keys further away than sides that are known at run time only.
    softcap, alibi, sinks : bool
    attn_mask : MaskKind
    varlen : bool
        Lengths, and where sequences lie, are read from memory.
    score_mod, mask_mod : ModSource, optional
        The caller's own expressions, of which the kernel is compiled.
    score_slope : ModSource, optional
        By how much more `score_mod` adds for the next key, where that is all that keys change.
    mask_last : bool
        Columns of a mask of floats are of each sequence's last keys.
    """

    windowed: bool = False
    softcap: bool = False
    alibi: bool = False
    sinks: bool = False
    attn_mask: MaskKind = MaskKind.none
    varlen: bool = False
    score_mod: ModSource | None = None
    mask_mod: ModSource | None = None
    score_slope: ModSource | None = None
    mask_last: bool = False

    @property
    def biased(self) -> bool:
        """Whether a mask of floats is added."""
        return self.attn_mask not in (MaskKind.none, MaskKind.bits)

    @property
    def change_scores(self) -> bool:
        """Whether scores become exponents before their maxima are taken."""
        return self.softcap or self.alibi or self.biased or self.score_mod is not None

    @property
    def mapped(self) -> bool:
        """Whether a map says which blocks of keys are visited."""
        return self.attn_mask is not MaskKind.none

    @property
    def hide_anywhere(self) -> bool:
        """Whether any key may be hidden, wherever it is."""
        return self.score_mod is not None or self.mask_mod is not None


PLAIN = Rules()
