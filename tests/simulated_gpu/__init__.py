"""A GPU in host memory: kernels that do with NumPy what their parameter structs ask for.

What is simulated is the contract between launch code and kernels: addresses, strides, sizes, grids
and the order of launches. The arithmetic is the reference's.
"""

from .device import GPU, NUM_SMS, gpu_of
from .gpu import SimulatedGPU
from .launches import SimulatedLaunches
from .memory import garbage
from .tensor_maps import SimulatedDriver, mapped

__all__ = [
    "GPU",
    "NUM_SMS",
    "SimulatedDriver",
    "SimulatedGPU",
    "SimulatedLaunches",
    "garbage",
    "gpu_of",
    "mapped",
]
