"""What public functions do at their door: name mistaken keywords, and keep Dynamo out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ..errors import KeywordError

__all__ = ["public"]

P = ParamSpec("P")
T = TypeVar("T")

# What other libraries call the same: PyTorch, FlashAttention, SageAttention, xFormers, FlashInfer,
# JAX, Hugging Face.
_SAME = {
    "causal": "is_causal",
    "use_causal_mask": "is_causal",
    "softmax_scale": "scale",
    "sm_scale": "scale",
    "scale_factor": "scale",
    "logits_soft_cap": "softcap",
    "logit_soft_cap": "softcap",
    "soft_cap": "softcap",
    "logit_cap": "softcap",
    "attn_logit_softcapping": "softcap",
    "mask": "attn_mask",
    "attention_mask": "attn_mask",
    "attn_bias": "attn_mask",
    "bias": "attn_mask",
    "custom_mask": "attn_mask",
    "s_aux": "sinks",
    "sink": "sinks",
    "attn_sinks": "sinks",
    "learnable_sink": "sinks",
    "sliding_window": "window_size",
    "local_window_size": "window_size",
    "window": "window_size",
    "window_left": "window_size",
    "alibi": "alibi_slopes",
    "cu_seq_q": "cu_seqlens_q",
    "cu_seq_k": "cu_seqlens_k",
    "cu_seqlens_kv": "cu_seqlens_k",
    "qo_indptr": "cu_seqlens_q",
    "kv_indptr": "cu_seqlens_k",
    "max_q": "max_seqlen_q",
    "max_k": "max_seqlen_k",
    "max_seqlen_kv": "max_seqlen_k",
    "cache_seqlens": "seqused_k",
    "seq_len_kv": "seqused_k",
    "seqused_kv": "seqused_k",
    "key_value_seq_lengths": "seqused_k",
    "slopes": "alibi_slopes",
    "tensor_layout": "layout",
    "qkv_layout": "layout",
    "qkv_format": "layout",
    "kv_layout": "layout",
    "return_softmax_lse": "return_lse",
    "return_attn_probs": "return_lse",
    "query": "q",
    "key": "k",
    "value": "v",
    "output": "out",
    "cuda_stream": "stream",
    "preset": "scheme",
    "quantization": "scheme",
}

# What others can be told and is never different here.
_NONE_AS = {
    "dropout": "there is no dropout",
    "dropout_p": "there is no dropout",
    "enable_gqa": "heads of q always share those of k and v evenly",
    "deterministic": "the same call always gives the same bits",
}

_NOT_TRACED = "it launches kernels of its own; as an operator it can be part of a graph"


def public(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that says which keyword was meant, and that `torch.compile` calls as it is.

    An unknown keyword raises `KeywordError`, before anything is done. In a function that is
    compiled, a call breaks the graph: Dynamo traces nothing inside, where it would replace NumPy.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            if "torch._dynamo" in sys.modules:
                untraced: Callable[P, T] = _untraced(function)
                return untraced(*args, **kwargs)
            return function(*args, **kwargs)
        except TypeError:
            _check_keywords(function, kwargs)
            raise

    return _break_graph(called)


def _break_graph(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function as `torch.compiler.disable` does, without importing PyTorch."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = _NOT_TRACED  # type: ignore[attr-defined]
    return function


@_break_graph
def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as it is called without Dynamo looking at any frame below."""
    if function not in _made_untraced:
        torch: Any = sys.modules["torch"]
        _made_untraced[function] = torch.compiler.disable(function)
    return _made_untraced[function]


_made_untraced: dict[Callable[..., Any], Callable[..., Any]] = {}


def _check_keywords(function: Callable[..., Any], given: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    for name, value in given.items():
        if name not in known:
            raise KeywordError(name, value, _meant(name, known)) from None


def _meant(name: str, known: list[str]) -> str:
    if name.lower() in _NONE_AS:
        return f"none, as {_NONE_AS[name.lower()]}"
    same = _SAME.get(name.lower())
    close = [same] if same in known else get_close_matches(name.lower(), known, 1, 0.7)
    return repr(close[0]) if close else f"one of {known}"
