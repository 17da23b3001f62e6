"""What tables call the presets and the baselines."""

from __future__ import annotations

from cuattn.bench.baselines import registry as baselines
from cuattn.presets import PRESETS

# What the presets that README.md shows are; in brackets the papers that it links.
ABOUT = {
    "int8": "**default**: INT8 Q, K, V per token; P against its block's maximum; K, V smoothed",
    "int8-block": "for speed: K per 128 keys, V per channel, the rest as `int8`",
    "int8-fast": "the fewest instructions: as `int8-block`, P against the running maximum",
    "int8-fp8": "INT8 Q Kᵀ, FP8 P V, as [SageAttention2]'s 8-bit products",
    "int8-fp16": "INT8 Q Kᵀ per token, K smoothed; float16 P V, as [SageAttention]",
    "int8-two-term": "as `int8`, P as the sum of two bytes",
    "int4": "INT4 Q, K, smoothed as [SageAttention2] does; V and P as `int8-block`",
    "int-flash": "INT8 throughout, one scale for V, as published: [INT-FlashAttention]",
    "int-flash-half": "INT8 Q Kᵀ, float16 P V, as published: [INT-FlashAttention]",
    "fp8": "FP8 throughout, one scale for a head, as [FlashAttention-3]",
    "fp16": "nothing quantized: [FlashAttention-2], the baseline",
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
FLOAT16 = {baseline.name for baseline in baselines.BASELINES if baseline.scheme == "fp16"}
NAMES = {name: f"`{name}`" for name in ABOUT} | BASELINES
EVERYTHING = {name: f"`{name}`" for name in PRESETS} | BASELINES
