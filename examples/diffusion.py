"""A diffusion transformer of diffusers: what becomes of errors in all layers and steps.

Takes a small Flux with random weights through the steps of a rectified flow from noise to a latent
image, and compares the latents that schemes arrive at with that of PyTorch's attention.
`cuattn.diffusers.attach` is all that a model needs; of a pipeline it is `pipe.transformer` or
`pipe.unet`.

    pip install '.[diffusers]'
    python examples/diffusion.py
"""

import argparse
import time
from contextlib import nullcontext

import torch
from diffusers import FluxTransformer2DModel

from cuattn import PRESETS
from cuattn.diffusers import attach

__all__ = ["sample", "small_flux"]

HEAD_DIM = 64


def small_flux(heads=2, layers=2, dtype=torch.float32, device="cpu"):
    """Return a Flux with random weights, whose attention chooses among tokens."""
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=heads,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(16, 24, 24),
    )
    for name, weight in model.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight")):
            torch.nn.init.constant_(weight, 2.0)  # logits then have a standard deviation of 4
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def sample(model, noise, text, steps):
    """Take noise [token, channel] to a latent image in equal steps of time, from 1 to 0."""
    side = round(len(noise) ** 0.5)
    where = {"device": noise.device, "dtype": noise.dtype}
    rows, columns = (i.flatten() for i in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    given = {
        "encoder_hidden_states": text[None],
        "pooled_projections": text[:1],
        "img_ids": torch.stack([0 * rows, rows, columns], 1).to(**where),
        "txt_ids": torch.zeros(len(text), 3, **where),
        "return_dict": False,
    }
    x = noise[None]
    for step in range(steps):
        at = torch.full((1,), 1 - step / steps, **where)
        x = x - model(x, timestep=at, **given)[0] / steps
    return x[0]


def main(argv=None):
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128 if on_gpu else 16, help="of the image")
    parser.add_argument("--steps", type=int, default=20 if on_gpu else 3)
    parser.add_argument("--heads", type=int, default=16 if on_gpu else 2)
    parser.add_argument("--layers", type=int, default=8 if on_gpu else 2)
    parser.add_argument("--schemes", nargs="+", choices=PRESETS)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    where = {"dtype": torch.float16, "device": "cuda"} if on_gpu else {}
    model = small_flux(args.heads, args.layers, **where)
    noise, text = torch.randn(args.side**2, 16, **where), torch.randn(32, 64, **where)
    schemes = args.schemes or ["int8", "int8-block", "int8-fast", "int-flash", "fp16"]
    print(f"{args.side**2} tokens, {2 * args.layers} layers, {args.steps} steps")
    print(f"{'':12}{'latent, L1 %':>14}" + f"{'ms a step':>11}" * on_gpu)
    for scheme in ["PyTorch", *schemes]:
        with nullcontext() if scheme == "PyTorch" else attach(model, scheme, fallback=False):
            sample(model, noise, text, 1)  # loads kernels
            begun = time.perf_counter()
            found = sample(model, noise, text, args.steps).double()
            if scheme == "PyTorch":
                exact = found
            error = ((found - exact).abs().sum() / exact.abs().sum()).item()  # waits for the GPU
            ms = 1e3 * (time.perf_counter() - begun) / args.steps
        print(f"{scheme:12}{100 * error:14.3f}" + f"{ms:11.2f}" * on_gpu)


if __name__ == "__main__":
    main()
