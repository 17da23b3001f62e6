"""Attention and every quantized form of it in NumPy float64, and how far apart they are.

Nothing here needs a GPU, or anything beyond NumPy and threadpoolctl. The formulas and their
derivations are in ``docs/numerics.md``.

May import `errors`, `common`, `scheme`, `presets` and `kv_format`.

Modules
-------
exact
    Attention and its log-sum-exp with no quantization.
varlen
    Sequences of different lengths in one batch.
merging
    Attention to a set of keys from that to its parts.
quantize
    The quantizers, bit for bit those of the GPU, and the layout that the kernels store V in.
emulate
    The algorithm of the kernels, block by block, on quantized operands.
kv_cache
    Codes, scales and zero points of a quantized KV cache.
decode
    Attention of a few queries to such a cache.
metrics
    Measures of the distance between two outputs.
attribute
    The share of Q, K, P and V in the error of a scheme.
distributions
    Named random inputs, and inputs read from a file.
"""

from . import (
    attribute,
    decode,
    distributions,
    emulate,
    exact,
    kv_cache,
    merging,
    metrics,
    quantize,
    varlen,
)

__all__ = [
    "attribute",
    "decode",
    "distributions",
    "emulate",
    "exact",
    "kv_cache",
    "merging",
    "metrics",
    "quantize",
    "varlen",
]
