"""What a latent cache holds of a token, and the bytes that it takes."""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar

from ..common.sizes import round_up
from ..errors import ArgumentError
from ..kv.geometry import KVGeometry
from ..kv_format import UNIT_TOKENS, KVFormat

__all__ = [
    "LATENT",
    "LATENT_UNIT_TOKENS",
    "QUERY",
    "ROPE",
    "ROPE_DTYPES",
    "LatentFormat",
    "LatentGeometry",
]

# Channels of the latent vector and of the rotary part of K, and of Q, which has both.
LATENT = 512
ROPE = 64
QUERY = LATENT + ROPE

# Types that the rotary part is kept in.
ROPE_DTYPES = ("bfloat16", "float16")

# Tokens of a unit, the smallest piece of memory of this cache.
LATENT_UNIT_TOKENS = 64


@dataclass(frozen=True)
class LatentFormat(KVFormat):
    """How tokens are quantized: codes of 8 bits with a scale, and rotary channels of 16 bits.

    To those who keep memory and pages it is a `KVFormat` of one head, whose K and V are the same
    codes.

    Parameters
    ----------
    rope_dtype : {"bfloat16", "float16"}

    Raises
    ------
    ArgumentError
        For another type.
    """

    head_dim: int = QUERY
    rope_dtype: str = "bfloat16"

    # Where its parts begin in a unit, in bytes: kernels_cu/kv/latent_unit.cuh.
    rope_at: ClassVar[int] = LATENT_UNIT_TOKENS * LATENT
    scale_at: ClassVar[int] = rope_at + LATENT_UNIT_TOKENS * ROPE * 2
    whole_bytes: ClassVar[int] = scale_at + LATENT_UNIT_TOKENS * 4

    def __post_init__(self) -> None:
        if not isinstance(self.rope_dtype, str) or self.rope_dtype not in ROPE_DTYPES:
            raise ArgumentError("rope_dtype", self.rope_dtype, f"one of {ROPE_DTYPES}")
        _check_defaults(self, [x for x in fields(self) if x.name != "rope_dtype"])

    @property
    def padded(self) -> int:
        """Channels of a token."""
        return self.head_dim

    @property
    def used_bytes(self) -> int:
        """Bytes of 16 tokens."""
        return self.whole_bytes * UNIT_TOKENS // LATENT_UNIT_TOKENS

    @property
    def unit_bytes(self) -> int:
        """As many: nothing is between 16 tokens and the next of a whole unit."""
        return self.used_bytes


@dataclass(frozen=True)
class LatentGeometry(KVGeometry):
    """A `KVGeometry` of one head whose sequences and pages have whole units of 64 tokens.

    Raises
    ------
    ArgumentError
        For sizes that no kernel takes.
    """

    kv_format: LatentFormat

    page_sizes: ClassVar[tuple[int, ...]] = (64, 128, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_kv_heads != 1:
            raise ArgumentError("num_kv_heads", self.num_kv_heads, "1 in a latent cache")
        _check_defaults(self, [x for x in fields(self) if x.default is not MISSING])

    @property
    def page_units(self) -> int:
        """Units of 16 tokens in a page."""
        return round_up(super().page_units, LATENT_UNIT_TOKENS // UNIT_TOKENS)

    def used_units(self, length: int) -> int:
        """Return how many units of 16 tokens have the bytes of so many tokens."""
        return round_up(super().used_units(length), LATENT_UNIT_TOKENS // UNIT_TOKENS)


def _check_defaults(x: object, of: list[Field[Any]]) -> None:
    """Check that what other caches may have is as latent caches have it."""
    for field in of:
        value = getattr(x, field.name)
        if value != field.default:
            raise ArgumentError(field.name, value, f"{field.default} in a latent cache")
