"""A call of a layer's attention, answered by `cuattn.attention`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..attention import attention
from ..errors import ArgumentError
from ..scheme import Scheme
from .masks import Slots, slots_of, written_out

__all__ = ["Rules", "attend", "moved"]


class Rules(NamedTuple):
    """What changes the logits of a call, and which keys a query sees.

    Attributes
    ----------
    scale : float or None
    is_causal : bool
        Of `mask` it says nothing: there it is written out.
    window : int or None
        Keys that a causal query sees, its own among them.
    softcap : float
    sinks : tensor [num_q_heads] or None
    slots : Slots or None
    mask : tensor [batch or 1, heads or 1, query, key] or None
        Of bool or floats, as `attn_mask` of `cuattn.attention`.
    bias : tensor [batch or 1, heads, query, key] or None
        Of floats, added to the logits.
    """

    scale: float | None
    is_causal: bool
    window: int | None
    softcap: float
    sinks: torch.Tensor | None
    slots: Slots | None
    mask: torch.Tensor | None
    bias: torch.Tensor | None

    @classmethod
    def of(
        cls,
        attention_mask: torch.Tensor | None,
        is_causal: bool,
        scale: float | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> Rules:
        """Read a mask, as `mask_of_batch` or somebody else has made it.

        Raises
        ------
        ArgumentError
            If it has neither two axes nor four.
        """
        slots, mask = None, None
        if attention_mask is not None and attention_mask.ndim == 2:
            slots = slots_of(attention_mask, is_causal)
            is_causal, window = slots.is_causal, slots.window or window
        elif attention_mask is not None and attention_mask.ndim == 4:
            # Causality and window are in it.
            mask, is_causal, window = attention_mask, False, None
        elif attention_mask is not None:
            expected = "[batch, slots] or [batch, 1, query, key]"
            raise ArgumentError("attention_mask", attention_mask, expected)
        return cls(scale, is_causal, window, float(softcap or 0), sinks, slots, mask, bias)

    @property
    def options(self) -> dict[str, Any]:
        """Options of `cuattn.attention`, and of `KVCache.attend`, without masks."""
        options: dict[str, Any] = {"is_causal": self.is_causal, "scale": self.scale}
        if self.window is not None and self.is_causal:
            options["window_size"] = (self.window - 1, 0)
        if self.softcap:
            options["softcap"] = self.softcap
        if self.sinks is not None:
            options["sinks"] = self.sinks
        return options

    def biases(self, query: torch.Tensor, k_length: int) -> torch.Tensor | None:
        """Return the bias of a call's queries and keys."""
        return None if self.bias is None else self.bias[..., -query.shape[2] :, :k_length]

    def written(self, query: torch.Tensor, k_length: int) -> torch.Tensor | None:
        """Return mask and bias as one `attn_mask`, in which everything hidden is hidden."""
        mask = self.mask
        if mask is None:
            mask = written_out(self.slots, query, k_length, self.is_causal, self.window)
        bias = self.biases(query, k_length)
        if bias is None or mask is None:
            return mask if bias is None else bias
        if mask.dtype == torch.bool:
            return torch.where(mask, bias, float("-inf"))
        return mask + bias


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rules: Rules,
    scheme: str | Scheme,
) -> torch.Tensor:
    """Return the output of a layer's attention, [batch, query, head, head_dim].

    Parameters
    ----------
    query : tensor [batch, num_q_heads, query, head_dim]
    key, value : tensor [batch, num_kv_heads, key, head_dim]
        Of a static cache with room behind the keys that there are.
    rules : Rules
    scheme : str or Scheme
    """
    slots = rules.slots
    if slots is not None and slots.count != key.shape[2]:
        if slots.count > key.shape[2]:
            expected = f"of at most {key.shape[2]} slots, as there are keys"
            raise ArgumentError("attention_mask", slots.real, expected)
        key, value = key[:, :, : slots.count], value[:, :, : slots.count]
    options = {**rules.options, "scheme": scheme}
    if rules.mask is None and (slots is None or slots.is_full):
        if rules.bias is not None:
            options["attn_mask"] = rules.biases(query, key.shape[2])
    elif rules.mask is not None or rules.bias is not None:
        options |= {"attn_mask": rules.written(query, key.shape[2]), "is_causal": False}
        options.pop("window_size", None)
    elif slots is not None:
        if slots.is_causal:
            return _attend_end_to_end(query, key, value, slots, options)
        order, options["seqused_k"] = slots.leading
        key, value = (moved(x, order) for x in (key, value))
    return _attend(query, key, value, options)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Write the output with tokens before heads, as Transformers wants it, without a copy."""
    batch, heads, count, _ = query.shape
    o = query.new_empty((batch, count, heads, value.shape[3]))
    attention(query, key, value, out=o.transpose(1, 2), **options)
    return o


def _attend_end_to_end(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: Slots,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attend the tokens of each sequence without its padding, whose rows are 0.

    So a sequence has the bits that it has alone, wherever its padding is.
    """
    batch, heads, count, _ = query.shape
    packed, lengths, longest = [], [], []
    for x in (query, key, value):
        places, cu_seqlens, most = slots.packed(x.shape[2])
        packed.append(x.transpose(1, 2)[places])
        lengths.append(cu_seqlens)
        longest.append(most)
    o = query.new_zeros((batch, count, heads, value.shape[3]))
    if len(packed[0]):
        o[slots.packed(count)[0]] = attention(
            *packed,
            cu_seqlens_q=lengths[0],
            cu_seqlens_k=lengths[1],
            max_seqlen_q=longest[0],
            max_seqlen_k=longest[1],
            **options,
        )
    return o


def moved(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return an array [batch, head, slot, channel] with each sequence's slots in another order."""
    return x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
