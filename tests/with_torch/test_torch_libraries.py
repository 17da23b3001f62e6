"""FlashAttention's and SageAttention's functions by their names, positions and defaults."""

import inspect

import pytest
from helpers.torch_calls import own

from cuattn.errors import ArgumentError, KeywordError

pytestmark = pytest.mark.needs("torch")


# flash_attn 2.8 and sageattention 2.2, whose callers give many of these by their position.
SIGNATURES = {
    "flash_attn_func": "q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, "
    "window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, "
    "return_attn_probs=False",
    "flash_attn_varlen_func": "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, "
    "dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
    "alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None",
    "flash_attn_with_kvcache": "q, k_cache, v_cache, k=None, v=None, rotary_cos=None, "
    "rotary_sin=None, cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, "
    "block_table=None, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
    "rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False",
    "sageattn": "q, k, v, tensor_layout='HND', is_causal=False, sm_scale=None, return_lse=False",
    "scaled_dot_product_attention": "query, key, value, attn_mask=None, dropout_p=0.0, "
    "is_causal=False",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_positions_and_defaults(ct, name):
    parameters = inspect.signature(getattr(ct, name)).parameters.values()
    by_position = [p.replace(annotation=p.empty) for p in parameters if p.kind != p.KEYWORD_ONLY]
    assert ", ".join(map(str, by_position)) == SIGNATURES[name]


@pytest.fixture
def tokens_first(tensors):
    return [x.transpose(1, 2).contiguous() for x in tensors("float16")]


def test_flash_attn_func(ct, torch_module, tokens_first):
    q, k, v = tokens_first
    given = {"layout": "NHD", "scale": 0.3, "is_causal": True, "window_size": (9, 0)}
    expected, lse = own(q, k, v, **given, softcap=20.0, return_lse=True)
    args = (q, k, v, 0.0, 0.3, True, (9, -1), 20.0, None, False)
    assert torch_module.equal(ct.flash_attn_func(*args), expected)
    found = ct.flash_attn_func(*args, True)
    assert found[2] is None
    assert torch_module.equal(found[1], lse)
    with pytest.raises(ArgumentError, match=r"^dropout_p must be 0"):
        ct.flash_attn_func(q, k, v, 0.1)
    with pytest.raises(KeywordError, match=r"expected 'causal'"):
        ct.flash_attn_func(q, k, v, is_causal=True)


def test_flash_attn_varlen_func(ct, torch_module, tokens_first, dynamo):
    q, k, v = (x[0] for x in tokens_first)
    bounds = torch_module.tensor([0, 9, 40], dtype=torch_module.int32, device=q.device)
    function = dynamo(
        lambda *args: ct.flash_attn_varlen_func(*args, causal=True, return_attn_probs=True)
    )
    o, lse, _ = function(q, k, v, bounds, bounds, 31, 31)
    for begin, end in ((0, 9), (9, 40)):
        some = (x[None, begin:end] for x in (q, k, v))
        alone = ct.flash_attn_func(*some, causal=True, return_attn_probs=True)
        assert torch_module.equal(o[begin:end], alone[0][0])
        assert torch_module.equal(lse[:, begin:end], alone[1][0])
    with pytest.raises(ArgumentError, match=r"^block_table must be None"):
        ct.flash_attn_varlen_func(q, k, v, bounds, bounds, 31, 31, block_table=bounds)


@pytest.mark.parametrize("compiled", [False, True])
def test_flash_attn_with_kvcache(ct, torch_module, tensors, dynamo, compiled):
    q, k, v = (x.transpose(1, 2).contiguous() for x in tensors("float16", batch=2))
    caches = [x.clone() for x in (k, v)]
    used = torch_module.tensor([30, 7], dtype=torch_module.int32, device=q.device)
    new = k[:, 30:33], v[:, 30:33]

    def function(q, k_cache, v_cache, k, v, used):
        given = {"cache_seqlens": used, "causal": True, "return_softmax_lse": True}
        return ct.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, **given)

    o, lse = (dynamo(function) if compiled else function)(q[:, :3], *caches, *new, used)
    for b, n in enumerate((30, 7)):
        keys, values = (torch_module.cat([x[b, :n], x[b, 30:33]])[None] for x in (k, v))
        given = {"causal": True, "return_attn_probs": True}
        alone = ct.flash_attn_func(q[b : b + 1, :3], keys, values, **given)
        assert torch_module.equal(o[b], alone[0][0])
        assert torch_module.equal(lse[b], alone[1][0])
        assert torch_module.equal(caches[0][b, n : n + 3], k[b, 30:33])
    expected = own(q, *caches, layout="NHD")
    assert torch_module.equal(ct.flash_attn_with_kvcache(q, *caches), expected)
    same = ct.flash_attn_with_kvcache(q, *caches, cache_seqlens=40)
    assert torch_module.equal(same, expected)


def test_what_a_kvcache_of_floats_has_not(ct, tokens_first):
    q, k, v = tokens_first
    for name in ("rotary_cos", "cache_batch_idx", "cache_leftpad", "block_table"):
        with pytest.raises(ArgumentError, match=rf"^{name} must be None"):
            ct.flash_attn_with_kvcache(q, k, v, **{name: q})
    with pytest.raises(ArgumentError, match=r"^cache_seqlens must be given"):
        ct.flash_attn_with_kvcache(q, k, v, k[:, :2], v[:, :2])
    with pytest.raises(ArgumentError, match=r"^k\.shape must be as"):
        ct.flash_attn_with_kvcache(q, k, v, k[..., :8], v[..., :8], cache_seqlens=3)


# ---- sageattn, as ComfyUI calls it (comfy/ldm/modules/attention.py, attention_sage)


@pytest.mark.parametrize("tensor_layout", ["HND", "NHD"])
@pytest.mark.parametrize("mask", [None, "two axes", "of keys", "floats"])
def test_comfyuis_call(ct, torch_module, tensors, tensor_layout, mask):
    q, k, v = tensors("float16")
    expected_mask = None
    if mask is not None:
        some = torch_module.arange(40, device=q.device)
        expected_mask = (some[:, None] + some) % 3 > 0
        if mask == "of keys":
            expected_mask = expected_mask[:1]
        if mask == "floats":
            expected_mask = -expected_mask.half()
        expected_mask = expected_mask[None, None]  # as ComfyUI gives it four axes
    expected = own(q, k, v, attn_mask=expected_mask)
    if tensor_layout == "NHD":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o = ct.sageattn(q, k, v, attn_mask=expected_mask, is_causal=False, tensor_layout=tensor_layout)
    assert torch_module.equal(o if tensor_layout == "HND" else o.transpose(1, 2), expected)


def test_other_calls_of_sageattn(ct, torch_module, tensors):
    q, k, v = tensors("float16")
    o, lse = ct.sageattn(q, k, v, "HND", True, 0.3, True)
    expected = own(q, k, v, is_causal=True, scale=0.3, return_lse=True)
    assert torch_module.equal(o, expected[0])
    assert torch_module.equal(lse, expected[1])
    # Put in the place of PyTorch's function.
    same = ct.sageattn(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True, scale=0.3)
    assert torch_module.equal(same, o)
    granular = {"qk_quant_gran": "per_warp", "pv_accum_dtype": "fp32+fp32", "smooth_k": False}
    assert torch_module.equal(ct.sageattn(q, k, v, is_causal=True, sm_scale=0.3, **granular), o)


@pytest.mark.parametrize("name", ["flash_attn_func", "sageattn"])
def test_they_compile_and_have_pytorchs_gradients(ct, torch_module, tokens_first, dynamo, name):
    function, q, k, v = getattr(ct, name), *tokens_first
    given = {"tensor_layout": "NHD"} if name == "sageattn" else {}
    expected = own(q, k, v, layout="NHD")
    compiled = dynamo(lambda *qkv: function(*qkv, **given))
    assert torch_module.equal(compiled(q, k, v), expected)
    v.requires_grad_()
    with pytest.raises(ArgumentError, match=r"^v must be without gradients"):
        function(q, k, v, **given)
    o = function(q, k, v, **given, backward="torch")
    assert torch_module.equal(o, expected)
    (grad,) = torch_module.autograd.grad(o.sum(), v)
    # Each row of P sums to 1.
    torch_module.testing.assert_close(
        grad.sum(1).float(), torch_module.full((1, 2, 32), 40.0).to(v.device), rtol=0.01, atol=0
    )


def test_errors_of_sageattn_name_the_argument(ct, tensors):
    q, k, v = tensors("float16", seqlens=(8, 40))
    with pytest.raises(ArgumentError, match=r'^tensor_layout must be "HND" or "NHD"'):
        ct.sageattn(q, k, v, None)  # a mask, by its position in PyTorch's function
    with pytest.raises(ArgumentError, match=r"^is_causal must be False, as there are not as many"):
        ct.sageattn(q, k, v, is_causal=True)
    with pytest.raises(ArgumentError, match=r"^dropout_p must be 0"):
        ct.sageattn(q, k, v, dropout_p=0.1)
    with pytest.raises(ArgumentError, match=r"^scale must be None or 0.2"):
        ct.sageattn(q, k, v, sm_scale=0.2, scale=0.1)
    with pytest.raises(KeywordError, match=r"expected 'tensor_layout'"):
        ct.sageattn(q, k, v, layout="NHD")


def test_a_module_of_one_line_is_a_drop_in(ct, tmp_path, monkeypatch):
    (tmp_path / "sageattention.py").write_text("from cuattn.torch import sageattn\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "sageattention", raising=False)
    from sageattention import sageattn

    assert sageattn is ct.sageattn
    monkeypatch.delitem(__import__("sys").modules, "sageattention")
