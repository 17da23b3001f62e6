"""A model of Transformers with cuattn's attention and caches, and what becomes of its results.

`cuattn.transformers.register` gives a scheme a name that `model.set_attn_implementation` or
`from_pretrained(attn_implementation=...)` take, and a `cuattn.transformers.Cache` holds keys and
values of 8 or 4 bits for `model.generate`. On a small Llama with random weights this compares
schemes by the hidden states behind each layer, where errors of all layers before it have come
together, and caches by the logits of tokens that are decoded one by one.

    pip install '.[transformers]'
    python examples/torch_llama.py
"""

import argparse
from inspect import signature

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from cuattn import PRESETS
from cuattn.transformers import Cache, register

__all__ = ["compare_caches", "compare_schemes", "small_llama"]

# Older versions of Transformers call the argument "past_key_values".
_NEW = "cache" in signature(LlamaForCausalLM.forward).parameters
CACHE = "cache" if _NEW else "past_key_values"


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
def compare_schemes(model, ids, schemes):
    """Return relative L1 errors of hidden states, of each scheme a list of one for each layer.

    The model's last norm is in the last of them.
    """
    model.set_attn_implementation("sdpa")
    exact = model(ids, output_hidden_states=True).hidden_states[1:]
    errors = {}
    for scheme in schemes:
        model.set_attn_implementation(register(scheme).name)
        found = model(ids, output_hidden_states=True).hidden_states[1:]
        errors[scheme] = [_relative_l1(*pair) for pair in zip(found, exact, strict=True)]
    return errors


@torch.inference_mode()
def compare_caches(model, ids, prompt_tokens, kinds):
    """Return relative L1 errors of logits, and bytes, of caches of 8 or 4 bits.

    A prompt is followed by the other tokens one by one.
    """
    model.set_attn_implementation("sdpa")
    exact = _decoded(model, ids, prompt_tokens, DynamicCache(config=model.config))
    model.set_attn_implementation(register("fp16").name)
    results = {}
    for bits in kinds:
        cache = Cache(model.config, ids.shape[1], bits=bits)
        found = _decoded(model, ids, prompt_tokens, cache)
        results[bits] = _relative_l1(found, exact), cache.nbytes
    return results


def _decoded(model, ids, prompt_tokens, cache):
    given = {CACHE: cache}
    model(ids[:, :prompt_tokens], **given)
    logits = [model(ids[:, i : i + 1], **given).logits for i in range(prompt_tokens, ids.shape[1])]
    return torch.cat(logits, 1)


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

    print(f"{args.tokens} tokens, {'on the GPU' if on_gpu else 'emulated in NumPy: no GPU here'}")
    layers = "".join(f"{f'layer {i}':>9}" for i in range(args.layers))
    print(f"\n{'hidden states behind, %':24}{layers}")
    for scheme, errors in compare_schemes(model, ids, schemes).items():
        print(f"{scheme:24}" + "".join(f"{100 * error:9.3f}" for error in errors))
    print(f"\n{'tokens one by one':24}{'logits, %':>9}{'bytes':>10}")
    prompt_tokens = args.tokens - min(16, args.tokens // 2)
    for bits, (error, nbytes) in compare_caches(model, ids, prompt_tokens, [8, 4]).items():
        print(f"{f'cache of {bits} bits':24}{100 * error:9.3f}{nbytes:10}")


if __name__ == "__main__":
    main()
