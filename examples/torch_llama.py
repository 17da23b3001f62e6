"""A Transformers model with cuattn's attention, and what becomes of its hidden states.

Transformers looks attention up by name. `register` adds a name for a scheme, "cuattn-int8" for
example, which `model.set_attn_implementation` or `from_pretrained(attn_implementation=...)` take.
Where there is a mask, for padding say, or a single query, for which it does not pay to quantize all
keys (`cuattn.KVCache` does so once), and where gradients are wanted, the model's calls go to
PyTorch's function instead, as with "sdpa". Under `torch.compile` Transformers mostly makes a mask
even where a causal one is all there is, so a compiled model gains little.

Compares schemes on a small Llama with random weights, layer by layer: the attention alone, on Q, K
and V of the unquantized model, and the hidden states behind each layer, where errors of all layers
before it have come together.

    pip install transformers
    python examples/torch_llama.py
"""

import argparse
from contextlib import contextmanager

import torch
from torch_sdpa import attend, refusal
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cuattn import PRESETS

__all__ = ["compare", "register", "small_llama"]

# Arguments that some models pass, and that PyTorch's function is left to deal with.
_OTHERS = ("position_bias", "cache")
# Those that change what is computed, and that PyTorch's function leaves out of account too.
_UNKNOWN = ("softcap", "s_aux", "sinks")


def register(scheme="int8"):
    """Make a scheme known to Transformers, and return the name that it has there."""

    def forward(
        module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **more
    ):
        for name in _UNKNOWN:
            if more.get(name) is not None:
                raise ValueError(f"cuattn has no {name}: this model needs another attention")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        tensors = (query, key, value)
        options = {"is_causal": causal, "scale": scaling, "enable_gqa": True}
        others = query.shape[2] == 1 or any(more.get(x) is not None for x in _OTHERS)
        if others or refusal(*tensors, attention_mask, dropout, **options) is not None:
            options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
            return sdpa_attention_forward(module, *tensors, attention_mask, **options, **more)
        o = attend(*tensors, causal, scaling, scheme)
        return o.transpose(1, 2).contiguous(), None

    # Whatever has "flash" in its name Transformers takes for a kernel of FlashAttention's.
    name = f"cuattn-{scheme.replace('flash', 'fa')}"
    AttentionInterface.register(name, forward)
    # As for "sdpa": no mask is made where a causal one is all there is.
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def small_llama(layers=4, width=256, kv_heads=2, dtype=torch.float32, device="cpu"):
    """Return a Llama of heads of 64 channels, with random weights that let attention choose."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        # Logits of attention then have a standard deviation of 2.
        initializer_range=(2 / width) ** 0.5,
    )
    return LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


@torch.inference_mode()
def compare(model, ids, schemes):
    """Measure what schemes do to a model.

    Returns
    -------
    dict
        Of each scheme the relative L1 errors "attention" and "hidden", lists of one for each layer,
        and "logits", 1 - cosine similarity. The model's last norm is in the last of "hidden".
    """
    given = []
    with _recording(model, given):
        exact = model(ids, output_hidden_states=True)
    results = {}
    for scheme in schemes:
        name = register(scheme)
        alone = [
            _relative_l1(AttentionInterface()[name](module, *qkv, None, **options)[0], wanted)
            for module, qkv, options, wanted in given
        ]
        model.set_attn_implementation(name)
        found = model(ids, output_hidden_states=True)
        hidden = zip(found.hidden_states[1:], exact.hidden_states[1:], strict=True)
        logits = [x.double().flatten() for x in (found.logits, exact.logits)]
        results[scheme] = {
            "attention": alone,
            "hidden": [_relative_l1(*pair) for pair in hidden],
            "logits": 1 - torch.cosine_similarity(*logits, dim=0).item(),
        }
    return results


@contextmanager
def _recording(model, into):
    """Append module, Q, K and V, options and result of every attention of a model to a list."""

    def forward(module, query, key, value, attention_mask, scaling=None, **options):
        tensors = (query, key, value)
        o, _ = sdpa_attention_forward(module, *tensors, attention_mask, scaling=scaling, **options)
        into.append((module, tensors, {"scaling": scaling}, o))
        return o, None

    AttentionInterface.register("recorded-sdpa", forward)
    AttentionMaskInterface.register("recorded-sdpa", sdpa_mask)
    model.set_attn_implementation("recorded-sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _relative_l1(found, exact):
    found, exact = found.double(), exact.double()
    return ((found - exact).abs().sum() / exact.abs().sum()).item()


def main(argv=None):
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048 if on_gpu else 192)
    parser.add_argument("--layers", type=int, default=8 if on_gpu else 4)
    parser.add_argument("--width", type=int, default=1024 if on_gpu else 256)
    parser.add_argument("--schemes", nargs="+", choices=PRESETS)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    where = {"dtype": torch.float16, "device": "cuda"} if on_gpu else {}
    model = small_llama(args.layers, args.width, **where)
    ids = torch.randint(model.config.vocab_size, (1, args.tokens), device=model.device)
    schemes = args.schemes or ["int8", "int8-block", "int8-fast", "int8-fp16", "int-flash", "fp16"]
    results = compare(model, ids, schemes)

    print(f"{args.tokens} tokens, {'on the GPU' if on_gpu else 'emulated in NumPy: no GPU here'}")
    layers = "".join(f"{f'layer {i}':>9}" for i in range(args.layers))
    for what, title in (("attention", "attention alone"), ("hidden", "hidden states behind")):
        last = "   logits, 1 - cosine" if what == "hidden" else ""
        print(f"\n{f'{title}, %':24}{layers}{last}")
        for scheme, result in results.items():
            errors = "".join(f"{100 * error:9.3f}" for error in result[what])
            print(f"{scheme:24}{errors}" + (f"{result['logits']:12.1e}" if last else ""))


if __name__ == "__main__":
    main()
