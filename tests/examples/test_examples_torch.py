"""The examples for PyTorch: the operator, `scaled_dot_product_attention` replaced, and graphs.

On the GPU if there is one that PyTorch can use, else with tensors in host memory.
"""

import pytest
from helpers.example_modules import example, examples, normal, relative_l1

import cuattn
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.needs("torch")

DTYPES = ("float16", "bfloat16", "float32")


torch_op = example("torch_op")
torch_sdpa = example("torch_sdpa")


@pytest.fixture
def tensors(torch_op, rng):
    """Return a function that makes Q, K and V."""
    torch = torch_op.torch
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def make(dtype="float32", kv_heads=2, seqlens=(40, 40), **sizes):
        heads, lengths = (2, kv_heads, kv_heads), (seqlens[0], seqlens[1], seqlens[1])
        arrays = [normal(rng, *some, **sizes) for some in zip(heads, lengths, strict=True)]
        return [torch.from_numpy(x).to(device, getattr(torch, dtype)) for x in arrays]

    return make


def expected(q, k, v, **options):
    return cuattn.attention(q, k, v, out=q.new_empty(q.shape), **options)


def error(found, exact):
    return relative_l1(*(x.detach().double().cpu().numpy() for x in (found, exact)))


# ---- the operator


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", ["int8", "int8-fp16"])
def test_operator_is_attention(torch_op, tensors, dtype, scheme):
    q, k, v = tensors(dtype)
    o = torch_op.attention(q, k, v, True, 0.3, scheme)
    assert (o.dtype, o.device, o.shape) == (q.dtype, q.device, q.shape)
    wanted = expected(q, k, v, is_causal=True, scale=0.3, scheme=scheme)
    assert torch_op.torch.equal(o, wanted)


def test_operator_keeps_what_pytorch_asks_of_one(torch_op, tensors):
    q, k, v = tensors("float16")
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    tokens_first = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    for given in ((q, k, v), tokens_first):
        torch_op.torch.library.opcheck(torch_op.attention, given, test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_module_is_one_graph(torch_op, dynamic):
    torch = torch_op.torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    block = torch_op.Block(heads=2, head_dim=32).to(device)
    # With fullgraph=True a graph that breaks is an error.
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with torch.no_grad():
        for tokens in (24, 56):
            x = torch.randn(2, tokens, 64, device=device)
            torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
            assert error(block(x) - x, x) > 0.01


def test_operators_errors_are_those_of_cuattn(torch_op, tensors):
    q, k, v = tensors(head_dim=20)
    with pytest.raises(ArgumentError, match=r"^head_dim must be"):
        torch_op.attention(q, k, v)


# ---- scaled_dot_product_attention


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_calls_are_answered(torch_sdpa, tensors, dtype, is_causal, kv_heads):
    q, k, v = tensors(dtype, kv_heads)
    functional = torch_sdpa.functional
    options = {"is_causal": is_causal, "scale": 0.2, "enable_gqa": kv_heads == 1}
    exact = functional.scaled_dot_product_attention(q, k, v, **options)
    with torch_sdpa.sdpa("int8") as calls:
        o = functional.scaled_dot_product_attention(q, k, v, **options)
    assert calls == {"cuattn": 1}
    assert torch_sdpa.torch.equal(o, expected(q, k, v, is_causal=is_causal, scale=0.2))
    assert 0 < error(o, exact) < 0.03


@pytest.mark.parametrize("is_causal", [False, True])
def test_lengths_may_differ(torch_sdpa, tensors, is_causal):
    q, k, v = tensors(seqlens=(8, 72))
    functional = torch_sdpa.functional
    with torch_sdpa.sdpa("fp16") as calls:
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    assert calls == {"cuattn": 1}
    exact = functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    assert error(o, exact) < 2e-3


def masked(torch, q, k, v):
    return (q, k, v), {"attn_mask": torch.ones(q.shape[2], k.shape[2], device=q.device) > 0}


def three_axes(torch, q, k, v):
    return (q[0], k[0], v[0]), {}


def repeated_batch(torch, q, k, v):
    return (q.expand(3, -1, -1, -1), k, v), {}


def long_head(torch, q, k, v):
    return tuple(torch.cat([x] * 9, -1) for x in (q, k, v)), {}


def odd_head(torch, q, k, v):
    return (q[..., :12], k[..., :12], v[..., :12]), {}


def other_values(torch, q, k, v):
    return (q, k, v[..., :16]), {}


def fewer_keys(torch, q, k, v):
    return (q, k[:, :, :8], v[:, :, :8]), {"is_causal": True}


def differentiable(torch, q, k, v):
    return (q, k.clone().requires_grad_(), v), {}


CASES = [
    (masked, "mask"),
    (three_axes, "shape"),
    (repeated_batch, "shape"),
    (other_values, "shape"),
    (long_head, "head_dim"),
    (odd_head, "head_dim"),
    (fewer_keys, "causal mask with fewer keys"),
    (differentiable, "gradients"),
    (lambda torch, *qkv: ([x.double() for x in qkv], {}), "type"),
    (lambda torch, *qkv: (qkv, {"scale": -1.0}), "negative scale"),
    (lambda torch, *qkv: (qkv, {"dropout_p": 0.5}), "dropout"),
]


@pytest.mark.parametrize(("case", "reason"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_what_cuattn_does_not_do_pytorch_does(torch_sdpa, tensors, case, reason):
    given, options = case(torch_sdpa.torch, *tensors())
    functional, torch = torch_sdpa.functional, torch_sdpa.torch
    torch.manual_seed(0)  # of what is dropped
    with torch_sdpa.sdpa() as calls:
        o = functional.scaled_dot_product_attention(*given, **options)
    assert calls == {reason: 1}
    torch.manual_seed(0)
    own = functional.scaled_dot_product_attention(*given, **options)
    torch.testing.assert_close(o, own)


def test_heads_that_pytorch_refuses_stay_refused(torch_sdpa, tensors):
    with torch_sdpa.sdpa() as calls, pytest.raises(RuntimeError):
        torch_sdpa.functional.scaled_dot_product_attention(*tensors(kv_heads=3))
    assert calls == {"heads": 1}


def test_gradients_are_pytorchs(torch_sdpa, tensors):
    q, k, v = (x.requires_grad_() for x in tensors())
    functional, torch = torch_sdpa.functional, torch_sdpa.torch
    with torch_sdpa.sdpa() as calls:
        functional.scaled_dot_product_attention(q, k, v).sum().backward()
        with torch.no_grad():
            functional.scaled_dot_product_attention(q, k, v)
        with torch.inference_mode():
            functional.scaled_dot_product_attention(q, k, v)
    assert v.grad is not None
    assert calls == {"gradients": 1, "cuattn": 2}


def test_function_comes_back_after_an_error(torch_sdpa):
    own = torch_sdpa.functional.scaled_dot_product_attention
    with torch_sdpa.sdpa():
        assert torch_sdpa.functional.scaled_dot_product_attention is not own
    with pytest.raises(KeyError), torch_sdpa.sdpa():
        raise KeyError
    assert torch_sdpa.functional.scaled_dot_product_attention is own


def test_modules_of_pytorch_use_it(torch_sdpa, tensors):
    torch = torch_sdpa.torch
    x = tensors()[0][0].flatten(1)[:, :64].reshape(1, 2, 64).repeat(1, 20, 1)
    x += torch.randn_like(x)
    layer = torch.nn.MultiheadAttention(64, 2, batch_first=True, device=x.device)
    with torch.no_grad():
        exact, _ = layer(x, x, x, need_weights=False)
        with torch_sdpa.sdpa() as calls:
            found, _ = layer(x, x, x, need_weights=False)
    assert calls == {"cuattn": 1}
    assert 0 < error(found, exact) < 0.05


def test_replaced_function_can_be_compiled(torch_sdpa, tensors):
    torch, functional = torch_sdpa.torch, torch_sdpa.functional
    given = tensors()

    def model(q, k, v):
        return functional.scaled_dot_product_attention(q.tanh(), k, v) * 2

    with torch_sdpa.sdpa("int8-block") as calls:
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(*given)
        eager = model(*given)
    assert calls["cuattn"] >= 1
    torch.testing.assert_close(compiled, eager)


# ---- CUDA graphs


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["int8", "int8-block", "fp16"])
def test_captured_function_is_replayed(torch, rng, scheme):
    with examples("torch_graph") as torch_graph:

        def step(q, k, v):
            for _ in range(3):
                q = cuattn.attention(q, k, v, scheme=scheme)
            return q

        first, second = (
            [torch.from_numpy(normal(rng, tokens=300)).cuda().half() for _ in "qkv"]
            for _ in range(2)
        )
        captured = torch_graph.Captured(step, *first)
        for given in (first, second, first):
            o = captured(*given).clone()
            # What others do meanwhile with CuPy's default pool does not disturb the graph.
            assert torch.equal(o, step(*given))


# ---- as programs


def test_programs_say_what_came_out(torch_op, torch_sdpa, capsys):
    torch_op.main(["--tokens", "40", "--backend", "aot_eager"])
    assert "compiled and eager differ by at most 0" in capsys.readouterr().out
    torch_sdpa.main()
    assert "{'cuattn': 1, 'mask': 1}" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.usefixtures("torch")
def test_graph_program_says_what_came_out(capsys):
    with examples("torch_graph") as torch_graph:
        torch_graph.main()
    assert "replayed and eager are the same" in capsys.readouterr().out
