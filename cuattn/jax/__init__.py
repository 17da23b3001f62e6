"""cuattn in functions that JAX compiles: `dot_product_attention`, with the signature of `jax.nn`'s.

Imported only on request, it imports JAX. `rules` turns arguments of JAX into those of
`cuattn.attention`, `in_graph` makes the call a part of XLA's graph, and `xla_ffi` has handlers of
XLA's foreign function interface in Python.

May import `errors`, `common`, `scheme`, `arrays`, `operands`, `plan` and `attention`.
"""

from __future__ import annotations

from .dot_product_attention import dot_product_attention

__all__ = ["dot_product_attention"]
