"""A model of PyTorch as it is, whose attention cuattn answers for as long as a `with` lasts.

`cuattn.torch.replace` finds the calls of `scaled_dot_product_attention` that a model makes, gives
each layer its scheme, and counts what cuattn answered and why it did not answer others.

    pip install '.[torch]'
    python examples/torch_sdpa.py
"""

import argparse

import torch
from torch import nn

from cuattn import PRESETS
from cuattn.torch import replace

__all__ = ["compare", "small_encoder"]


def small_encoder(layers=4, width=256, dtype=torch.float32, device="cpu"):
    """Return an encoder of PyTorch's own layers, with heads of 64 channels and random weights."""
    layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    # In training mode: for inference these layers have a path of their own without such calls.
    return encoder.to(device=device, dtype=dtype).requires_grad_(False).train()


def compare(model, x, schemes, leave_out=()):
    """Return of each scheme the relative L1 error of a model's output, and the counts of calls."""
    exact = model(x).double()
    results = {}
    for scheme in schemes:
        with replace(model, scheme, leave_out=leave_out) as replaced:
            found = model(x).double()
        error = ((found - exact).abs().sum() / exact.abs().sum()).item()
        results[scheme] = error, replaced.calls
    return results


def main(argv=None):
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096 if on_gpu else 192)
    parser.add_argument("--schemes", nargs="+", choices=PRESETS)
    parser.add_argument("--leave-out", nargs="*", default=["layers.0"])
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    where = {"dtype": torch.float16, "device": "cuda"} if on_gpu else {}
    model = small_encoder(**where)
    x = torch.randn(1, args.tokens, 256, **where)
    schemes = args.schemes or ["int8", "int8-block", "int8-fast", "fp16"]
    for scheme, (error, calls) in compare(model, x, schemes, args.leave_out).items():
        print(f"{scheme:12}{100 * error:6.3f} % off PyTorch; {calls}")


if __name__ == "__main__":
    main()
