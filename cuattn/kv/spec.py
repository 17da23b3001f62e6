"""What the kernel that decodes fixes at compile time; mirrors kernels_cu/kv/kv_spec.cuh.

`decode_spec` chooses the kernel that decodes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from typing import Any, ClassVar

from ..arrays.device import Target
from ..common.sizes import ceil_div, round_up
from ..kv_format import UNIT_TOKENS, KVFormat
from ..specs.attention import Type
from ..specs.kernel_spec import KernelSpec
from ..specs.mods import ModSource, prelude
from .scores import PLAIN, Extra, Features

__all__ = ["KV_BLOCK", "DecodeSpec", "OfFormat", "decode_spec"]

# Tokens that the decoding kernel takes at a time, and that P is quantized against the maximum of.
KV_BLOCK = 128

# Of the warps of a CTA that decodes, those that multiply; one more copies.
_COMPUTING_WARPS = 4

# Shared memory that the driver takes of every CTA.
_RESERVED_SMEM = 1024

# Rows of a CTA. More of them read the cache less often where there are as many queries, but take
# registers that O, of many channels, or P of groups of channels do not leave.
_ROWS = (8, 16, 32)
_MANY_CHANNELS = 256

# Blocks in the shared memory of a multiprocessor, in bytes, that keep memory busy. More is no
# faster: what else a CTA reads and writes would wait behind them (docs/lab-notebook.md, 11).
_UNDER_WAY = 136_000
_STAGES = range(2, 7)

# Channels of which every warp has whole pairs of columns of V.
_PAIRED_CHANNELS = 64

# CTAs of a multiprocessor, one computing while another waits. Small blocks, and few rows, which
# leave registers, take one more.
_CTAS = 2
_SMALL_BLOCK = 14_000


@dataclass(frozen=True)
class OfFormat(KernelSpec):
    """The fields of `KVFormat`, and the elements of the arrays.

    `head_dim` are the channels of units, `channels` those of the caller's arrays.
    """

    input: Type
    head_dim: int
    channels: int
    k_bits: int
    v_bits: int
    group: int
    v_zero: bool
    rotate: bool
    nested: bool

    @property
    def kv_format(self) -> KVFormat:
        """The format that the kernel was made for."""
        of_units = {x.name: getattr(self, x.name) for x in fields(KVFormat)}
        return KVFormat(**of_units | {"head_dim": self.channels})

    @staticmethod
    def fields_of(kv_format: KVFormat) -> dict[str, Any]:
        """Return the fields of a format."""
        return asdict(kv_format) | {"head_dim": kv_format.padded, "channels": kv_format.head_dim}


@dataclass(frozen=True)
class DecodeSpec(OfFormat):
    """Template argument of `decode`: few queries against the cache.

    Parameters
    ----------
    rows : int
        Queries times query heads of a CTA: 8, or a multiple of 16.
    stages : int
        Blocks of tokens in shared memory.
    min_ctas : int
        CTAs of a multiprocessor.
    window, softcap, sinks, alibi_slopes, attn_mask, batch_invariant, rope, score_mod, mask_mod
        As of `Features`.
    """

    source: ClassVar[str] = "decode.cu"
    entry: ClassVar[str] = "decode"
    function: ClassVar[str] = "decode_attention"
    params: ClassVar[str] = "DecodeParams"
    params_file: ClassVar[str] = "kv/kv_params.cuh"
    num_threads: ClassVar[int] = 32 * (_COMPUTING_WARPS + 1)

    rows: int
    stages: int
    min_ctas: int
    window: bool = False
    softcap: bool = False
    sinks: Extra = Extra.none
    alibi_slopes: Extra = Extra.none
    attn_mask: Extra = Extra.none
    batch_invariant: bool = False
    rope: bool = False
    score_mod: ModSource | None = None
    mask_mod: ModSource | None = None

    @classmethod
    def of(
        cls,
        kv_format: KVFormat,
        element: Type,
        features: Features,
        *,
        rows: int,
        stages: int,
        min_ctas: int,
    ) -> DecodeSpec:
        """Return the spec of a format, for queries of a type."""
        given: dict[str, Any] = cls.fields_of(kv_format) | features._asdict()
        return cls(input=element, **given, rows=rows, stages=stages, min_ctas=min_ctas)

    @property
    def prelude(self) -> str:
        """The caller's own expressions."""
        return prelude(self.score_mod, self.mask_mod)

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `DecodeStorage` in kernels_cu/kv/decode_shape.cuh."""
        units = self.stages * KV_BLOCK // UNIT_TOKENS * self.kv_format.unit_bytes
        tiles = ceil_div(self.rows, 16)
        # Of each row its scale and what smoothing has taken from its lse; its slope and its own
        # token; where its mask is; and, for expressions, which query of which head it is.
        extras = [x is not Extra.none for x in (self.alibi_slopes, self.attn_mask)]
        extras.append(self.score_mod is not None or self.mask_mod is not None)
        # With nested codes also sums of groups of its codes.
        sums = 4 * self.kv_format.k_groups if self.nested else 0
        of_row = 8 * (1 + sum(extras)) + sums
        queries = tiles * 16 * self.head_dim + of_row * self.rows
        groups = self.kv_format.v_groups
        probabilities = groups * tiles * 16 * KV_BLOCK
        # Of each row and warp: maxima of groups, and a sum.
        numbers = 4 * self.rows * _COMPUTING_WARPS * (groups + 1)
        if groups == 1:
            # Of each token what its scale and zero point of V are to the softmax.
            numbers += 4 * KV_BLOCK * (2 + self.kv_format.has_v_zero)
        barriers = 16 * self.stages + 8
        return round_up(units + queries + probabilities + numbers + barriers, 128)


@cache
def decode_spec(
    kv_format: KVFormat, element: Type, rows: int, target: Target, features: Features = PLAIN
) -> DecodeSpec:
    """Return the kernel for queries of a type.

    Parameters
    ----------
    rows : int
        Queries of a sequence, times the query heads that share a head of K and V.
    """
    made = partial(DecodeSpec.of, kv_format, element, features)
    large = (kv_format.padded == _MANY_CHANNELS) + (kv_format.v_groups > 1)
    sizes = _ROWS[: len(_ROWS) - large]
    of_cta = next((n for n in sizes if rows <= n), sizes[-1])
    block = KV_BLOCK // UNIT_TOKENS * kv_format.unit_bytes
    # Of nested codes of 96 channels, which are pairs of no whole number of columns, two leave few;
    # with three ptxas spills in the loop of all nested codes for sm_120.
    leaves_few = kv_format.padded % _PAIRED_CHANNELS or target.arch.startswith("12")
    spares = block <= _SMALL_BLOCK and not (kv_format.nested and leaves_few)
    most_ctas = _CTAS + 1 if of_cta == _ROWS[0] and spares else _CTAS
    for ctas in range(most_ctas, 0, -1):
        room = min(target.max_smem_per_sm // ctas - _RESERVED_SMEM, target.max_smem_per_cta)
        wanted = min(max(_UNDER_WAY // ctas // block, _STAGES[0]), _STAGES[-1])
        for stages in range(wanted, _STAGES[0] - 1, -1):
            spec = made(rows=of_cta, stages=stages, min_ctas=ctas)
            if spec.smem_bytes <= room:
                return spec
    # Of nested codes both halves are there at the same time.
    return made(rows=of_cta, stages=2 if kv_format.nested else 1, min_ctas=1)
