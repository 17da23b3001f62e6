"""cuattn in models of Transformers 5: `register` names an attention, `Cache` holds its tokens.

Imported only on request, it imports PyTorch and Transformers. `masks` says which slots of a batch
hold tokens, `attention` answers a layer's call, `cache_layer` keeps the tokens of a layer in a
`cuattn.KVCache`, and `cached` has what stands for them on their way to the attention.

May import `errors`, `common`, `scheme`, `presets`, `arrays`, `operands`, `attention`,
`kv`, `choice` and `torch`.
"""

from __future__ import annotations

from .cache import Cache
from .register import Attention, register

__all__ = ["Attention", "Cache", "register"]
