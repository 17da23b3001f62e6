"""SageAttention: release 1, made with Triton, and release 2, made with CUDA.

Both are imported as `sageattention`, so only one of them is installed. Baselines name a submodule
that the other one lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from ..cases import Case
from ..ours import Run

# What the names of release 2's attention kernels begin with, in all of its extensions.
KERNEL = "qk_int8_sv_"


def prepare_1(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind release 1 to PyTorch tensors [B, H, N, D] in float16."""
    from sageattention import core

    # sageattn() subtracts K's mean in place; the others must not see that.
    k = k.clone()

    def end_to_end() -> Any:
        return core.sageattn(q, k, v, is_causal=case.is_causal)

    if case.head_dim == 96:
        # Has kernels of its own, which are timed with the quantization only.
        return Run(kernel=None, end_to_end=end_to_end)
    attend = core.attn_true if case.is_causal else core.attn_false
    q8, q_scale, k8, k_scale = core.per_block_int8(q, k - k.mean(dim=2, keepdim=True))
    return Run(
        kernel=lambda: attend(q8, k8, v, q_scale, k_scale, output_dtype=q.dtype),
        end_to_end=end_to_end,
    )


def prepare_2_fp16(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind release 2 with P V in float16 to PyTorch tensors [B, H, N, D] in float16."""
    from sageattention import core

    return _bound(core, core.sageattn_qk_int8_pv_fp16_cuda, q, k, v, is_causal=case.is_causal)


def prepare_2_fp8(q: Any, k: Any, v: Any, case: Case) -> Run:
    """Bind release 2 with P V in FP8, by the function that it has for the GPU."""
    import torch
    from sageattention import core

    major, minor = torch.cuda.get_device_capability(q.device)
    options: dict[str, Any] = {"is_causal": case.is_causal}
    function = core.sageattn_qk_int8_pv_fp8_cuda
    if (major, minor) == (9, 0):
        function = core.sageattn_qk_int8_pv_fp8_cuda_sm90
    elif major == 12:
        # As `sageattn` itself does there: the scales of threads are for the older GPUs.
        options["qk_quant_gran"] = "per_warp"
    return _bound(core, function, q, k, v, **options)


def _bound(core: Any, function: Any, q: Any, k: Any, v: Any, **options: Any) -> Run:
    """Bind a function of release 2, which quantizes and attends in one.

    Its attention kernel by itself is what it has launched last, with the very same arguments: one
    of them is the memory of the output that the function returned.
    """
    end_to_end = partial(function, q, k, v, **options)
    launches: list[Callable[[], object]] = []
    extensions = {
        name: extension
        for name, extension in vars(core).items()
        if isinstance(extension, ModuleType)
        and any(other.startswith(KERNEL) for other in dir(extension))
    }
    vars(core).update({name: _Recorded(x, launches) for name, x in extensions.items()})
    try:
        o = end_to_end()
    finally:
        vars(core).update(extensions)
    if not launches:
        return Run(kernel=None, end_to_end=end_to_end)
    launch = launches[-1]

    def kernel() -> Any:
        launch()
        return o

    return Run(kernel=kernel, end_to_end=end_to_end)


class _Recorded:
    """An extension of release 2 whose launches of attention kernels are appended to a list."""

    def __init__(self, extension: ModuleType, launches: list[Callable[[], object]]) -> None:
        self._extension = extension
        self._launches = launches

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._extension, name)
        if not name.startswith(KERNEL):
            return found

        def launch(*args: Any, **options: Any) -> Any:
            self._launches.append(partial(found, *args, **options))
            return found(*args, **options)

        return launch
