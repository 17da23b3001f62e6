"""FP8 attention of which the caller quantizes: to E4M3 in PyTorch, and cuDNN's by its graph API.

cuDNN's has E4M3 in and out, and one scale for each tensor.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from ..cases import Case
from ..ours import Run

E4M3_MAX = 448.0
# The inverse of a smaller range would overflow float16.
SMALLEST_RANGE = 2.0**-7

# P lies in [0, 1]; times this, E4M3 has normal numbers down to 2^-14. FlashAttention-3 does so too.
P_SCALE = 256.0

OPERANDS = ("q", "k", "v")
SCALES = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
AMAXES = ("amax_s", "amax_o")


def quantize_e4m3(x: Any, codes: Any, axes: tuple[int, ...] | None = None) -> Any:
    """Write the codes of a float16 tensor, and return what they are to be multiplied by.

    Parameters
    ----------
    x : Tensor of float16
    codes : Tensor of float8_e4m3fn
        Of the same shape; written.
    axes : tuple of int, optional
        Those that share a scale; by default all.

    Returns
    -------
    Tensor of float32
        As many axes as `x`, of length 1 where they share a scale.
    """
    import torch

    largest = torch.linalg.vector_norm(x, math.inf, dim=axes, keepdim=True)
    scale = (E4M3_MAX / largest.clamp(min=SMALLEST_RANGE).float()).half()
    codes.copy_(x * scale)
    return scale.float().reciprocal()


def cudnn_fp8(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind the kernel to PyTorch tensors [B, H, N, D] in float16.

    The kernel's own output stays in its buffer: CuPy has no type for it.
    """
    import cudnn
    import torch

    graph, tensors = _graph(case)
    handle = _handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)

    def scalar(value: float) -> Any:
        return torch.full((1, 1, 1, 1), value, dtype=torch.float32, device=q.device)

    operands = {"q": q, "k": k, "v": v}
    sized = operands | {"o": q}
    buffers = {x: torch.empty_like(like, dtype=torch.float8_e4m3fn) for x, like in sized.items()}
    buffers |= {name: scalar(1.0) for name in (*SCALES, *AMAXES)}
    buffers["scale_s"].fill_(P_SCALE)
    buffers["descale_s"].fill_(1 / P_SCALE)
    pack = {tensors[name]: buffer for name, buffer in buffers.items()}
    workspace = torch.empty(graph.get_workspace_size(), dtype=torch.uint8, device=q.device)
    out = torch.empty_like(q)

    def quantize() -> None:
        for name, x in operands.items():
            buffers[f"descale_{name}"].copy_(quantize_e4m3(x, buffers[name]))
        # The output averages rows of V, so it stays within V's range.
        torch.reciprocal(buffers["descale_v"], out=buffers["scale_o"])

    def kernel() -> None:
        graph.execute(pack, workspace, handle=handle)

    def end_to_end() -> Any:
        quantize()
        kernel()
        return out.copy_(buffers["o"]).mul_(buffers["descale_v"])

    quantize()
    return Run(kernel=kernel, end_to_end=end_to_end)


@cache
def _handle() -> Any:
    import cudnn

    return cudnn.create_handle()


@cache
def _graph(case: Case) -> tuple[Any, dict[str, Any]]:
    """Build the graph of a case; return it with its tensors by name."""
    import cudnn

    e4m3, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        io_data_type=e4m3,
        intermediate_data_type=fp32,
        compute_data_type=fp32,
        handle=_handle(),
    )
    one = {"dim": [1, 1, 1, 1], "stride": [1, 1, 1, 1]}
    sizes = {"q": _packed(case.batch, case.num_q_heads, case.seqlen_q, case.head_dim)}
    sizes["k"] = sizes["v"] = _packed(case.batch, case.num_kv_heads, case.seqlen_kv, case.head_dim)
    tensors = {x: graph.tensor(name=x, data_type=e4m3, **sizes[x]) for x in OPERANDS}
    tensors |= {x: graph.tensor(name=x, data_type=fp32, **one) for x in SCALES}
    # On Hopper its causal mask is aligned at the first query and key, which a square case has as
    # well at the last. This argument is the one that every release knows.
    o, _, *amaxes = graph.sdpa_fp8(
        **tensors,
        is_inference=True,
        attn_scale=1 / math.sqrt(case.head_dim),
        use_causal_mask=case.is_causal,
        name="sdpa",
    )
    tensors |= {"o": o, **dict(zip(AMAXES, amaxes, strict=True))}
    # An output in half precision is for Blackwell only.
    for name, size, data_type in (("o", sizes["q"], e4m3), *((x, one, fp32) for x in AMAXES)):
        output = tensors[name].set_output(True)
        output.set_dim(size["dim"]).set_stride(size["stride"]).set_data_type(data_type)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    return graph, tensors


def _packed(batch: int, heads: int, seqlen: int, head_dim: int) -> dict[str, list[int]]:
    """Return the sizes and strides of contiguous [B, H, N, D]."""
    return {
        "dim": [batch, heads, seqlen, head_dim],
        "stride": [heads * seqlen * head_dim, seqlen * head_dim, head_dim, 1],
    }
