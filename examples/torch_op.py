"""cuattn as an operator of PyTorch, which `torch.compile` takes into its graph as it is.

`cuattn.torch.attention` has a fake implementation, which says what shape comes out. So the compiler
need not look inside, where it would find memory addresses and a launch, and nothing breaks the
graph.

    pip install '.[torch]'
    python examples/torch_op.py
"""

import argparse

import torch
from torch import nn

from cuattn.torch import attention

__all__ = ["Block"]


class Block(nn.Module):
    """Attention as models have it, with projections around it."""

    def __init__(self, heads, head_dim, scheme="int8"):
        super().__init__()
        width = heads * head_dim
        self.heads, self.scheme = heads, scheme
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x):
        """Return x [batch, token, width] and what its tokens read of those before them."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        o = attention(q, k, v, is_causal=True, scheme=self.scheme, layout="NHD")
        return x + self.out(o.flatten(2))


def main(argv=None):
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048 if on_gpu else 128)
    parser.add_argument("--scheme", default="int8")
    # Inductor generates code, for which it needs a C++ compiler on the host and Triton on a GPU.
    parser.add_argument("--backend", default="inductor" if on_gpu else "aot_eager")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    where = {"device": "cuda", "dtype": torch.float16} if on_gpu else {}
    block = Block(4, 64, args.scheme).to(**where)
    x = torch.randn(1, args.tokens, 256, **where)
    with torch.inference_mode():
        eager = block(x)
        compiled = torch.compile(block, fullgraph=True, backend=args.backend)(x)
    apart = (compiled - eager).abs().max().item()
    print(f"one graph, by {args.backend}; compiled and eager differ by at most {apart:.1e}")


if __name__ == "__main__":
    main()
