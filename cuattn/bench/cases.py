"""What is measured: the shapes, the schemes, and the work that each shape is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..presets import PRESETS
from ..records.record import Shape

SCHEMES = tuple(PRESETS)

# Those that are timed with everything; the others, which are there to be compared with, with
# `EVERY_SCHEME` only.
CORE = (
    *("int8", "int8-block", "int8-fast", "int8-fp8", "int8-fp16", "int4"),
    *("int-flash", "int-flash-half", "fp8", "fp16"),
)


@dataclass(frozen=True, kw_only=True)
class Case(Shape):
    """One shape of attention, in float16."""

    @classmethod
    def square(cls, batch: int, heads: int, seqlen: int, head_dim: int, is_causal: bool) -> Case:
        """Return the case of as many keys as queries and one key head for each query head."""
        return cls(
            batch=batch,
            num_q_heads=heads,
            num_kv_heads=heads,
            seqlen_q=seqlen,
            seqlen_kv=seqlen,
            head_dim=head_dim,
            is_causal=is_causal,
        )

    @property
    def input_bytes(self) -> int:
        """Bytes of Q, K and V."""
        q_rows = self.num_q_heads * self.seqlen_q
        kv_rows = self.num_kv_heads * self.seqlen_kv
        return 2 * self.batch * self.head_dim * (q_rows + 2 * kv_rows)

    @property
    def decodes(self) -> bool:
        """Whether each sequence has one query."""
        return self.seqlen_q == 1

    def __str__(self) -> str:
        # Lengths alone do not tell cases of decoding apart.
        decodes = f"B{self.batch} Hkv{self.num_kv_heads} " if self.decodes else ""
        causal = " causal" if self.is_causal else ""
        return f"{decodes}N{self.seqlen_kv} D{self.head_dim}{causal}"


def decoding(
    batch: int, num_kv_heads: int, tokens: int, num_q_heads: int = 32, head_dim: int = 128
) -> Case:
    """Return the case of one query of each sequence."""
    return Case(
        batch=batch,
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        seqlen_q=1,
        seqlen_kv=tokens,
        head_dim=head_dim,
        is_causal=False,
    )


# The papers' shape. 4096 fits the caches' reach of one head, 16384 does not; 1024 is over before
# the SMs are evenly loaded.
PREFILL = [
    Case.square(4, 32, 1024, 128, False),
    *(
        Case.square(4, 32, seqlen, head_dim, is_causal)
        for head_dim in (64, 128)
        for seqlen in (4096, 16384)
        for is_causal in (False, True)
    ),
]

# Few long sequences, many short ones, and heads that share nothing.
DECODE = (
    decoding(1, 8, 131072),
    decoding(16, 8, 8192),
    decoding(64, 8, 4096),
    decoding(1, 32, 32768),
)

# What claims beside other libraries are about: grouped heads of a large model, which cuDNN's own
# figures are of, and the papers' shape. Few, as each is timed in two states.
COMPARISON = [
    *(
        replace(Case.square(1, 64, seqlen, 128, is_causal), num_kv_heads=8)
        for seqlen, is_causal in ((4096, False), (16384, False), (16384, True))
    ),
    Case.square(4, 32, 4096, 128, False),
]
COMPARED = ("int8", "int8-block", "int8-fast", "fp16")

EVERY_SCHEME = [Case.square(4, 32, seqlen, 128, False) for seqlen in (4096, 16384)]

# Errors may grow with the length; they do not depend on the number of heads, so a few will do.
ACCURACY = [
    Case.square(1, 4, seqlen, head_dim, is_causal)
    for head_dim in (64, 128)
    for seqlen, is_causal in ((1024, False), (4096, False), (4096, True), (16384, False))
]
# What grows with the length shows on these; longer inputs take more time than all others.
LONG, LONG_FROM = ("normal", "sharp"), 4096

# One operand is 1 GiB: far beyond any cache.
QUANTIZE = Case.square(4, 32, 32768, 128, False)

# So little work that the GPU is always ahead of the host.
HOST = Case.square(1, 1, 64, 64, False)
