"""A call of cuattn inside `torch.cuda.graph`: captured once, replayed with new inputs. Needs a GPU.

A graph keeps addresses. PyTorch's memory for a graph stays its own, but the workspace of a call is
CuPy's: while a call is captured it comes from a pool that lives as long as the graph. Memory must
be there before the capture begins, so the same stream runs the call once before.

    python examples/torch_graph.py
"""

import cupy
import torch

import cuattn

__all__ = ["Captured"]


class Captured:
    """A function of tensors as a graph.

    Parameters
    ----------
    function : callable
        Takes tensors and returns a tensor; it may call cuattn any number of times.
    *inputs : Tensor
        Later calls take tensors of the same shapes, types and device.
    """

    def __init__(self, function, *inputs):
        self._inputs = [x.clone() for x in inputs]
        self._pool = cupy.cuda.MemoryPool()
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with cupy.cuda.using_allocator(self._pool.malloc):
            with torch.cuda.stream(stream):
                function(*self._inputs)  # loads kernels and fills the pool
            torch.cuda.synchronize()
            with torch.cuda.graph(self._graph, stream=stream):
                self._output = function(*self._inputs)

    def __call__(self, *inputs):
        """Return the output, which the next call writes again."""
        for to, x in zip(self._inputs, inputs, strict=True):
            to.copy_(x)
        self._graph.replay()
        return self._output


def main():
    torch.manual_seed(0)
    shape = (1, 8, 512, 64)
    first, second = (
        [torch.randn(shape, device="cuda", dtype=torch.float16) for _ in "qkv"] for _ in range(2)
    )

    def step(q, k, v):
        for _ in range(8):  # as many layers
            q = cuattn.attention(q, k, v, scheme="int8-block")
        return q

    captured = Captured(step, *first)
    same = all(torch.equal(captured(*given), step(*given)) for given in (first, second, first))
    print(f"replayed and eager are {'the same' if same else 'different'}")
    for name, run in (("eager", step), ("graph", captured)):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(50):
            run(*second)
        end.record()
        end.synchronize()
        print(f"{name}  {begin.elapsed_time(end) / 50 * 1e3:7.1f} us for 8 layers of 512 tokens")


if __name__ == "__main__":
    main()
