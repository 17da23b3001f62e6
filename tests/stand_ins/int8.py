"""SageAttention, both releases, and comfy-kitchen."""

import numpy as np

from .modules import module, nested
from .pytorch import attended, empty


def int8(x):
    """Return codes and the one scale of them all."""
    scale = np.abs(x).max() / np.float32(127)
    return np.rint(x / scale).astype(np.int8), scale


def from_codes(q, k, v, q_scale, k_scale, causal=False):
    wide = (np.asarray(x).astype(np.float32) * scale for x, scale in ((q, q_scale), (k, k_scale)))
    return attended(*wide, v, causal)


def sageattention_1():
    def per_block_int8(q, k):
        (q8, q_scale), (k8, k_scale) = int8(q), int8(k)
        return q8, q_scale, k8, k_scale

    def attend(causal):
        def run(q8, k8, v, q_scale, k_scale, output_dtype):
            return from_codes(q8, k8, v, q_scale, k_scale, causal).astype(output_dtype)

        return run

    def sageattn(q, k, v, is_causal=False):
        assert not is_causal or q.shape[2] == k.shape[2]
        k -= k.mean(dim=2, keepdim=True)
        q8, q_scale, k8, k_scale = per_block_int8(q, k)
        return attend(is_causal)(q8, k8, v, q_scale, k_scale, q.dtype)

    core = module("core", attn_true=attend(True), attn_false=attend(False))
    vars(core).update(per_block_int8=per_block_int8, sageattn=sageattn)
    return nested(
        sageattention=module("sageattention"),
        sageattention__core=core,
        sageattention__quant_per_block=module("quant_per_block"),
    )


# Release 2's functions, each with the extension that has its kernels.
FUNCTIONS = {
    "sageattn_qk_int8_pv_fp16_cuda": "sm80_compile",
    "sageattn_qk_int8_pv_fp8_cuda": "sm89_compile",
    "sageattn_qk_int8_pv_fp8_cuda_sm90": "sm90_compile",
}


def sageattention_2(launches):
    """Append the name of every function and of every launch of an attention kernel to a list."""
    core = module("core")

    def kernel(q8, k8, v, o, q_scale, k_scale, v_scale, causal):
        launches.append("kernel")
        o[...] = from_codes(q8, k8, np.asarray(v) * v_scale, q_scale, k_scale, causal)

    def function(name, extension):
        def run(q, k, v, is_causal=False, qk_quant_gran="per_thread"):
            assert not is_causal or q.shape[2] == k.shape[2]
            launches.append(f"{name} {qk_quant_gran}")
            kernels = vars(core)[extension]
            assert kernels.release() == 2  # which is none of the kernels
            (q8, q_scale), (k8, k_scale) = int8(q), int8(k - k.mean(dim=2, keepdim=True))
            o, v_scale = empty(q.shape, q.dtype), np.float32(0.5)
            launch = kernels.qk_int8_sv_f8_attn
            launch(q8, k8, v / v_scale, o, q_scale, k_scale, v_scale, causal=is_causal)
            return o[..., : q.shape[-1]]

        return run

    for name, extension in FUNCTIONS.items():
        made = module(extension, qk_int8_sv_f8_attn=kernel, release=lambda: 2)
        vars(core).update({extension: made, name: function(name, extension)})
    return nested(
        sageattention=module("sageattention"),
        sageattention__core=core,
        sageattention__quant=module("quant"),
    )


def comfy_kitchen():
    return nested(
        comfy_kitchen=module(
            "comfy_kitchen",
            prequantize_int8_attention=lambda q, k, v: (q, k, v),
            int8_attention_from_prequantized=lambda qkv: attended(*qkv).half(),
            int8_attention=lambda q, k, v: attended(q, k, v).half(),
        )
    )
