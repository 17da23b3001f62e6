"""Masks as cuattn reads them: which slots of a batch hold tokens, and a window.

Transformers makes a mask once for all layers of a kind, by the function that is registered beside
the attention. Its own writes out what each query sees, [batch, 1, query, key]. Where that is a
causal mask, a window and padding, ours says only which slots hold tokens, [batch, key], so that
attention leaves out what is hidden, and statistics of quantization what is padding.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

__all__ = ["Slots", "mask_of_batch", "slots_of", "written_out"]

# The attribute of a mask of ours that has its `Slots`.
_SLOTS = "_cuattn_slots"

# A mask of ours is of int32, 0 where there is padding; where there are tokens it has one more than
# the window, or this. So a copy on another device, which has no attribute, says the same.
_NO_WINDOW = 2**31 - 1


class Slots:
    """Which slots hold tokens.

    Parameters
    ----------
    real : tensor of bool [batch, slots]
    is_causal : bool
        Whether a query sees the slots up to its own; that of the last one is the last.
    window : int, optional
        Slots that a causal query sees, its own among them; None for all.
    is_full : bool, optional
        Whether all hold tokens; read from the tensor, which waits for a GPU, if it is not given.

    Attributes
    ----------
    known : dict of int to tuple of int, or None
        Answers of `last` that have been read.
    """

    def __init__(
        self,
        real: torch.Tensor,
        is_causal: bool = True,
        window: int | None = None,
        is_full: bool | None = None,
    ) -> None:
        self.real = real
        self.is_causal = is_causal
        self.window = window
        self.is_full = bool(real.all()) if is_full is None else is_full
        self.known: dict[int, tuple[int, ...] | None] = {}
        self._packed: dict[int, tuple[tuple[torch.Tensor, ...], torch.Tensor, int]] = {}

    @property
    def count(self) -> int:
        """Slots of a sequence."""
        return int(self.real.shape[1])

    def packed(self, count: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, int]:
        """Return how the tokens in the last slots lie end to end; remembered, for all layers.

        Returns
        -------
        places : tuple of tensor of int64 [tokens]
            Of each token its sequence, and its slot among the last `count`.
        cu_seqlens : tensor of int32 [batch + 1]
        longest : int
            Tokens of the longest sequence.
        """
        if count not in self._packed:
            real = self.real[:, self.count - count :]
            counts = real.sum(1)
            cu_seqlens = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
            self._packed[count] = real.nonzero(as_tuple=True), cu_seqlens, int(counts.max())
        return self._packed[count]

    def last(self, count: int) -> tuple[int, ...] | None:
        """Return how many of each sequence's last slots hold tokens; None if all do."""
        if self.is_full:
            return None
        if count not in self.known:
            counts = tuple(self.real[:, self.count - count :].sum(1).tolist())
            self.known[count] = None if set(counts) == {count} else counts
        return self.known[count]

    @cached_property
    def leading(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where tokens are that are moved to the front, and how many of each sequence there are.

        int64 [batch, slots], places of the tokens in their order and then of padding, and int32
        [batch].
        """
        order = (~self.real).to(torch.int8).argsort(dim=1, stable=True)
        return order, self.real.sum(1, dtype=torch.int32)


def slots_of(mask: torch.Tensor, is_causal: bool) -> Slots:
    """Return what a mask [batch, slots] says: ours, or one that somebody else has made."""
    found: Slots | None = getattr(mask, _SLOTS, None)
    if found is not None:
        return found
    window = None
    if mask.dtype == torch.int32 and 1 < (most := int(mask.max())) < _NO_WINDOW:
        window = most - 1
    return Slots(mask.to(torch.bool), is_causal, window)


def mask_of_batch(
    batch_size: int,
    *,
    kv_length: int,
    kv_offset: int = 0,
    q_length: int = 1,
    q_offset: Any = 0,
    cache_position: torch.Tensor | None = None,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    config: Any = None,
    **options: Any,
) -> torch.Tensor | None:
    """Make the mask of a batch; registered as Transformers' `AttentionMaskInterface` asks.

    Parameters
    ----------
    batch_size, kv_length, kv_offset, q_length, q_offset, mask_function, options
        As Transformers passes them.
    cache_position : tensor of int [query], optional
        Passed by Transformers 5.0, and other early ones, in the place of `q_length` and `q_offset`.
    attention_mask : tensor of bool [batch, slots], optional
        Where there are tokens and where padding.
    local_size : int, optional
        Of a window, or of chunks.
    allow_is_causal_skip : bool
        Whether the mask, if it is causal, has a window or chunks and padding besides at most.
    config : PreTrainedConfig, optional

    Returns
    -------
    None
        If all keys are seen, or by a causal mask those up to a query's own.
    tensor of int32 [batch, slots]
        If there is padding, or keys that nothing is in yet, or a window: see `slots_of`.
    tensor of bool [batch, 1, query, key]
        For any other mask, as for PyTorch's attention.
    """
    placed: dict[str, Any] = {"q_length": q_length, "q_offset": q_offset}
    if cache_position is not None:
        placed = {"cache_position": cache_position}
        q_length, q_offset = len(cache_position), cache_position[0]
        options["device"] = cache_position.device
    is_causal = mask_function is not bidirectional_mask_function
    chunk = getattr(config, "attention_chunk_size", None)
    is_simple = not torch.compiler.is_compiling()
    if is_causal:
        is_simple &= allow_is_causal_skip and (local_size is None or local_size != chunk)
    else:
        is_simple &= bool(options.get("allow_is_bidirectional_skip"))
    # Keys that there are: a static cache has room for more.
    end = kv_length
    if is_causal and is_simple:
        end = int(q_offset) + q_length - kv_offset
    if not is_simple or not 0 < end <= kv_length:
        written: torch.Tensor | None = sdpa_mask(
            batch_size=batch_size,
            kv_length=kv_length,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=False,
            config=config,
            **placed,
            **options,
        )
        return written
    window = local_size if local_size is not None and local_size < end else None
    real, is_full, is_last_full = None, True, True
    if attention_mask is not None:
        real = attention_mask[:, kv_offset : kv_offset + end].to(torch.bool)
        if real.shape[1] < end:
            real = torch.nn.functional.pad(real, (0, end - real.shape[1]))
        # Read at once: on a GPU it takes a wait.
        both = torch.stack((real.all(), real[:, end - min(q_length, end) :].all()))
        is_full, is_last_full = both.tolist()
    if is_full and window is None and end == kv_length:
        return None
    if real is None or is_full:
        real = torch.ones((batch_size, end), dtype=torch.bool, device=options.get("device"))
    slots = Slots(real, is_causal, window, is_full)
    if is_last_full:
        slots.known[q_length] = None
    mask = real.to(torch.int32) * (_NO_WINDOW if window is None else window + 1)
    setattr(mask, _SLOTS, slots)
    return mask


def written_out(
    slots: Slots | None, query: torch.Tensor, k_length: int, is_causal: bool, window: int | None
) -> torch.Tensor | None:
    """Return a mask written out, bool [batch or 1, 1, query, key], or None if all is seen.

    The last query stands beside the last key.
    """
    mask = None
    q_length, device = query.shape[2], query.device
    if is_causal and (q_length > 1 or (window is not None and window < k_length)):
        keys = torch.arange(k_length, device=device)
        own = torch.arange(k_length - q_length, k_length, device=device)[:, None]
        mask = keys <= own
        if window is not None:
            mask &= keys > own - window
        mask = mask[None, None]
    if slots is None or slots.is_full:
        return mask
    rows = slots.real[:, None, None, :]
    return rows if mask is None else mask & rows
