"""The libraries that cuattn.bench compares with, as far as it calls them, on NumPy's arrays.

Signatures, layouts and masks are those of the libraries' documentation: what is passed otherwise is
an error here too. Functions return modules by name.
"""

from .cudnn_graph import cudnn
from .flash_attention import flash_attention_2, flash_attention_3, flash_attention_4
from .flash_infer import flashinfer
from .int8 import comfy_kitchen, sageattention_1, sageattention_2
from .pytorch import attended, pytorch

__all__ = [
    "attended",
    "comfy_kitchen",
    "cudnn",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flashinfer",
    "pytorch",
    "sageattention_1",
    "sageattention_2",
]
