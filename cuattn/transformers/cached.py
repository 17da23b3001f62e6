"""What stands for the keys and values of a cache between a model's layer and its attention."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from ..errors import UnsupportedError

__all__ = ["Cached"]

_READ_BY_OTHERS = (
    "keys and values of a cuattn.transformers.Cache are codes, which only its own attention reads: "
    "register() it and call model.set_attn_implementation with its name, or leave the layer out "
    "with skip="
)


class Cached(torch.Tensor):  # type: ignore[misc]
    """What stands for a layer's keys, or values, on their way from its cache to its attention.

    It has the shape that all of them have, [batch, head, slot, channel], and no memory.

    Attributes
    ----------
    layer : CacheLayer
        Whose `answer` appends them, and reads all.
    fresh : tensor [batch, head, n, channel]
        Those of the last n slots, which the cache has not yet.
    """

    layer: Any
    fresh: torch.Tensor

    @staticmethod
    def of(layer: Any, slots: int, fresh: torch.Tensor) -> Cached:
        """Return what stands for the tokens of a layer in its slots, and those of `fresh`."""
        batch, heads, _, channels = fresh.shape
        shape = (batch, heads, slots, channels)
        made: Cached = torch.Tensor._make_wrapper_subclass(
            Cached, shape, dtype=fresh.dtype, device=fresh.device
        )
        made.layer, made.fresh = layer, fresh
        return made

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        raise UnsupportedError(_READ_BY_OTHERS)

    def __repr__(self, **_: Any) -> str:
        return f"Cached{list(self.shape)}"
