"""Calls of `cuattn.torch` inside `torch.cuda.graph`: captured once, replayed with new inputs.

Their workspace is memory of PyTorch's, which a graph keeps for itself, so nothing is particular but
that the function has to have run once before: kernels cannot be loaded during capture. Needs a GPU.

    pip install '.[torch]'
    python examples/torch_graph.py
"""

import torch

from cuattn.torch import attention


def step(q, k, v):
    for _ in range(8):  # as many layers
        q = attention(q, k, v, scheme="int8-block")
    return q


def main():
    if not torch.cuda.is_available():
        raise SystemExit("torch_graph.py needs a GPU that PyTorch can use: there is none here")
    torch.manual_seed(0)
    shape = (1, 8, 512, 64)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.float16) for _ in range(3))
    step(q, k, v)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = step(q, k, v)

    q.copy_(torch.randn_like(q))
    graph.replay()
    same = torch.equal(o, step(q, k, v))
    print(f"replayed and eager are {'the same' if same else 'different'}")
    for name, run in (("eager", lambda: step(q, k, v)), ("graph", graph.replay)):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(50):
            run()
        end.record()
        end.synchronize()
        print(f"{name}  {begin.elapsed_time(end) / 50 * 1e3:7.1f} us for 8 layers of 512 tokens")


if __name__ == "__main__":
    main()
