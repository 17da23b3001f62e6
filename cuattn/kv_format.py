"""What the numbers of a quantized KV cache mean, and the bytes that they take."""

from __future__ import annotations

from dataclasses import dataclass

from .common.sizes import is_whole_number, round_up
from .errors import ArgumentError

__all__ = ["KV_BITS", "KV_HEAD_DIMS", "UNIT_TOKENS", "KVFormat", "padded_head_dim"]

# Head dimensions that the kernels of the cache are built for; others are padded to the next one.
KV_HEAD_DIMS = (64, 96, 128, 256)

# Those of caches are multiples of so many channels, up to the largest of the kernels'.
_STEP = 16

# Bits of a code, and channels that may share a scale where there are 4; 0 are all.
KV_BITS = (8, 4)
_GROUPS = (0, 32, 64)

# Tokens of a unit, the smallest piece of memory of a cache: those of one head that lie together.
UNIT_TOKENS = 16

# Units begin at whole lines of memory: copies to shared memory took up to a quarter longer where a
# line's bytes came to lie in two (docs/lab-notebook.md, 11).
_LINE = 128

_SCALE_BYTES = 4 * UNIT_TOKENS


def padded_head_dim(head_dim: int) -> int:
    """Return the channels that units have of a head: the first of `KV_HEAD_DIMS` that suffices.

    Raises
    ------
    ArgumentError
        For a head_dim that no cache can have.
    """
    most = KV_HEAD_DIMS[-1]
    if not is_whole_number(head_dim) or head_dim % _STEP or not _STEP <= head_dim <= most:
        raise ArgumentError("head_dim", head_dim, f"a multiple of {_STEP} from {_STEP} to {most}")
    return next(size for size in KV_HEAD_DIMS if head_dim <= size)


@dataclass(frozen=True)
class KVFormat:
    """How tokens of K and V are quantized.

    K is ``scale · code + offset``, V is ``scale · code + zero``. There is a scale for each token
    and head or, of operands with 4 bits, for each group of its channels. Nested codes are the upper
    halves of codes of 8 bits, with a scale and a zero point of their own; the lower halves, and
    what the whole codes are multiplied by, are kept of some tokens only.

    Codes have `padded` channels. Those of K that pad it are of zeros, behind the offset and before
    the rotation, which so spreads outliers over more channels, and Q's are zeros, too: products
    stay what they are. V's repeat its last channels, so that zeros are in no range of a group, and
    nobody reads what becomes of them.

    Parameters
    ----------
    head_dim : int
        A multiple of 16 from 16 to 256.
    k_bits, v_bits : int
        8 or 4.
    group : int
        Channels that share a scale where codes have 4 bits: 32, 64, or 0 for all of them. Of nested
        codes those of K; V's share one.
    v_zero : bool
        Whether V of 4 bits has zero points: codes span the range of the token's elements instead of
        twice the largest magnitude.
    rotate : bool
        Whether keys, less their offset, are rotated along head_dim, as queries are then.
    nested : bool
        Whether K and V, both of 4 bits, are the upper halves of codes of 8 bits.

    Raises
    ------
    ArgumentError
        For anything else.
    """

    head_dim: int
    k_bits: int = 8
    v_bits: int = 8
    group: int = 0
    v_zero: bool = False
    rotate: bool = False
    nested: bool = False

    def __post_init__(self) -> None:
        padded = padded_head_dim(self.head_dim)
        allowed = {"k_bits": KV_BITS, "v_bits": KV_BITS, "group": _GROUPS}
        for name, choices in allowed.items():
            value = getattr(self, name)
            if not is_whole_number(value) or value not in choices:
                raise ArgumentError(name, value, f"one of {choices}")
        if self.group and padded % self.group:
            of_units = "" if padded == self.head_dim else f", padded to {padded}"
            expected = f"a divisor of the head_dim {self.head_dim}{of_units}"
            raise ArgumentError("group", self.group, expected)
        if self.group and 4 not in (self.k_bits, self.v_bits):
            raise ArgumentError("group", self.group, "0, unless K or V has 4 bits")
        if not isinstance(self.v_zero, bool) or (self.v_zero and self.v_bits != 4):
            raise ArgumentError("v_zero", self.v_zero, "False, unless V has 4 bits")
        if not isinstance(self.rotate, bool):
            raise ArgumentError("rotate", self.rotate, "True or False")
        if not isinstance(self.nested, bool) or (
            self.nested and (self.k_bits, self.v_bits, self.v_zero) != (4, 4, False)
        ):
            expected = "False, unless K and V have 4 bits, without v_zero"
            raise ArgumentError("nested", self.nested, expected)

    @property
    def padded(self) -> int:
        """Channels of a head's codes."""
        return padded_head_dim(self.head_dim)

    @property
    def k_groups(self) -> int:
        """Scales of a token of K."""
        return self.padded // self.group if self.group and self.k_bits == 4 else 1

    @property
    def v_groups(self) -> int:
        """Scales of a token of V."""
        if self.nested:
            return 1
        return self.padded // self.group if self.group and self.v_bits == 4 else 1

    @property
    def has_v_zero(self) -> bool:
        """Whether V has zero points, of their own or beside the scales of nested codes."""
        return self.v_zero or self.nested

    @property
    def v_at(self) -> int:
        """Where V's codes begin in a unit, in bytes; K's begin it."""
        return UNIT_TOKENS * self.padded * self.k_bits // 8

    @property
    def k_scale_at(self) -> int:
        """Where K's scales begin; of nested codes pairs of a scale and a zero point."""
        return self.v_at + UNIT_TOKENS * self.padded * self.v_bits // 8

    @property
    def v_scale_at(self) -> int:
        """Where V's scales begin."""
        return self.k_scale_at + self.k_groups * _SCALE_BYTES

    @property
    def v_zero_at(self) -> int:
        """Where V's zero points begin, if there are any."""
        return self.v_scale_at + self.v_groups * _SCALE_BYTES

    @property
    def used_bytes(self) -> int:
        """Bytes of a unit that hold something: `Unit` in kernels_cu/kv/unit.cuh."""
        return self.v_zero_at + (self.v_groups * _SCALE_BYTES if self.v_zero else 0)

    @property
    def unit_bytes(self) -> int:
        """Bytes from one unit to the next."""
        return round_up(self.used_bytes, _LINE)
