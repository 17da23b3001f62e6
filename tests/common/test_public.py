"""Public functions: keywords that are called otherwise, signatures, and torch.compile's marks."""

import inspect
import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import cuattn
from cuattn.common import public as module
from cuattn.common.public import naming_keywords, public
from cuattn.errors import ArgumentError, KeywordError

X = np.zeros((1, 1, 8, 64), np.float32)


def cache():
    return cuattn.KVCache(1, 1, 64, 16, device="cpu")


CALLS = {
    "attention": lambda **given: cuattn.attention(X, X, X, **given),
    "quantize": lambda **given: cuattn.quantize(X, **given),
    "append": lambda **given: cache().append(X, X, **given),
    "attend": lambda **given: cache().attend(X, **given),
}


@pytest.mark.parametrize(
    ("call", "keyword", "meant"),
    [
        ("attention", "causal", "is_causal"),
        ("attention", "iscausal", "is_causal"),
        ("attention", "softmax_scale", "scale"),
        ("attention", "sm_scale", "scale"),
        ("attention", "tensor_layout", "layout"),
        ("attention", "return_softmax_lse", "return_lse"),
        ("attention", "Scheme", "scheme"),
        ("attention", "logits_soft_cap", "softcap"),
        ("attention", "soft_cap", "softcap"),
        ("attention", "logit_cap", "softcap"),
        ("attention", "mask", "attn_mask"),
        ("attention", "attention_mask", "attn_mask"),
        ("attention", "attn_bias", "attn_mask"),
        ("attention", "bias", "attn_mask"),
        ("attention", "s_aux", "sinks"),
        ("attention", "learnable_sink", "sinks"),
        ("attention", "sliding_window", "window_size"),
        ("attention", "local_window_size", "window_size"),
        ("attention", "window", "window_size"),
        ("attention", "alibi", "alibi_slopes"),
        ("attention", "scaling", "scale"),
        ("attention", "block_mask", "attn_mask"),
        ("attention", "cache_seqlens", "seqused_k"),
        ("attention", "max_seqlen", "max_seqlen_q"),
        ("attention", "precision", "scheme"),
        ("attention", "query", "q"),
        ("quantize", "tensor_layout", "layout"),
        ("quantize", "operands", "operand"),
        ("append", "kv_layout", "layout"),
        ("append", "count", "counts"),
        ("append", "cu_seqlens", "cu_seqlens_k"),
        ("append", "query_start_loc", "cu_seqlens_k"),
        ("append", "cu_seqlens_k_new", "cu_seqlens_k"),
        ("append", "cache_batch_idx", "sequences"),
        ("attend", "query_start_loc", "cu_seqlens_q"),
        ("attend", "causal", "is_causal"),
        ("attend", "softmax_scale", "scale"),
    ],
)
def test_unknown_keywords_name_the_right_one(call, keyword, meant):
    with pytest.raises(KeywordError) as error:
        CALLS[call](**{keyword: True})
    assert str(error.value) == f"there is no argument {keyword!r}; expected {meant!r}"
    assert isinstance(error.value, ArgumentError)
    assert isinstance(error.value, TypeError)
    assert (error.value.argument, error.value.value) == (keyword, True)
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)


@pytest.mark.parametrize("call", CALLS)
def test_keywords_that_mean_nothing_here_are_answered_by_those_that_do(call):
    with pytest.raises(KeywordError, match=r"no argument 'block_size'; expected one of \["):
        CALLS[call](block_size=64)


@pytest.mark.parametrize(
    ("keyword", "why"),
    [
        ("dropout_p", "there is no dropout"),
        ("dropout", "there is no dropout"),
        ("enable_gqa", "heads of q always share those of k and v evenly"),
        ("deterministic", "the same call always gives the same bits"),
        ("training", "there is no dropout"),
        ("smooth_k", "the scheme says what is smoothed"),
        ("need_weights", "P is never stored"),
        ("block_table", "pages are what cuattn.KVCache has"),
        (
            "key_padding_mask",
            "attn_mask hides where it is False, and seqused_k says how many keys count",
        ),
    ],
)
def test_what_is_always_so_has_no_argument(keyword, why):
    with pytest.raises(KeywordError) as error:
        cuattn.attention(X, X, X, **{keyword: 0})
    assert str(error.value) == f"there is no argument {keyword!r}; expected none, as {why}"


def test_the_name_is_the_one_that_the_function_has():
    @naming_keywords
    def of_flash_attention(query, dropout_p=0.0, softmax_scale=None, causal=False):
        return query

    assert of_flash_attention(1) == of_flash_attention(query=1) == 1
    for name, meant in {"q": "query", "scale": "softmax_scale", "is_causal": "causal"}.items():
        with pytest.raises(KeywordError, match=f"expected {meant!r}"):
            of_flash_attention(1, **{name: 1})
    with pytest.raises(KeywordError, match="expected 'dropout_p'"):
        of_flash_attention(1, dropout=0.1)
    assert not hasattr(of_flash_attention, "_torchdynamo_disable")


def test_a_name_that_one_function_lacks_is_not_proposed():
    with pytest.raises(KeywordError, match="expected one of") as error:
        cuattn.quantize(X, causal=True)
    assert "'is_causal'" not in str(error.value)
    with pytest.raises(KeywordError, match="expected 'window_size'"):
        cache().attend(X, sliding_window=16)


def test_other_errors_stay_as_they_are():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'v'") as error:
        cuattn.attention(X, X)
    assert not isinstance(error.value, ArgumentError)
    with pytest.raises(TypeError, match="positional arguments"):
        cuattn.attention(X, X, X, None)

    @public
    def fails(x):
        raise TypeError("from inside")

    with pytest.raises(TypeError, match="from inside"):
        fails(1)


@pytest.mark.parametrize(
    "function", [cuattn.attention, cuattn.quantize, cuattn.KVCache.append, cuattn.KVCache.attend]
)
def test_signatures_can_be_looked_at(function):
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert function.__doc__.splitlines()[0]
    assert pickle.loads(pickle.dumps(function)) is function


def test_functions_are_called_outside_of_what_dynamo_looks_at(monkeypatch):
    disabled = []

    @public
    def function(x):
        return x + 1

    def disable(f):
        disabled.append(f)
        return lambda *args: ("untraced", f(*args))

    torch = ModuleType("torch")
    torch.compiler = SimpleNamespace(disable=disable)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.setattr(module, "_made_untraced", {})
    # Dynamo takes a second to import, and looks at nothing before.
    assert function(1) == 2
    assert not disabled
    monkeypatch.setitem(sys.modules, "torch._dynamo", ModuleType("torch._dynamo"))
    assert [function(1), function(2)] == [("untraced", 2), ("untraced", 3)]
    assert disabled == [function.__wrapped__]


@pytest.mark.parametrize("function", [cuattn.attention, cuattn.KVCache.attend])
def test_dynamo_is_told_not_to_trace(function):
    assert function._torchdynamo_disable is True
    assert "graph" in function._torchdynamo_disable_msg
