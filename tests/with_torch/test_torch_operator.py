"""`cuattn.torch.attention`: the operator has the bits of `cuattn.attention` wherever it is called.

On the GPU if there is one that PyTorch can use, else with tensors in host memory.
"""

import pytest
from helpers.torch_calls import error, own

import cuattn
from cuattn.errors import ArgumentError, KeywordError

pytestmark = pytest.mark.needs("torch")

OWN_SCHEME = cuattn.Scheme("my own\nscheme", k_scope="block", v_scope="channel", p_range="row")
FAR = cuattn.ScoreMod(
    "score - slope * abs(own - kv)",
    numbers={"slope": 0.25},
    reference=lambda score, own, kv, slope: score - slope * abs(own - kv),
)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scheme", ["int8", "int8-fp16", OWN_SCHEME], ids=str)
def test_operator_is_attention(ct, tensors, torch_module, dtype, scheme):
    q, k, v = tensors(dtype)
    options = {"is_causal": True, "scale": 0.3, "scheme": scheme}
    o = ct.attention(q, k, v, **options)
    assert (o.dtype, o.device, o.shape) == (q.dtype, q.device, q.shape)
    assert torch_module.equal(o, own(q, k, v, **options))


def options(torch, device):
    some = torch.arange(40, device=device)
    return {
        "window": {"window_size": (7, 2)},
        "softcap and sinks": {"softcap": 5.0, "sinks": some[:2].float()},
        "mask": {"attn_mask": (some[:, None] + some) % 3 > 0},
        "float mask": {"attn_mask": -0.1 * (some[:, None] - some).abs().float()},
        "alibi": {"alibi_slopes": 0.1 * some[:2].float(), "is_causal": True},
        "lengths": {"seqused_k": some[33:34].int(), "is_causal": True},
        "score_mod": {"score_mod": FAR},
        "NHD": {"layout": "NHD"},
    }


CASES = [
    "window",
    "softcap and sinks",
    "mask",
    "float mask",
    "alibi",
    "lengths",
    "score_mod",
    "NHD",
]


def version(torch_module):
    return tuple(map(int, torch_module.__version__.split(".")[:2]))


@pytest.mark.parametrize("case", CASES)
def test_options_are_those_of_attention_and_compile(ct, tensors, torch_module, dynamo, case):
    q, k, v = tensors("float16")
    given = options(torch_module, q.device)[case] | {"return_lse": True}
    if case == "NHD":
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    expected = own(q, k, v, **given)
    found = ct.attention(q, k, v, **given)
    assert all(map(torch_module.equal, found, expected))
    try:
        found = dynamo(lambda *qkv: ct.attention(*qkv, **given))(q, k, v)
    except torch_module._dynamo.exc.TorchDynamoException as error:
        if case == "score_mod" and ("dataclass" in str(error) or version(torch_module) < (2, 7)):
            pytest.skip("its Dynamo takes no such objects for constants")
        raise
    assert all(map(torch_module.equal, found, expected))


def test_grouped_heads(ct, tensors, torch_module):
    for kv_heads in (1, 2, 4):
        q, k, v = tensors(heads=4, kv_heads=kv_heads)
        assert torch_module.equal(ct.attention(q, k, v), own(q, k, v))


def test_sequences_end_to_end(ct, tensors, torch_module, dynamo):
    q, k, v = (x[0].transpose(0, 1) for x in tensors("float16"))
    bounds = torch_module.tensor([0, 9, 40], dtype=torch_module.int32, device=q.device)
    given = {"cu_seqlens_q": bounds, "cu_seqlens_k": bounds, "max_seqlen_q": 31, "is_causal": True}
    found = dynamo(lambda *qkv: ct.attention(*qkv, return_lse=True, **given))(q, k, v)
    expected = cuattn.attention(q, k, v, return_lse=True, **given)
    assert all(map(torch_module.equal, found, expected))


def test_operators_keep_what_pytorch_asks_of_them(ct, tensors, torch_module):
    checks = (
        "test_schema",
        "test_faketensor",
        "test_aot_dispatch_dynamic",
        "test_autograd_registration",
    )
    q, k, v = tensors("float16")
    operators = torch_module.ops.cuattn
    for name in ("attention", "attention_with_lse"):
        for given in (
            (q, k, v),
            [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
        ):
            operator = getattr(operators, name).default
            torch_module.library.opcheck(operator, tuple(given), test_utils=checks)


def test_output_lies_in_memory_as_q_does(ct, tensors, torch_module):
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors())
    o = ct.attention(q, k, v)
    assert o.transpose(1, 2).is_contiguous()
    assert torch_module.equal(o, cuattn.attention(q, k, v))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_for_several_lengths_is_one_graph(ct, tensors, torch_module, dynamo, dynamic):
    def function(q, k, v):
        return ct.attention(q.tanh(), k, v, is_causal=True) + v

    compiled = dynamo(function, dynamic=dynamic)
    with torch_module.no_grad():
        for tokens in (24, 56, 64):
            qkv = tensors(seqlens=(tokens, tokens))
            assert torch_module.equal(compiled(*qkv), function(*qkv))


def test_other_modes_of_pytorch(ct, tensors, torch_module, dynamo):
    q, k, v = tensors()
    expected = own(q, k, v)
    with torch_module.inference_mode():
        o = ct.attention(*(x.clone() for x in (q, k, v)))
    assert o.is_inference()
    assert torch_module.equal(o, expected)
    with torch_module.autocast(q.device.type, torch_module.bfloat16):
        o = ct.attention(q, k.half(), v)
        again = dynamo(ct.attention)(q, k.half(), v)
    low = [x.bfloat16() for x in (q, k.half(), v)]
    assert torch_module.equal(o, own(*low))
    assert torch_module.equal(again, o)
    exported = torch_module.export.export(module_of_attention(torch_module, ct), (q, k, v)).module()
    assert torch_module.equal(exported(q, k, v), expected)


def module_of_attention(torch, ct):
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return ct.attention(q, k, v)

    return Module()


# ---- gradients


def test_gradients_are_refused(ct, tensors, torch_module):
    q, k, v = tensors()
    k.requires_grad_()
    with pytest.raises(ArgumentError, match=r"^k must be without gradients"):
        ct.attention(q, k, v)
    with pytest.raises(ArgumentError, match=r"^k must be without gradients"):
        torch_module.ops.cuattn.attention(q, k, v)
    with torch_module.no_grad():
        assert not ct.attention(q, k, v).requires_grad
    with pytest.raises(ArgumentError, match=r"^backward must be None or"):
        ct.attention(q, k, v, backward="ours")
    for name, value in {"softcap": 5.0, "score_mod": FAR, "sinks": q[0, :, 0, 0]}.items():
        with pytest.raises(ArgumentError, match=rf"{name}.* must be .*as gradients are required"):
            ct.attention(q, k, v, backward="torch", **{name: value})


@pytest.mark.parametrize("case", ["causal", "fewer rows", "window", "mask", "float mask", "alibi"])
def test_gradients_are_those_of_pytorchs_attention(ct, tensors, torch_module, dynamo, case):
    q, k, v = tensors(heads=4, kv_heads=2, seqlens=(24 if case == "fewer rows" else 40, 40))
    given = {"is_causal": True}
    if case not in ("causal", "fewer rows"):
        # The same in other words: what is compared is the mask that PyTorch is given.
        given = {"window": {"window_size": (7, 2)}} | options(torch_module, q.device)
        given = given[case]
    if case == "alibi":
        given["alibi_slopes"] = given["alibi_slopes"].repeat(2)

    def ours(q, k, v):
        return ct.attention(q, k, v, scheme="fp16", backward="torch", **given)

    def gradients(function):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        o = function(*inputs)
        return torch_module.autograd.grad(o, inputs, o.detach())

    found = gradients(ours)
    for x, y in zip(
        found, gradients(lambda *qkv: _exact(torch_module, *qkv, **given)), strict=True
    ):
        assert error(x, y) < 5e-3
    for x, y in zip(found, gradients(dynamo(ours)), strict=True):
        torch_module.testing.assert_close(x, y)


def _exact(
    torch, q, k, v, is_causal=False, window_size=(-1, -1), attn_mask=None, alibi_slopes=None
):
    """Every option written out."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    rows, keys = logits.shape[2:]
    own_key = torch.arange(rows, device=q.device)[:, None] + keys - rows
    past = own_key - torch.arange(keys, device=q.device)
    if alibi_slopes is not None:
        logits = logits - alibi_slopes[:, None, None] * past.abs()
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        logits = logits + attn_mask
    hidden = (past < 0) & is_causal
    left, right = window_size
    hidden = hidden | ((past > left) & (left >= 0)) | ((past < -right) & (right >= 0))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        hidden = hidden | ~attn_mask
    return logits.masked_fill(hidden, float("-inf")).softmax(-1) @ v


# ---- errors


def test_errors_name_the_argument(ct, tensors):
    q, k, v = tensors()
    with pytest.raises(ArgumentError, match=r"^head_dim must be"):
        ct.attention(*(x[..., :12] for x in (q, k, v)))
    with pytest.raises(ArgumentError, match=r"^q must be a tensor of PyTorch"):
        ct.attention(q.cpu().numpy(), k, v)
    with pytest.raises(ArgumentError, match=r"^attn_mask must be a tensor of PyTorch"):
        ct.attention(q, k, v, attn_mask=[True])
    with pytest.raises(ArgumentError, match=r"^scheme must be"):
        ct.attention(q, k, v, scheme=8)
    with pytest.raises(KeywordError, match=r"expected 'is_causal'"):
        ct.attention(q, k, v, causal=True)


def test_a_score_mod_lives_as_long_as_its_owner(ct, tensors, torch_module):
    q, k, v = tensors()
    with pytest.raises(ArgumentError, match=r"kept by its owner"):
        torch_module.ops.cuattn.attention(q, k, v, score_mod=10**9)
