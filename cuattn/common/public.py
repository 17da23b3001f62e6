"""What public functions do at their door: name mistaken keywords, and keep Dynamo out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from ..errors import KeywordError

__all__ = ["check_keywords", "class_naming_keywords", "naming_keywords", "public"]

C = TypeVar("C", bound=type)
P = ParamSpec("P")
T = TypeVar("T")

# What libraries call the same: ours first, then those of PyTorch, FlashAttention, SageAttention,
# xFormers, FlashInfer, JAX, Hugging Face. Of a group that name is proposed which the function has.
_SAME = [
    names.split()
    for names in (
        "is_causal causal use_causal_mask",
        "scale softmax_scale sm_scale scale_factor scaling attn_scale",
        "softcap logits_soft_cap logit_soft_cap soft_cap logit_cap logit_softcapping softcapping "
        "attn_logit_softcapping",
        "attn_mask mask attention_mask attn_bias bias custom_mask block_mask",
        "sinks s_aux sink attn_sinks learnable_sink sink_bias",
        "window_size sliding_window local_window_size window local_window window_left "
        "window_right window_size_left window_size_right",
        "alibi_slopes alibi slopes alibi_bias",
        # Of a KV cache's append, rows that are named after the queries beside them are keys.
        "cu_seqlens_q cu_seq_q cu_seqlens qo_indptr cu_seq_lens_q query_start_loc cu_seqlens_k",
        "cu_seqlens_k cu_seq_k cu_seqlens_kv kv_indptr cu_seq_lens_k cu_seqlens_k_new "
        "kv_append_indptr",
        "sequences cache_batch_idx",
        "max_seqlen_q max_q max_length_q max_seqlen",
        "max_seqlen_k max_k max_seqlen_kv max_length_k",
        "seqused_k cache_seqlens seq_len_kv seqused_kv key_value_seq_lengths seqlens_k",
        "layout tensor_layout qkv_layout qkv_format kv_layout input_layout",
        "return_lse return_softmax_lse return_attn_probs return_residual return_logsumexp",
        "q query",
        "k key",
        "v value",
        "out output",
        "stream cuda_stream",
        "scheme preset quantization precision",
        "dropout_p dropout attention_dropout dropout_rate",
    )
]
_GROUP = {name: group for group in _SAME for name in group}

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_OF_METHODS = ("self", "cls", "_cls")

# What others can be told and is never different here.
_NONE_AS = {
    "dropout": "there is no dropout",
    "dropout_p": "there is no dropout",
    "attention_dropout": "there is no dropout",
    "dropout_rate": "there is no dropout",
    "training": "there is no dropout",
    "enable_gqa": "heads of q always share those of k and v evenly",
    "num_kv_heads": "heads of q always share those of k and v evenly",
    "deterministic": "the same call always gives the same bits",
    "num_splits": "the same call always gives the same bits",
    "smooth_k": "the scheme says what is smoothed",
    "smooth_v": "the scheme says what is smoothed",
    "qk_quant_gran": "the scheme says what shares a scale",
    "pv_accum_dtype": "the scheme says how P V is computed",
    "quantization_backend": "there is one",
    "implementation": "there is one",
    "backend": "there is one",
    "need_weights": "P is never stored",
    "output_attentions": "P is never stored",
    "rotary_cos": "q and k are rotated by their positions before the call",
    "rotary_sin": "q and k are rotated by their positions before the call",
    "block_table": "pages are what cuattn.KVCache has",
    "page_table": "pages are what cuattn.KVCache has",
    "slot_mapping": "a cuattn.KVCache finds slots itself; cu_seqlens_k says which rows are whose",
    # With the opposite meaning, which a mere other name would hide.
    "key_padding_mask": "attn_mask hides where it is False, and seqused_k says how many keys count",
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
            if "torch._dynamo" in sys.modules and _dynamo_looks():
                untraced: Callable[P, T] = _untraced(function)
                return untraced(*args, **kwargs)
            return function(*args, **kwargs)
        except TypeError:
            _check_own_keywords(function, kwargs)
            raise

    return _break_graph(called)


def naming_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that says which keyword was meant; `torch.compile` looks inside.

    An unknown keyword raises `KeywordError`, before anything is done.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except TypeError:
            _check_own_keywords(function, kwargs)
            raise

    return called


def class_naming_keywords(cls: C) -> C:
    """Have the constructor and the public methods of a class say which keyword was meant.

    Those of its base classes stay as they are, and so do methods that are `public`.
    """
    for name, member in [*vars(cls).items()]:
        kind = type(member) if isinstance(member, (staticmethod, classmethod)) else None
        function = member.__func__ if kind else member
        if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
            continue
        if name in ("__init__", "__new__") or not name.startswith("_"):
            named = naming_keywords(function)
            setattr(cls, name, kind(named) if kind else named)
    return cls


def check_keywords(given: Mapping[str, Any], *functions: Callable[..., Any]) -> None:
    """Check that each keyword is one of these functions'.

    Raises
    ------
    KeywordError
        Naming the one that was meant.
    """
    known: dict[str, None] = {}
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in _BY_NAME and name not in _OF_METHODS:
                known[name] = None
    for name, value in given.items():
        if name not in known:
            raise KeywordError(name, value, _meant(name, [*known])) from None


def _break_graph(function: Callable[P, T]) -> Callable[P, T]:
    """Mark a function as `torch.compiler.disable` does, without importing PyTorch."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    function._torchdynamo_disable_msg = _NOT_TRACED  # type: ignore[attr-defined]
    return function


def _dynamo_looks() -> bool:
    """Whether Dynamo looks at the frames of this thread; to keep it out takes microseconds."""
    try:
        torch = sys.modules["torch"]
        # What Dynamo traces is this much, and it warns of the other question.
        if torch.compiler.is_dynamo_compiling():
            return True
        return torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None
    except (AttributeError, KeyError):  # of a PyTorch that does not say
        return True


@_break_graph
def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as it is called without Dynamo looking at any frame below."""
    if function not in _made_untraced:
        torch: Any = sys.modules["torch"]
        _made_untraced[function] = torch.compiler.disable(function)
    return _made_untraced[function]


_made_untraced: dict[Callable[..., Any], Callable[..., Any]] = {}


def _check_own_keywords(function: Callable[..., Any], given: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    # What takes any keyword knows itself for whom they are.
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        check_keywords(given, function)


def _meant(name: str, known: list[str]) -> str:
    lower = name.lower()
    same = [other for other in _GROUP.get(lower, ()) if other in known]
    if not same and lower in _NONE_AS:
        return f"none, as {_NONE_AS[lower]}"
    close = same or get_close_matches(lower, known, 1, 0.7)
    if close:
        return repr(close[0])
    return f"one of {known}" if known else "none"
