"""cuattn in diffusers: backends of its dispatcher of attention, and models that use them.

`attach` is for any model: layers that ask the dispatcher get the backend "cuattn", which also gives
context parallelism its log-sum-exp, and those that call PyTorch's function get ours. `register`
makes a backend of a scheme, for ``model.set_attention_backend`` and ``attention_backend``.

Needs diffusers 0.42 or newer; ``import cuattn`` imports neither this nor that.

May import `errors`, `common`, `presets`, `scheme`, `choice` and `torch`.
"""

from __future__ import annotations

from .attach import attach
from .backend import register

__all__ = ["attach", "register"]
