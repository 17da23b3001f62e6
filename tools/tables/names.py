"""What tables call the presets and the baselines."""

from __future__ import annotations

from cuattn.bench.baselines import registry as baselines
from cuattn.presets import PRESETS

# What the presets that docs/results.md shows are; in brackets the papers that it links.
ABOUT = {
    "int8": "**default**: INT8, alike keys share scales; P against its block's maximum; smoothed",
    "int8-token": "INT8 Q, K, V per token, the rest as `int8`, nothing rotated",
    "int8-block": "for speed: K per 128 keys, V per channel, the rest as `int8`",
    "int8-fast": "the fewest instructions: as `int8-block`, P against the running maximum",
    "int8-fp8": "INT8 Q Kᵀ, FP8 P V, as [SageAttention2]'s 8-bit products",
    "int8-fp16": "INT8 Q Kᵀ per token, K smoothed; float16 P V, as [SageAttention]",
    "int8-two-term": "as `int8-token`, P as the sum of two bytes",
    "int4": "INT4 Q, K, smoothed as [SageAttention2] does; V and P as `int8-block`",
    "int-flash": "INT8 throughout, one scale for V, as published: [INT-FlashAttention]",
    "int-flash-half": "INT8 Q Kᵀ, float16 P V, as published: [INT-FlashAttention]",
    "fp8": "FP8 throughout, one scale for a head, as [FlashAttention-3]",
    "fp16": "nothing quantized: [FlashAttention-2], the baseline",
}
# The rows of README.md's table, and when to take them.
SUMMARY = {
    "int8": "the default, for inputs of which nothing is known",
    "int8-block": "faster, where no token of V stands out",
    "int8-fast": "the fastest on long sequences, with the same reservation",
    "fp16": "nothing quantized",
    "pytorch-cudnn": "for comparison: the fastest FP16 in PyTorch",
    "cudnn-fp8": "for comparison: FP8 in and out",
}
BASELINES = {
    "pytorch-flash": "PyTorch, FlashAttention-2, float16",
    "pytorch-cudnn": "PyTorch, cuDNN, float16",
    "flash-attention-2": "FlashAttention-2, float16",
    "flash-attention-3": "FlashAttention-3, float16",
    "flash-attention-3-fp8": "FlashAttention-3, FP8 in",
    "flash-attention-4": "FlashAttention-4, float16",
    "flashinfer": "FlashInfer, float16",
    "cudnn-fp8": "cuDNN, FP8 in and out",
    "sageattention-1": "SageAttention 1, INT8 Q Kᵀ",
    "sageattention-2-fp16": "SageAttention 2, INT8 Q Kᵀ, float16 P V",
    "sageattention-2-fp8": "SageAttention 2, INT8 Q Kᵀ, FP8 P V",
    "comfy-kitchen": "comfy-kitchen, full INT8",
}
# Of those, what PyTorch has and the extra `baselines` installs: a record without them says so.
PEERS = ("pytorch-flash", "pytorch-cudnn", "cudnn-fp8", "sageattention-1", "comfy-kitchen")
# The same where there is little room.
SHORT = {
    "pytorch-flash": "PyTorch FlashAttention-2, FP16",
    "pytorch-cudnn": "cuDNN FP16",
    "flash-attention-2": "FlashAttention-2, FP16",
    "flash-attention-3": "FlashAttention-3, FP16",
    "flash-attention-3-fp8": "FlashAttention-3, FP8",
    "flash-attention-4": "FlashAttention-4, FP16",
    "flashinfer": "FlashInfer, FP16",
    "cudnn-fp8": "cuDNN FP8",
    "sageattention-1": "SageAttention 1",
    "sageattention-2-fp16": "SageAttention 2, FP16 PV",
    "sageattention-2-fp8": "SageAttention 2, FP8 PV",
    "comfy-kitchen": "comfy-kitchen INT8",
}
FLOAT16 = {baseline.name for baseline in baselines.BASELINES if baseline.scheme == "fp16"}
NAMES = {name: f"`{name}`" for name in ABOUT} | BASELINES
EVERYTHING = {name: f"`{name}`" for name in PRESETS} | BASELINES
