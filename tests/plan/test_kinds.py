"""What calls are known by: keys of their arguments, and the check of tensors in their place."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import cuattn
from cuattn.plan import kinds
from cuattn.plan.kinds import Kind, addresses_of


class Tensor:
    """What is asked of a `torch.Tensor`."""

    is_cuda, requires_grad, is_nested = True, False, False

    def __init__(self, shape=(2, 3), ptr=0x1000):
        self.shape, self.dtype, self._ptr = shape, "float16", ptr

    def is_neg(self):
        return False

    def data_ptr(self):
        return self._ptr

    def stride(self):
        return (3, 1)

    def get_device(self):
        return 0

    def __getitem__(self, index):
        assert index is None
        return Tensor((1, *self.shape))


class Guards:
    """PyTorch's check of tensors, which ends the process at a nested one."""

    def __init__(self, *tensors, dynamic_dims_sizes, dynamic_dims_strides):
        self._sizes = dynamic_dims_sizes

    def check(self, *tensors):
        assert not any(x.is_nested for x in tensors)
        return [[*x.shape] for x in tensors] == self._sizes


@pytest.fixture
def torch(monkeypatch):
    torch = ModuleType("torch")
    torch.Tensor = Tensor
    torch.nn = SimpleNamespace(Parameter=type("Parameter", (Tensor,), {}))
    guards = SimpleNamespace(TensorGuards=Guards)
    torch._C = SimpleNamespace(_dynamo=SimpleNamespace(guards=guards))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(kinds, "_looks", {**kinds._looks})
    return torch


def key_of(*values):
    key = []
    return None if addresses_of(values, key) is None else tuple(key)


def test_options_that_are_equal_have_keys_of_their_own():
    scheme = cuattn.PRESETS["int8"]
    values = (None, 0, 1, 0.0, 1.0, False, True, "int8", scheme, (1, 0), (True, 0), (1, 0.0), ())
    keys = [key_of(x) for x in values]
    assert len(set(keys)) == len(values)
    assert keys == [key_of(x) for x in values]


@pytest.mark.parametrize(
    "x", [[1, 0], (1, [0]), np.float32(1), np.zeros(3), {}, object(), Tensor(), (None, np.int64(1))]
)
def test_what_has_to_be_looked_at_closely_has_none(x):
    assert key_of(1, x) is None


def test_tensors_add_addresses_in_their_order(torch):
    key = []
    addresses = addresses_of((Tensor(), 7, Tensor((4, 3), 0x2008)), key)
    assert addresses == [0x1000, 0x2008]
    assert key == [(2, 3), (3, 1), "float16", 0, 0, int, 7, (4, 3), (3, 1), "float16", 0, 8]


def test_codes_in_host_memory_have_no_key():
    codes = cuattn.quantize(np.ones((1, 1, 8, 64), np.float32), operand="q")
    assert key_of(codes) is None


def test_codes_of_one_kind_have_one_key(gpu, rng):
    def codes(tokens, **options):
        x = rng.standard_normal((1, 2, tokens, 64)).astype(np.float16)
        return cuattn.quantize(x, **options)

    kinds = [
        {"tokens": 40, "operand": "q"},
        {"tokens": 41, "operand": "q"},
        {"tokens": 40, "operand": "k"},
        {"tokens": 40, "operand": "q", "scheme": "int8-fast"},
    ]
    keys = [key_of(codes(**options)) for options in kinds]
    assert len(set(keys)) == len(kinds)
    assert keys == [key_of(codes(**options)) for options in kinds]
    x = codes(40, operand="k")
    assert addresses_of((x,), []) == [*x.addresses, x.order_address]


def test_a_kind_is_recognized(torch, gpu, rng):
    x = rng.standard_normal((1, 2, 40, 64)).astype(np.float16)
    codes, other = (cuattn.quantize(x, operand=name) for name in "kq")
    values = Tensor(), 0.5, codes, Tensor((4, 3), 0x2000), (1, 0)
    addresses_of(values, [])
    kind = Kind(values)
    assert kind.addresses_of(values) == addresses_of(values, [])
    again = Tensor(ptr=0x3000), 0.25 + 0.25, codes, Tensor((4, 3), 0x4000), (1, int(0.5))
    assert kind.addresses_of(again) == addresses_of(again, [])
    nested = Tensor()
    nested.is_nested = True
    for i, wrong in (
        (0, Tensor((2, 4))),
        (0, Tensor(ptr=0x1008)),
        (0, Tensor(ptr=0)),
        (0, nested),
        (0, None),
        (1, 0.25),
        (1, None),
        (2, other),
        (2, Tensor()),
        (3, codes),
        (4, (True, 0)),
        (4, (1, 1)),
    ):
        assert kind.addresses_of((*values[:i], wrong, *values[i + 1 :])) is None, (i, wrong)


def test_kinds_without_tensors_are_recognized(gpu, rng):
    x = rng.standard_normal((1, 2, 40, 64)).astype(np.float16)
    codes = [cuattn.quantize(x, operand="q"), *cuattn.quantize_kv(x, x)]
    kind = Kind((*codes, "int8"))
    assert kind.addresses_of((*codes, "int8")) == addresses_of(codes, [])
    assert kind.addresses_of((*codes, "int4")) is None
    assert kind.addresses_of((codes[1], *codes[1:], "int8")) is None


def test_there_is_no_check_of_what_it_would_not_see(torch):
    wants_gradients = Tensor()
    wants_gradients.requires_grad = True
    addresses_of((Tensor(),), [])
    apart = Tensor(), Tensor(ptr=0x1008)
    for values in ((wants_gradients,), (Tensor(), np.zeros(3)), apart):
        with pytest.raises(LookupError):
            Kind(values)


@pytest.mark.parametrize(
    "check", [lambda *tensors: True, lambda *tensors: False, None], ids=["any", "none", "missing"]
)
def test_a_check_that_tells_nothing_is_not_used(torch, monkeypatch, check):
    if check is None:
        monkeypatch.delattr(torch._C, "_dynamo")
    else:
        monkeypatch.setattr(Guards, "check", staticmethod(check))
    addresses_of((Tensor(),), [])
    with pytest.raises(LookupError):
        Kind((Tensor(),))
