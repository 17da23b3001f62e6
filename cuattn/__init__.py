"""INT8 attention for NVIDIA GPUs, and exactly how wrong it is.

`attention` takes Q, K and V of CuPy, PyTorch, JAX or NumPy; `quantize` and `quantize_kv` make
operands once for many calls and `block_mask` a mask, `merge_states` merges results for several sets
of keys, and a `KVCache` holds keys and values of sequences that grow; `measure_error` compares a
scheme with float64, and `choose_scheme` and `plan_schemes` find the fastest whose error is within a
bound. The definitions, in NumPy, are in `cuattn.reference`.
"""

from __future__ import annotations

from .arrays.device import gpu_available
from .attention import attention
from .auto.choose import AutoChoice, auto_scheme
from .block_mask import block_mask
from .choice.choose import Choice, choose_scheme
from .choice.measure import CacheErrorReport, ErrorReport, measure_error
from .choice.scheme_plan import SchemePlan, plan_schemes
from .choice.twin_search import TwinSearch, search_twin
from .errors import ArgumentError, CompileError, CuattnError, NoGPUError, UnsupportedError
from .kv.cache import KVCache
from .kv.rope import Rope
from .latent.cache import LatentKVCache
from .merging import merge_states
from .operands.block_mask import BlockMask
from .operands.quantized import QuantizedTensor
from .operands.score_mod import MaskMod, ScoreMod
from .presets import PRESETS
from .quantize import quantize, quantize_kv
from .scheme import Scheme

__all__ = [
    "PRESETS",
    "ArgumentError",
    "AutoChoice",
    "BlockMask",
    "CacheErrorReport",
    "Choice",
    "CompileError",
    "CuattnError",
    "ErrorReport",
    "KVCache",
    "LatentKVCache",
    "MaskMod",
    "NoGPUError",
    "QuantizedTensor",
    "Rope",
    "Scheme",
    "SchemePlan",
    "ScoreMod",
    "TwinSearch",
    "UnsupportedError",
    "__version__",
    "attention",
    "auto_scheme",
    "block_mask",
    "choose_scheme",
    "gpu_available",
    "measure_error",
    "merge_states",
    "plan_schemes",
    "quantize",
    "quantize_kv",
    "search_twin",
]

__version__ = "0.1.0"


def __dir__() -> list[str]:
    """Show what a user meets; the folders below are internal, but for `cuattn.reference`."""
    return sorted([*__all__, "reference"])
