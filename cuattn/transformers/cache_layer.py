"""The tokens of one layer of a model in a `cuattn.KVCache`, as Transformers keeps caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from transformers.cache_utils import CacheLayerMixin

from ..arrays.caller import on_device
from ..errors import ArgumentError, UnsupportedError
from ..kv.cache import KVCache
from .attention import Rules, attend, moved
from .cached import Cached
from .masks import Slots

__all__ = ["CacheLayer"]

_NOT_ASKED = "the last tokens of this cache have not been attended, so that it has not got them"


class CacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """The tokens of a layer; see `cuattn.transformers.Cache`.

    Slots are what Transformers counts, padding included; the `KVCache` has only tokens.

    Attributes
    ----------
    kv : KVCache or None
        Made by the first tokens, which show batch, heads, channels and device.
    slots : int
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = True

    def __init__(self, capacity: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.capacity = capacity
        self.slots = 0
        self.kv: KVCache | None = None
        self._options = options
        # Slots of which the tokens have been appended.
        self._appended = 0
        # Slots that the sequence with most tokens has of padding; whether others have more.
        self._padding = 0
        self._is_ragged = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the cache.

        Raises
        ------
        ArgumentError
            If K and V have different numbers of channels, or other ones than a `KVCache` takes.
        """
        batch, heads, _, channels = key_states.shape
        if value_states.shape[3] != channels:
            expected = f"of {channels} channels, as the keys are"
            raise ArgumentError("value_states", value_states, expected)
        sizes = batch, heads, channels, self.capacity
        device = key_states.device
        if device.type == "cpu":
            self.kv = KVCache(*sizes, device="cpu", **self._options)
        else:
            with on_device(device.index):
                self.kv = KVCache(*sizes, **self._options)
        self.batch_size, self.device = batch, device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what stands for all keys and values; the layer's attention appends the new ones.

        Raises
        ------
        ArgumentError
            If they are more than there is room for.
        UnsupportedError
            If those of the last call have not been attended: the model had failed, or has another
            attention.
        """
        if self._appended != self.slots:
            raise UnsupportedError(f"{_NOT_ASKED}: reset() it")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[2]
        if self.slots + count > self.capacity:
            expected = f"of at most {self.capacity - self.slots} tokens, as max_cache_len is "
            raise ArgumentError("key_states", key_states, f"{expected}{self.capacity}")
        self.slots += count
        return Cached.of(self, self.slots, key_states), Cached.of(self, self.slots, value_states)

    def answer(
        self, query: torch.Tensor, key: Cached, value: Cached, rules: Rules, scheme: Any
    ) -> torch.Tensor:
        """Append the new tokens, and return the attention to all, [batch, query, head, head_dim].

        The first tokens of a cache are attended as they are, by `cuattn.attention`; later ones see
        all tokens as the cache has them.

        Raises
        ------
        ArgumentError
            If a mask is for another number of slots.
        UnsupportedError
            If a mask or a bias is written out and sequences have different lengths, or the tokens
            have been attended already.
        """
        count = key.fresh.shape[2]
        if self.kv is None or self._appended + count != self.slots:
            raise UnsupportedError("tokens of a cache can be attended once, when they are new")
        if rules.slots is not None and rules.slots.count != self.slots:
            expected = f"of {self.slots} slots, as many as the cache has taken"
            raise ArgumentError("attention_mask", rules.slots.real, expected)
        counts = None if rules.slots is None else rules.slots.last(count)
        if self.slots == count:
            o = attend(query, key.fresh, value.fresh, rules, scheme)
            self._append(self.kv, key.fresh, value.fresh, rules.slots, counts)
            return o
        options = rules.options
        if rules.mask is not None or rules.bias is not None:
            if self._is_ragged or counts is not None:
                text = "masks and biases of a padded batch do not fit a cache without the padding"
                raise UnsupportedError(f"{text}: give attention_mask as [batch, slots]")
            options |= {"attn_mask": rules.written(query, self.slots), "is_causal": False}
            options.pop("window_size", None)
        self._append(self.kv, key.fresh, value.fresh, rules.slots, counts)
        batch, heads, rows, channels = query.shape
        order = None
        if counts is not None and rules.slots is not None:
            # The last query stands beside the last token, so those of tokens are moved to the end.
            order = rules.slots.real[:, -count:].to(torch.int8).argsort(dim=1, stable=True)
            query = moved(query, order)
        o = query.new_empty((batch, rows, heads, channels))
        self.kv.attend(query, out=o.transpose(1, 2), **options)
        if order is None:
            return o
        return moved(o.transpose(1, 2), order.argsort(dim=1)).transpose(1, 2)

    def _append(
        self,
        kv: KVCache,
        key: torch.Tensor,
        value: torch.Tensor,
        slots: Slots | None,
        counts: tuple[int, ...] | None,
    ) -> None:
        if counts is None or slots is None:
            kv.append(key, value)
            self._appended = self.slots
            return
        real = slots.real[:, -key.shape[2] :]
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)
        kv.append(moved(key, order), moved(value, order), counts=np.array(counts))
        self._appended = self.slots
        lengths = kv.lengths
        self._padding = self.slots - int(lengths.max())
        self._is_ragged = bool((lengths != self.slots).any())

    # ---- what Transformers asks a cache

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Return the keys that the next queries see, and the slot of the first of them."""
        count = query_length if isinstance(query_length, int) else len(query_length)
        return self.slots + count, 0

    def get_seq_length(self, *_: Any) -> int:
        """Return the slots that are taken."""
        return self.slots

    def get_max_length(self) -> int:
        """Return how many slots there are."""
        return self.capacity

    get_max_cache_shape = get_max_length  # its name in Transformers 5.0

    def reset(self) -> None:
        """Empty the cache, and keep its memory."""
        if self.kv is not None:
            self.kv.reset(stream=self._stream())
        self.slots = self._appended = self._padding = 0
        self._is_ragged = False

    def crop(self, tokens_to_remove: int) -> None:
        """Take away the last -n slots; Transformers 5.0 says instead that n are to remain."""
        count = -tokens_to_remove if tokens_to_remove <= 0 else self.slots - tokens_to_remove
        if self.kv is None or count <= 0:
            return
        remaining = np.maximum(self.kv.lengths - count, 0)
        self.kv.truncate(remaining, stream=self._stream())
        self.slots = self._appended = max(self.slots - count, 0)

    def reorder_cache(self, beam_idx: Any) -> None:
        """Give each sequence the tokens of another one, as beam search does."""
        if self.kv is not None:
            self.reorder(beam_idx.tolist())

    def reorder(self, sequences: Sequence[int]) -> None:
        """Give sequence b the tokens of ``sequences[b]``."""
        if self.kv is not None and list(sequences) != list(range(self.batch_size)):
            self.kv.reorder(sequences, stream=self._stream())

    def learn_lengths(self) -> None:
        """Read from the GPU how many tokens a graph has appended."""
        if self.kv is not None:
            self.slots = self._appended = int(self.kv.lengths.max()) + self._padding

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        """Refuse to change the batch, for which the memory has been taken."""
        raise UnsupportedError("a cuattn.transformers.Cache keeps the batch that it began with")

    batch_select_indices = batch_repeat_interleave

    def offload(self) -> NoReturn:
        """Refuse to move the cache."""
        raise UnsupportedError("a cuattn.transformers.Cache stays on its device")

    prefetch = offload

    def _stream(self) -> Any:
        return None if self.device.type == "cpu" else torch.cuda.current_stream(self.device)
