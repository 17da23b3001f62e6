"""FlashAttention-2, 3 and 4: [B, N, H, D], and masks aligned at the last query and key."""

import numpy as np

from cuattn.reference.rounding import e4m3_values, round_bfloat16

from .modules import module, nested
from .pytorch import E4M3, attended, tensor


def tokens_first(x):
    return x.swapaxes(1, 2)


def flash_attn_func(q, k, v, causal=False):
    """Take and return [B, N, H, D]."""
    assert q.dtype == np.float16
    assert q.shape[1] > 1, "has no split of the keys"
    return tokens_first(attended(*map(tokens_first, (q, k, v)), causal).half())


def flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=None, causal=False):
    assert cache_seqlens.dtype == np.int32
    assert cache_seqlens.shape == (len(q),)
    length = int(cache_seqlens[0])
    assert (cache_seqlens == length).all()
    given = (q, k_cache[:, :length], v_cache[:, :length])
    return tokens_first(attended(*map(tokens_first, given), causal).half())


def flash_attention_2():
    functions = {"flash_attn_func": flash_attn_func}
    functions["flash_attn_with_kvcache"] = flash_attn_with_kvcache
    package = module("flash_attn", **functions)
    return nested(flash_attn=package, flash_attn__flash_attn_interface=module("inner"))


def flash_attention_3():
    def either(q, k, v, causal=False, q_descale=None, k_descale=None, v_descale=None):
        if q.dtype == np.float16:
            return flash_attn_func(q, k, v, causal)
        batch, _, kv_heads, _ = k.shape
        wide = []
        for x, descale in ((q, q_descale), (k, k_descale), (v, v_descale)):
            assert (x.dtype, descale.dtype) == (E4M3, np.float32)
            assert descale.shape == (batch, kv_heads)
            by_head = descale.repeat(x.shape[2] // kv_heads, axis=1)
            wide.append(e4m3_values(np.asarray(x)) * by_head[:, None, :, None])
        o = tokens_first(attended(*map(tokens_first, wide), causal))
        # The releases of 2024 return the log-sum-exp as well.
        return tensor(round_bfloat16(np.asarray(o))), "lse"

    functions = {"flash_attn_func": either, "flash_attn_with_kvcache": flash_attn_with_kvcache}
    return nested(flash_attn_interface=module("flash_attn_interface", **functions))


def flash_attention_4():
    cute = module("cute", flash_attn_func=lambda *qkv, **on: (flash_attn_func(*qkv, **on), None))
    # Its package has nothing but this where FlashAttention-2 is not installed.
    return nested(flash_attn=module("flash_attn"), flash_attn__cute=cute)
