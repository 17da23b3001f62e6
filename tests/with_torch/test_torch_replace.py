"""`cuattn.torch.replace`: which calls of a model are answered by what, and that all comes back."""

import copy
import inspect
import sys
import threading
from types import ModuleType

import pytest
from helpers.torch_calls import device_here, error, own

import cuattn
from cuattn.errors import ArgumentError, KeywordError

pytestmark = pytest.mark.needs("torch")

PRESETS = cuattn.PRESETS


@pytest.fixture
def functional(torch_module):
    return torch_module.nn.functional


@pytest.fixture
def model(torch_module):
    """Three layers of attention."""
    nn, functional = torch_module.nn, torch_module.nn.functional

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(32, 96)

        def forward(self, x, dropout_p=0.0):
            q, k, v = self.qkv(x).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
            o = functional.scaled_dot_product_attention(q, k, v, None, dropout_p, True)
            return x + o.transpose(1, 2).flatten(2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Layer() for _ in range(3)])

        def forward(self, x, dropout_p=0.0):
            for layer in self.layers:
                x = layer(x, dropout_p)
            return x

    torch_module.manual_seed(0)
    return Model().to(device_here(torch_module)).requires_grad_(False)


@pytest.fixture
def x(torch_module):
    torch_module.manual_seed(1)
    return torch_module.randn(2, 24, 32, device=device_here(torch_module))


PLAN = cuattn.SchemePlan(
    {
        "layers.0": PRESETS["int8"],
        "layers.1": PRESETS["int8-block"],
        ("layers.1", 3): PRESETS["int8-fast"],
    }
)


@pytest.mark.parametrize(
    ("options", "schemes", "fallback"),
    [
        ({}, {"int8": 3}, {}),
        ({"scheme": "int8-fp16"}, {"int8-fp16": 3}, {}),
        ({"scheme": PLAN}, {"int8": 1, "int8-block": 1}, {"not in the plan": 1}),
        ({"scheme": PLAN, "leave_out": "*.1"}, {"int8": 1}, {"left out": 1, "not in the plan": 1}),
        ({"leave_out": ["layers.0", "layers.2*"]}, {"int8": 1}, {"left out": 2}),
        ({"leave_out": "layers"}, {"int8": 3}, {}),  # is not called itself
    ],
    ids=lambda x: str(sorted(x)) if isinstance(x, dict) else None,
)
def test_layers_have_the_schemes_they_are_told(
    ct, torch_module, functional, model, x, dynamo, options, schemes, fallback
):
    original, before = functional.scaled_dot_product_attention, model(x)
    with ct.replace(model, **options) as replaced:
        o = model(x)
        assert (replaced.calls.schemes, replaced.calls.fallback) == (schemes, fallback)
        assert 0 < error(o, before) < 0.03
        compiled = dynamo(model)
        assert torch_module.equal(compiled(x), o)
        assert replaced.calls.cuattn == 2 * sum(schemes.values())
        # Of other models nothing changes, nor of calls outside.
        assert torch_module.equal(
            functional.scaled_dot_product_attention(x, x, x), original(x, x, x)
        )
        assert replaced.calls.cuattn == 2 * sum(schemes.values())
        assert torch_module.equal(copy.deepcopy(model)(x), o)
        assert list(inspect.signature(model.forward).parameters) == ["x", "dropout_p"]
    assert functional.scaled_dot_product_attention is original
    assert "forward" not in vars(model)
    assert torch_module.equal(model(x), before)
    assert torch_module.equal(compiled(x), before)


def test_a_plan_may_have_steps(ct, torch_module, model, x, dynamo):
    with ct.replace(model, PLAN) as replaced:
        o, compiled = model(x), dynamo(model)
        for step in (None, 3, 4):
            replaced.step = step
            assert torch_module.equal(compiled(x), model(x))
            assert torch_module.equal(model(x), o) is (step != 3)
        assert replaced.calls.schemes["int8-fast"] == 3


def test_all_calls_can_be_replaced(ct, torch_module, functional, model, x, monkeypatch):
    own = functional.scaled_dot_product_attention
    user = ModuleType("a_module_that_imported_it")
    user.attend = own
    monkeypatch.setitem(sys.modules, user.__name__, user)
    with ct.replace(scheme="int8-block") as outer:
        assert user.attend is functional.scaled_dot_product_attention is not own
        model(x)
        with ct.replace(scheme="int8") as inner:
            model(x, 0.5)
            user.attend(x, x, x)
        assert (inner.calls.schemes, inner.calls.fallback) == ({"int8": 1}, {"dropout": 3})
        with ct.replace(model, "int8-fp16") as of_model:
            model(x)
        user.attend(x, x, x)
        assert of_model.calls.schemes == {"int8-fp16": 3}
    assert outer.calls.schemes == {"int8-block": 4}
    assert user.attend is functional.scaled_dot_product_attention is own


def test_pytorchs_own_modules(ct, torch_module, x):
    attend = torch_module.nn.MultiheadAttention(32, 2, batch_first=True, device=x.device)
    exact = attend(x, x, x, need_weights=False)[0].detach()
    with ct.replace(attend, "fp16") as replaced, torch_module.no_grad():
        o = attend.train()(x, x, x, need_weights=False)[0]
        assert replaced.calls.schemes == {"fp16": 1}
        # The weights themselves are none of these functions', nor is PyTorch's path without them.
        attend(x, x, x)
        attend.eval()(x, x, x, need_weights=False)
        assert replaced.calls.cuattn == 1
    assert error(o, exact) < 1e-3


def test_everything_comes_back_after_an_error(ct, functional, model, x):
    own = functional.scaled_dot_product_attention
    with pytest.raises(RuntimeError), ct.replace(model) as replaced:
        model(x[..., :8])
    assert functional.scaled_dot_product_attention is own
    replaced.restore()
    with ct.replace(model, fallback=False), pytest.raises(ArgumentError, match=r"^dropout_p must"):
        model(x, 0.5)
    of_model = r"^model must be not replaced yet, as it is"
    with ct.replace(model), pytest.raises(ArgumentError, match=of_model):
        ct.replace(model)
    of_layer = r"as its module 'layers\.1' is"
    with ct.replace(model.layers[1]), pytest.raises(ArgumentError, match=of_layer):
        ct.replace(model)
    assert functional.scaled_dot_product_attention is own
    assert not any("forward" in vars(module) for module in model.modules())


def test_forward_of_others_is_kept(ct, torch_module, model, x):
    before = model(x)
    of_class = model.layers[0].forward
    model.layers[0].forward = twice = lambda *args: of_class(of_class(*args))
    expected = model(x)
    replaced = ct.replace(model, PLAN)
    first = model(x)
    assert not torch_module.equal(first, expected)
    of_ours = model.forward
    model.forward = lambda *args: -of_ours(*args)  # somebody wraps it later, and keeps ours
    assert torch_module.equal(model(x), -first)
    replaced.restore()
    assert model.layers[0].forward is twice
    assert torch_module.equal(model(x), -expected)
    del model.forward, model.layers[0].forward
    assert torch_module.equal(model(x), before)


def test_threads_are_in_layers_of_their_own(ct, torch_module, model, x):
    other = copy.deepcopy(model)
    before, found = other(x), []
    entered, go_on = threading.Event(), threading.Event()

    def wait(*_):
        entered.set()
        assert go_on.wait(30)

    def work():
        # A kernel first: cuBLAS warns of a thread that no context is current in yet.
        found.append(model(x.clone()))

    model.layers[0].register_forward_pre_hook(wait)
    with ct.replace(model) as replaced:
        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(30)
        assert torch_module.equal(other(x), before)
        go_on.set()
        thread.join()
        assert len(found) == 1
        assert replaced.calls.schemes == {"int8": 3}


def test_gradients_of_a_model(ct, torch_module, model, x):
    x.requires_grad_()
    (exact,) = torch_module.autograd.grad(model(x).sum(), x)
    with ct.replace(model) as replaced:
        assert torch_module.equal(torch_module.autograd.grad(model(x).sum(), x)[0], exact)
        assert replaced.calls.fallback == {"gradients": 3}
    with ct.replace(model, "fp16", backward="torch") as replaced:
        assert error(torch_module.autograd.grad(model(x).sum(), x)[0], exact) < 1e-3
        assert replaced.calls.schemes == {"fp16": 3}


@pytest.fixture
def others(monkeypatch):
    """Modules of the libraries' names, and one that has imported their functions."""
    flash_attn, sageattention = ModuleType("flash_attn"), ModuleType("sageattention")
    for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"):
        setattr(flash_attn, name, lambda *args, name=name, **options: name)
    sageattention.sageattn = lambda *args, **options: "sageattn"
    user = ModuleType("a_module_that_imported_them")
    vars(user).update({k: v for m in (flash_attn, sageattention) for k, v in vars(m).items()})
    for module in (flash_attn, sageattention, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return user


def test_functions_of_other_libraries(ct, torch_module, others, x):
    q = x.unflatten(-1, (2, 16)).half()
    bounds = torch_module.tensor([0, 24], dtype=torch_module.int32, device=q.device)
    with ct.replace() as replaced:
        o = others.flash_attn_func(q=q, k=q, v=q, causal=True)
        assert torch_module.equal(o, ct.flash_attn_func(q, q, q, causal=True))
        packed = others.flash_attn_varlen_func(
            q[0], q[0], q[0], bounds, bounds, 24, 24, causal=True
        )
        assert torch_module.equal(packed, o[0])
        assert torch_module.equal(others.flash_attn_with_kvcache(q, q, q, causal=True), o)
        sage = others.sageattn(q, q, q, tensor_layout="NHD", is_causal=True)
        assert torch_module.equal(sage, o)
        slopes = torch_module.tensor([0.5, 0.25], device=q.device)
        given = {"window_size": (5, 5), "softcap": 9.0, "alibi_slopes": slopes}
        o, lse, _ = others.flash_attn_func(q, q, q, **given, return_attn_probs=True)
        expected = own(q, q, q, **given, layout="NHD", return_lse=True)
        assert torch_module.equal(o, expected[0])
        assert torch_module.equal(lse, expected[1])
        assert replaced.calls.schemes == {"int8": 5}
        assert others.flash_attn_func(q, q, q, 0.5) == "flash_attn_func"
        assert others.sageattn(q.double(), q.double(), q.double()) == "sageattn"
        assert others.flash_attn_func(q.requires_grad_(), q, q) == "flash_attn_func"
        q.requires_grad_(False)
        assert replaced.calls.fallback == {"dropout": 1, "dtype": 1, "gradients": 1}
        assert replaced.calls.cuattn == 5
    assert others.sageattn(q, q, q) == "sageattn"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "Flux"}, "model must be a torch.nn.Module or None"),
        ({"scheme": PLAN}, "scheme must be given with a model"),
        ({"leave_out": "layers.0"}, "leave_out must be empty, as there is no model"),
        ({"scheme": "int7"}, "scheme must be"),
        ({"backward": "ours"}, "backward must be None or"),
    ],
)
def test_arguments_are_checked(ct, options, message):
    with pytest.raises(ArgumentError, match=rf"^{message}"):
        ct.replace(**options)


def test_names_are_those_of_modules(ct, model):
    with pytest.raises(
        ArgumentError, match=r"^leave_out must be modules of the model: layers, layers.0"
    ):
        ct.replace(model, leave_out="attn.*")
    plan = cuattn.SchemePlan({"layer 3": PRESETS["int8"]})
    with pytest.raises(
        ArgumentError, match=r"^scheme must be of layers of the model: layers, .*'layer 3'"
    ):
        ct.replace(model, plan)
    with pytest.raises(KeywordError, match=r"expected one of"):
        ct.replace(model, skip="layers.0")
    assert not any("forward" in vars(module) for module in model.modules())
