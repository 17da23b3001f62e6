"""PyTorch's `scaled_dot_product_attention`, answered by cuattn for as long as a `with` lasts.

What cuattn does not do (masks, dropout, gradients, ...) PyTorch answers itself, and the context
counts which call went where. So a model that calls the function needs no change:

    with sdpa(scheme="int8") as calls:
        model(x)
    print(calls)  # {"cuattn": 12}, and reasons with how many calls had each

    python examples/torch_sdpa.py
"""

from contextlib import contextmanager

import torch
from torch.nn import functional
from torch_op import attention

__all__ = ["attend", "refusal", "sdpa"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@contextmanager
def sdpa(scheme="int8"):
    """Replace `torch.nn.functional.scaled_dot_product_attention`, in all threads.

    A name that a module has imported from there before stays PyTorch's own function.

    Parameters
    ----------
    scheme : str
        A key of `cuattn.PRESETS`.

    Yields
    ------
    dict
        How many calls were answered by "cuattn", and how many by PyTorch, for each reason.
    """
    original = functional.scaled_dot_product_attention
    calls = {}

    def answer(
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    ):
        options = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal}
        options |= {"scale": scale, "enable_gqa": enable_gqa}
        reason = refusal(query, key, value, **options)
        who = reason or "cuattn"
        calls[who] = calls.get(who, 0) + 1
        if reason is not None:
            return original(query, key, value, **options)
        return attend(query, key, value, is_causal, scale, scheme)

    functional.scaled_dot_product_attention = answer
    try:
        yield calls
    finally:
        functional.scaled_dot_product_attention = original


def attend(q, k, v, is_causal=False, scale=None, scheme="int8"):
    """Attend with PyTorch's causal mask: query 0 sees key 0 and no other.

    With cuattn's the last query sees every key. They agree without the keys that nobody sees.
    """
    if is_causal:
        k, v = (x[:, :, : q.shape[2]] for x in (k, v))
    return attention(q, k, v, is_causal, scale, scheme)


def refusal(
    q,
    k,
    v,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
):
    """Return why cuattn cannot answer a call of PyTorch's function, or None if it can."""
    tensors = (q, k, v)
    if attn_mask is not None:
        return "mask"
    if dropout_p:
        return "dropout"
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "gradients"
    if any(x.layout != torch.strided or x.dtype not in _DTYPES for x in tensors):
        return "type"
    if any(x.dtype != q.dtype or x.device != q.device for x in tensors):
        return "type"
    # PyTorch's function takes three axes too, and batches or heads that it must repeat.
    if any(x.ndim != 4 for x in tensors) or k.shape != v.shape or q.shape[0] != k.shape[0]:
        return "shape"
    heads, kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[3]
    if k.shape[3] != head_dim or head_dim % 8 or not 0 < head_dim <= 256:
        return "head_dim"
    if heads != kv_heads and not (enable_gqa and kv_heads and heads % kv_heads == 0):
        return "heads"
    if is_causal and q.shape[2] > k.shape[2]:
        return "causal mask with fewer keys"
    if scale is not None and scale < 0:
        return "negative scale"
    return None


def main():
    on_gpu = torch.cuda.is_available()
    where = {"device": "cuda", "dtype": torch.float16} if on_gpu else {}
    torch.manual_seed(0)
    # Keys have a mean that they share, as in real models.
    shape = (1, 8, 4096, 64) if on_gpu else (1, 2, 256, 64)
    q, k, v = (torch.randn(shape, **where) for _ in range(3))
    k += 2 * torch.randn(1, shape[1], 1, 64, **where)
    sees_all = torch.ones(shape[2], shape[2], dtype=torch.bool, device=q.device)

    def model():
        o = functional.scaled_dot_product_attention(q, k, v)
        return o, functional.scaled_dot_product_attention(q, k, v, attn_mask=sees_all)

    exact = model()[0].float()
    for scheme in ("int8", "int8-block", "int8-fp16"):
        with sdpa(scheme) as calls:
            o, masked = model()
        error = (o.float() - exact).abs().mean() / exact.abs().mean()
        own = (masked.float() - exact).abs().mean() / exact.abs().mean()
        off = f"{100 * error:.2f} % off PyTorch, {100 * own:.2f} % where there is a mask"
        print(f"{scheme:12}{calls}: {off}")


if __name__ == "__main__":
    main()
