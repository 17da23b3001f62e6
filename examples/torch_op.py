"""cuattn as an operator of PyTorch, which `torch.compile` takes into its graph as it is.

An operator is a name with a schema, a function that computes it and one that says what shape comes
out. With the latter the compiler need not look inside, so that nothing breaks the graph: it would
find memory addresses and a launch there. `torch_sdpa.py` and `torch_llama.py` use the operator.

    python examples/torch_op.py
"""

import argparse

import torch
from torch import Tensor, nn

import cuattn

__all__ = ["Block", "attention"]

# A call's workspace is CuPy's memory, which the graphs of mode="reduce-overhead" would not keep;
# torch_graph.py shows how to capture a call. Before PyTorch had this tag `custom_op` took none.
_TAGS = {"tags": [torch.Tag.cudagraph_unsafe]} if hasattr(torch.Tag, "cudagraph_unsafe") else {}


@torch.library.custom_op("cuattn::attention", mutates_args=(), **_TAGS)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    scheme: str = "int8",
) -> Tensor:
    """Return `cuattn.attention` of tensors [batch, head, token, head_dim]; it has no gradient."""
    out = torch.empty_like(q)
    given = (x.detach() for x in (q, k, v))
    return cuattn.attention(*given, is_causal=is_causal, scale=scale, scheme=scheme, out=out)


@attention.register_fake
def _(q, k, v, is_causal=False, scale=None, scheme="int8"):
    return torch.empty_like(q)


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
        batch, tokens, width = x.shape
        packed = self.qkv(x).view(batch, tokens, 3, self.heads, -1)
        q, k, v = (part.transpose(1, 2) for part in packed.unbind(2))
        o = attention(q, k, v, is_causal=True, scheme=self.scheme)
        return x + self.out(o.transpose(1, 2).reshape(batch, tokens, width))


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
