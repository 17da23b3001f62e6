"""Models of Transformers with few channels and random weights, and what tests ask of them."""

import sys
from importlib import import_module
from inspect import getsource
from types import SimpleNamespace

import numpy as np
import pytest

WORDS = 96
PAD = 0

_SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "initializer_range": 0.15,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_T5 = {
    "vocab_size": WORDS,
    "d_model": 96,
    "d_kv": 64,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "pad_token_id": PAD,
    "eos_token_id": None,
    "decoder_start_token_id": 1,
    "dropout_rate": 0.0,
}
_SLIDING = ["sliding_attention", "full_attention"]

# Class of the model, class of its configuration, and what it has besides.
DECODERS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 7, "layer_types": _SLIDING},
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 6}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {"sliding_window": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 30},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {"sliding_window": 9, "layer_types": _SLIDING, "query_pre_attn_scalar": 40},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            "sliding_window": 5,
            "layer_types": _SLIDING,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}


@pytest.fixture(scope="session")
def hf():
    """PyTorch, Transformers and cuattn's module for it."""
    names = {"torch": "torch", "library": "transformers", "ours": "cuattn.transformers"}
    return SimpleNamespace(**{name: import_module(module) for name, module in names.items()})


_made = {}


def model_of(hf, name, **changes):
    """Return a model in float32 in host memory, made once for each kind."""
    key = name, *sorted(changes.items())
    if key not in _made:
        hf.torch.manual_seed(0)
        if name == "t5":
            config = hf.library.T5Config(**_T5)
            model = hf.library.T5ForConditionalGeneration(config)
        else:
            of_model, of_config, more = DECODERS[name]
            config = getattr(hf.library, of_config)(**{**_SIZES, **more, **changes})
            model = getattr(hf.library, of_model)(config)
        if name == "gpt-oss":
            for layer in model.model.layers:  # sinks that draw half of the weight
                hf.torch.nn.init.normal_(layer.self_attn.sinks, 2.0, 1.0)
        _made[key] = model.eval()
    return _made[key]


def asks_for_attention(model):
    """Say whether a model's layers look attention up; T5's did not in Transformers 5.0."""
    layer = sys.modules[type(model).__module__].T5Attention
    return "ALL_ATTENTION_FUNCTIONS" in getsource(layer)


def take(hf, model, attention):
    """Give a model an attention, and each model in it.

    Encoder and decoder of a T5 have a copy each of its configuration, which the model's own method
    did not reach in Transformers 5.17.
    """
    for part in model.modules():
        if isinstance(part, hf.library.PreTrainedModel):
            part.set_attn_implementation(attention)


def prompt(hf, batch=2, tokens=21, seed=0):
    words = np.random.default_rng(seed).integers(2, WORDS, size=(batch, tokens))
    return hf.torch.from_numpy(words)


def padded(hf, side, batch=2, tokens=21, padding=5):
    """Return ids and their attention_mask; the first sequence is padded."""
    ids = prompt(hf, batch, tokens)
    mask = hf.torch.ones_like(ids)
    where = {"none": slice(0), "left": slice(padding), "right": slice(tokens - padding, tokens)}
    mask[0, where[side]] = 0
    return ids.masked_fill(mask == 0, PAD), mask


def logits(hf, model, attention, ids, **options):
    """Return the logits of a model with an attention, float64 [batch, token, word]."""
    take(hf, model, attention)
    with hf.torch.inference_mode():
        return model(ids, **options).logits.double().numpy()


def keyword(hf):
    """Return what Transformers calls the argument for caches, which has changed since 5.0."""
    from inspect import signature

    names = signature(hf.library.LlamaForCausalLM.forward).parameters
    return "past_key_values" if "past_key_values" in names else "cache"


def relative_l1(found, exact):
    return float(abs(found - exact).sum() / abs(exact).sum())
