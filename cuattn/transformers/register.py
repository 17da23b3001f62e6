"""`register`: a name by which models of Transformers find cuattn's attention and its masks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ..choice.scheme_plan import SchemePlan
from ..common.public import public
from ..errors import ArgumentError, UnsupportedError
from ..operands.options import check_flag
from ..scheme import Scheme
from ..torch.workspace import pytorch_memory
from .attention import Rules, attend
from .cached import Cached
from .layers import Schemes, check_layers, number_of
from .masks import mask_of_batch

__all__ = ["Attention", "register"]

# Transformers takes these for kernels of FlashAttention, of its hub, and of paged caches.
_TAKEN = ("flash", "/", "|")


@public
def register(
    scheme: str | Scheme | SchemePlan = "int8",
    name: str = "cuattn",
    *,
    skip: Iterable[int] = (),
    fallback: bool = False,
) -> Attention:
    """Make cuattn known to Transformers as an attention, with the masks that it reads.

    A model takes it by ``model.set_attn_implementation(name)``, or from the start by
    ``from_pretrained(..., attn_implementation=name)``. What models pass is passed on: scaling,
    sliding_window, softcap (Gemma 2), s_aux (gpt-oss), position_bias (T5), padding on either side,
    and masks that are written out.

    A single query is PyTorch's, unless its keys are in a `Cache`: it does not pay to quantize all
    of them for it.

    Parameters
    ----------
    scheme : str, Scheme or SchemePlan
        As for `cuattn.attention`; of a plan that layer 3 has is ``plan["layer 3"]``.
    name : str
        Another one for each scheme. One that is there already is replaced.
    skip : iterable of int
        Layers that are left to PyTorch.
    fallback : bool
        Leave to PyTorch what cuattn does not do, which is dropout and gradients, instead of
        raising. A `Cache` knows no such way out.

    Returns
    -------
    Attention
        `name`, and `calls`: who has answered how many calls, and why.

    Raises
    ------
    ArgumentError
        If an argument is wrong.

    Examples
    --------
    >>> attention = register("int8")  # doctest: +SKIP
    >>> model.set_attn_implementation(attention.name)  # doctest: +SKIP
    """
    if not isinstance(name, str) or not name or any(x in name for x in _TAKEN):
        expected = f"a name without {', '.join(map(repr, _TAKEN))}, which mean something else there"
        raise ArgumentError("name", name, expected)
    check_flag("fallback", fallback)
    made = Attention(name, Schemes(scheme), check_layers(skip), bool(fallback))
    AttentionInterface.register(name, made)
    AttentionMaskInterface.register(name, mask_of_batch)
    return made


class Attention:
    """What `register` has made known: called for every layer of a model.

    Attributes
    ----------
    name : str
    calls : Counter of str
        "cuattn", "cuattn, cache", and "PyTorch: " with a reason; `clear` it to count anew.
    """

    def __init__(self, name: str, schemes: Schemes, skip: frozenset[int], fallback: bool) -> None:
        self.name = name
        self.calls: Counter[str] = Counter()
        self._schemes, self._skip, self._fallback = schemes, skip, fallback

    def __repr__(self) -> str:
        return f"Attention({self.name!r}, calls={dict(self.calls)})"

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, None]:
        """Answer a layer's call, as Transformers' `AttentionInterface` asks.

        Parameters
        ----------
        module : torch.nn.Module
        query : tensor [batch, num_q_heads, query, head_dim]
        key, value : tensor [batch, num_kv_heads, key, head_dim]
            Or what a `Cache` has for them.
        attention_mask : tensor, optional
            As `mask_of_batch` or a caller makes it.
        scaling, dropout, is_causal, sliding_window, softcap, s_aux, position_bias
            As the model passes them.
        more : object
            Of no concern to attention.

        Returns
        -------
        o : tensor [batch, query, num_q_heads, head_dim]
        None
            There are no weights to show.

        Raises
        ------
        ArgumentError, UnsupportedError
            As `cuattn.attention`, and for dropout and gradients.
        """
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        rules = Rules.of(
            attention_mask, bool(causal), scaling, sliding_window, softcap, s_aux, position_bias
        )
        wrong = _refusal((query, key, value, s_aux, position_bias), dropout)
        if isinstance(key, Cached) and isinstance(value, Cached):
            if wrong:
                raise UnsupportedError(f"cuattn has no {wrong}, least of all with its own cache")
            scheme = self._schemes.of(module)
            self.calls["cuattn, cache"] += 1
            with _memory(query):
                return key.layer.answer(query, key, value, rules, scheme), None
        reason = "layer left out" if number_of(module) in self._skip else None
        if reason is None and wrong and self._fallback:
            reason = wrong
        if reason is None and query.shape[2] == 1:
            reason = "one query"
        if reason is not None:
            self.calls[f"PyTorch: {reason}"] += 1
            return _pytorchs(module, query, key, value, rules, dropout, more), None
        if wrong:
            raise UnsupportedError(
                f"cuattn has no {wrong}: call the model in eval() under torch.inference_mode(), or "
                "register(fallback=True), which leaves such calls to PyTorch"
            )
        self.calls["cuattn"] += 1
        with _memory(query):
            return attend(query, key, value, rules, self._schemes.of(module)), None


def _memory(query: torch.Tensor) -> AbstractContextManager[object]:
    """Return a context in which workspace on a GPU is PyTorch's, as its graphs want it."""
    return pytorch_memory(query.device) if query.is_cuda else nullcontext()


def _refusal(tensors: tuple[torch.Tensor | None, ...], dropout: float) -> str | None:
    """Return what cuattn does not do of what a call wants."""
    if dropout:
        return "dropout"
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return "gradients"
    return None


def _pytorchs(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rules: Rules,
    dropout: float,
    more: dict[str, Any],
) -> torch.Tensor:
    """Leave a call to PyTorch's attention or, with softcap or sinks, to the model's own."""
    if rules.slots is not None and rules.slots.count < key.shape[2]:
        key, value = (x[:, :, : rules.slots.count] for x in (key, value))
    mask = rules._replace(bias=None).written(query, key.shape[2])
    options = {"dropout": dropout, "scaling": rules.scale, "is_causal": False}
    if rules.bias is not None:
        options["position_bias"] = rules.biases(query, key.shape[2])
    o: torch.Tensor
    if not rules.softcap and rules.sinks is None:
        o, _ = sdpa_attention_forward(module, query, key, value, mask, **options, **more)
        return o
    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if own is None:
        raise UnsupportedError(
            f"{type(module).__name__} has softcap or sinks and no attention for one query of its "
            "own: use a cuattn.transformers.Cache"
        )
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(
            ~mask, torch.finfo(query.dtype).min
        )
    options |= {"softcap": rules.softcap or None, "s_aux": rules.sinks}
    o, _ = own(module, query, key, value, mask, **options, **more)
    return o
