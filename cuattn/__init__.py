"""INT8 attention for NVIDIA GPUs, and exactly how wrong it is.

`attention` takes Q, K and V of CuPy, PyTorch, JAX or NumPy; `quantize` makes an operand once for
many calls; `measure_error` compares a scheme with float64. The definitions, in NumPy, are in
`cuattn.reference`.
"""

from __future__ import annotations

from pathlib import Path as _Path

# In a checkout kernels_cu/ and reference/ lie beside this package, not in it.
__path__ = [
    *__path__,
    *(str(_Path(p).parent) for p in __path__ if not (_Path(p) / "kernels_cu").is_dir()),
]

from .attention import attention
from .errors import ArgumentError, CompileError, CuattnError, NoGPUError, UnsupportedError
from .measure import ErrorReport, measure_error
from .quantize import quantize
from .quantized import QuantizedTensor
from .scheme import PRESETS, Scheme

__all__ = [
    "PRESETS",
    "ArgumentError",
    "CompileError",
    "CuattnError",
    "ErrorReport",
    "NoGPUError",
    "QuantizedTensor",
    "Scheme",
    "UnsupportedError",
    "__version__",
    "attention",
    "measure_error",
    "quantize",
]

__version__ = "0.1.0"
