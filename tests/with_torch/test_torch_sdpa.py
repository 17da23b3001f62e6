"""`cuattn.torch.scaled_dot_product_attention`: what arguments mean, and who answers."""

import logging

import pytest
from helpers.torch_calls import error, own

import cuattn
from cuattn.errors import ArgumentError, KeywordError

pytestmark = pytest.mark.needs("torch")


@pytest.fixture
def functional(torch_module):
    return torch_module.nn.functional


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("seqlens", [(40, 40), (8, 72), (72, 8), (1, 40)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.covering
def test_it_means_what_pytorch_means(ct, functional, tensors, is_causal, seqlens, dtype, kv_heads):
    q, k, v = tensors(dtype, 4, kv_heads, seqlens, batch=2)
    given = {"is_causal": is_causal, "scale": 0.2, "enable_gqa": True}
    o = ct.scaled_dot_product_attention(q, k, v, **given, scheme="fp16")
    exact = functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), **given)
    assert (o.dtype, o.shape) == (q.dtype, exact.shape)
    assert error(o, exact) < 5e-3


def test_bits_are_those_of_attention(ct, tensors, torch_module):
    q, k, v = tensors()
    sdpa = ct.scaled_dot_product_attention
    assert torch_module.equal(sdpa(q, k, v), own(q, k, v))
    assert torch_module.equal(sdpa(q, k, v, is_causal=True), own(q, k, v, is_causal=True))
    # From the first row on: the first row sees the first key.
    less = own(q[:, :, :8], k[:, :, :8], v[:, :, :8], is_causal=True)
    assert torch_module.equal(sdpa(q[:, :, :8], k, v, is_causal=True), less)


MASKS = {
    "bool": lambda some, q: (some[:, None] + some) % 3 > 0,
    "bool of keys": lambda some, q: (some % 3 > 0)[None, None, None, :],
    "floats": lambda some, q: -0.1 * (some[:, None] - some).abs().to(q.dtype),
    "floats of heads": lambda some, q: (0.1 * some)[None, :2, None, None].expand(1, 2, 40, 40),
    "rows without keys": lambda some, q: (some[:, None] > 3).expand(40, 40),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("axes", [3, 4])
def test_masks(ct, functional, tensors, torch_module, mask, axes):
    q, k, v = tensors()
    attn_mask = MASKS[mask](torch_module.arange(40, device=q.device), q)
    if axes == 3:
        q, k, v = q[0], k[0], v[0]
        attn_mask = attn_mask[0] if attn_mask.ndim == 4 else attn_mask
    o = ct.scaled_dot_product_attention(q, k, v, attn_mask, scheme="fp16")
    exact = functional.scaled_dot_product_attention(q, k, v, attn_mask)
    assert o.shape == exact.shape
    assert error(o, exact) < 5e-3


def test_shapes_that_pytorch_repeats(ct, functional, tensors, torch_module):
    q, k, v = tensors(batch=3)
    values = torch_module.cat([v, v[..., :8]], -1)
    for given in ((q, k[:1], v[:1]), (q[:1], k, v), (q, k, values)):
        o = ct.scaled_dot_product_attention(*given, scheme="fp16")
        assert error(o, functional.scaled_dot_product_attention(*given)) < 5e-3


def test_other_modes_of_pytorch(ct, tensors, torch_module, dynamo):
    q, k, v = tensors()
    sdpa = ct.scaled_dot_product_attention
    with torch_module.autocast(q.device.type, torch_module.float16), torch_module.inference_mode():
        o = sdpa(q, k.bfloat16(), v, q.new_zeros(40, 40))
    halves = q.half(), k.bfloat16().half(), v.half()
    assert torch_module.equal(o, own(*halves, attn_mask=q.new_zeros(40, 40)))
    compiled = dynamo(lambda q, k, v: sdpa(q, k, v, is_causal=True), dynamic=True)
    for seqlens in ((24, 24), (24, 56), (56, 24), (32, 32)):
        qkv = tensors(seqlens=seqlens)
        assert torch_module.equal(compiled(*qkv), sdpa(*qkv, is_causal=True))


# ---- what cuattn does not do

REFUSED = {
    "dropout": (lambda q, k, v: ((q, k, v), {"dropout_p": 0.5}), "dropout_p must be 0"),
    "dtype": (lambda q, k, v: ((q.double(), k.double(), v.double()), {}), "query.dtype must be"),
    "types": (lambda q, k, v: ((q, k.half(), v), {}), "key.dtype must be"),
    "head_dim": (lambda q, k, v: ((q[..., :12], k[..., :12], v), {}), "query.shape must be .* 8"),
    "long head_dim": (
        lambda q, k, v: ([x.repeat(1, 1, 1, 17) for x in (q, k, v)], {}),
        "query.shape .* up to 512",
    ),
    "axes": (lambda q, k, v: ([x[None] for x in (q, k, v)], {}), "query.shape must be of four"),
    "heads": (lambda q, k, v: ((q[:, :1], k, v), {}), "key.shape must be of 1 heads"),
    "scale": (lambda q, k, v: ((q, k, v), {"scale": -1.0}), "scale must be at least 0"),
    "gradients": (lambda q, k, v: ((q, k.requires_grad_(), v), {}), "key must be without grad"),
    "mask": (
        lambda q, k, v: ((q, k, v, q.new_zeros(40, 40)), {"is_causal": True}),
        "attn_mask must be None, as is_causal",
    ),
    "sparse": (lambda q, k, v: ((q.to_sparse(), k, v), {}), "query must be a dense tensor"),
}
# The reason by which a call is counted, if it is not the name of the case.
REASONS = {"types": "dtype", "long head_dim": "head_dim", "sparse": "layout"}
# What PyTorch refuses too, each with an error of its own.
ERRORS = {"types", "mask", "heads", "sparse"}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_name_or_left_to_pytorch(ct, functional, tensors, torch_module, case):
    given, message = REFUSED[case]
    args, options = given(*tensors())
    with pytest.raises(ArgumentError, match=rf"^{message}"):
        ct.scaled_dot_product_attention(*args, **options)
    before = ct.calls.fallback
    torch_module.manual_seed(0)
    try:
        o = ct.scaled_dot_product_attention(*args, **options, fallback=True)
    except (RuntimeError, NotImplementedError):
        assert case in ERRORS
    else:
        torch_module.manual_seed(0)
        torch_module.testing.assert_close(
            o, functional.scaled_dot_product_attention(*args, **options)
        )
    reason = REASONS.get(case, case)
    assert ct.calls.fallback[reason] == before.get(reason, 0) + 1


def test_gradients(ct, functional, tensors, torch_module):
    q, k, v = (x.requires_grad_() for x in tensors())
    sdpa = ct.scaled_dot_product_attention
    for options in ({"fallback": True}, {"backward": "torch", "scheme": "fp16"}):
        (found,) = torch_module.autograd.grad(sdpa(q, k, v, is_causal=True, **options).sum(), k)
        exact = functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum()
        assert error(found, torch_module.autograd.grad(exact, k)[0]) < 1e-3


def test_calls_are_counted_and_reported(ct, tensors, torch_module, dynamo, caplog):
    q, k, v = tensors()
    ct.calls.reset()
    assert str(ct.calls) == "calls: none"
    with caplog.at_level(logging.INFO, "cuattn.torch"):
        for dropout_p in (0.0, 0.5, 0.5):
            ct.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, fallback=True)
    assert caplog.messages == ["attention that cuattn does not answer: dropout"]
    assert (ct.calls.cuattn, ct.calls.fallback) == (1, {"dropout": 2})
    ct.scaled_dot_product_attention(q, k, v, scheme=cuattn.Scheme("mine"))
    assert ct.calls.schemes == {"int8": 1, "mine": 1}
    assert str(ct.calls) == "calls: 1 by cuattn (int8), 1 by cuattn (mine), 2 not (dropout)"

    def function(q, k, v):
        sdpa = ct.scaled_dot_product_attention
        return sdpa(q, k, v) + sdpa(q, k, v, dropout_p=1e-9, fallback=True)

    ct.calls.reset()
    compiled = dynamo(function)
    for _ in range(3):
        compiled(q, k, v)
    # PyTorch's own calls are seen when they are traced.
    assert (ct.calls.cuattn, ct.calls.fallback) == (3, {"dropout": 1})


def test_unknown_keywords_name_the_right_one(ct, tensors):
    q, k, v = tensors()
    for name, meant in {
        "causal": "is_causal",
        "softmax_scale": "scale",
        "mask": "attn_mask",
    }.items():
        with pytest.raises(KeywordError, match=rf"expected '{meant}'"):
            ct.scaled_dot_product_attention(q, k, v, **{name: 1})
    with pytest.raises(KeywordError, match=r"expected 'query'"):
        ct.scaled_dot_product_attention(q=q, k=k, v=v)
