"""`attention` with scheme="auto": what it computes, where it is refused, and what is said."""

from types import SimpleNamespace

import numpy as np
import pytest

import cuattn
from cuattn.arrays.view import Array
from cuattn.auto.choose import AutoChoice
from cuattn.cli import main
from cuattn.errors import ArgumentError
from cuattn.operands.problem import Options
from cuattn.plan import auto_problem
from cuattn.presets import AUTO, PRESETS

OPTIONS = Options("auto", None, False, False, "HND")


@pytest.fixture
def qkv(rng):
    return [rng.standard_normal((1, heads, 96, 32), np.float32) for heads in (4, 2, 2)]


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("return_lse", [False, True])
def test_in_host_memory_it_is_its_class_of_accuracy(qkv, name, return_lse):
    found, wanted = (
        cuattn.attention(*qkv, scheme=scheme, return_lse=return_lse)
        for scheme in (name, AUTO[name][-1])
    )
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("which", "qkv")
def test_codes_of_a_chosen_scheme_are_refused(qkv, which):
    i = "qkv".index(which)
    qkv[i] = cuattn.quantize(qkv[i], operand=which)
    with pytest.raises(ArgumentError, match=f"such as 'int8', for which {which} was quantized"):
        cuattn.attention(*qkv, scheme="auto")


@pytest.mark.parametrize(
    "refused",
    [
        lambda q, k, v: cuattn.quantize(k, scheme="auto"),
        lambda q, k, v: cuattn.measure_error(q, k, v, scheme="auto"),
        lambda q, k, v: cuattn.choose_scheme(q, k, v, schemes=["auto"]),
        lambda q, k, v: cuattn.search_twin(q, k, v, scheme="auto"),
    ],
)
def test_what_knows_no_call_refuses_it(qkv, refused):
    with pytest.raises(ArgumentError, match="must be one scheme: 'fp16' or 'int8'; only"):
        refused(*qkv)


@pytest.mark.parametrize(
    "command", [["bench"], ["report"], ["choose", "--input", "x.npz"], ["compile", "--arch=80"]]
)
def test_commands_refuse_it(capsys, command):
    assert main([*command, "--schemes", "int8,auto"]) == 2
    assert "must be one scheme: 'fp16' or 'int8'" in capsys.readouterr().err


def test_a_name_that_is_nearly_it_is_found(qkv):
    with pytest.raises(ArgumentError, match="did you mean 'auto-block'"):
        cuattn.attention(*qkv, scheme="auto_block")


def array(heads=4, tokens=96, head_dim=64):
    strides = (heads * tokens * head_dim, tokens * head_dim, head_dim, 1)
    return Array((2, heads, tokens, head_dim), strides, "float16", (2, 0))


@pytest.fixture
def chosen(monkeypatch):
    """Have a table, and what is chosen by it; return the calls that were asked about."""
    asked = []

    def choose(call, name, found):
        assert found == "a table"
        asked.append((call, name))
        return AutoChoice("int8-block", "")

    monkeypatch.setattr(auto_problem, "current_device", lambda: SimpleNamespace(name="a GPU"))
    monkeypatch.setattr(auto_problem, "table_for", lambda device: "a table")
    monkeypatch.setattr(auto_problem, "choose", choose)
    return asked


def test_on_a_gpu_the_table_decides(chosen):
    q, k = array(), array(2, 128)
    options = OPTIONS._replace(scheme="auto-block", is_causal=True)
    problem = auto_problem.problem_on_gpu(q, k, k, options)
    assert problem.scheme == PRESETS["int8-block"]
    ((call, name),) = chosen
    assert name == "auto-block"
    assert (call.batch, call.num_q_heads, call.num_kv_heads) == (2, 4, 2)
    assert (call.seqlen_q, call.seqlen_kv, call.head_dim, call.is_causal) == (96, 128, 64, True)


def test_other_schemes_ask_no_table(chosen):
    x = array()
    for scheme in ("int8", PRESETS["int4"]):
        problem = auto_problem.problem_on_gpu(x, x, x, OPTIONS._replace(scheme=scheme))
        assert problem.scheme == PRESETS.get(scheme, scheme)
    assert chosen == []
    with pytest.raises(ArgumentError, match="scheme must be a Scheme"):
        auto_problem.problem_on_gpu(x, x, x, OPTIONS._replace(scheme=["auto"]))


def test_arguments_are_checked_before_a_table_is_asked(chosen):
    with pytest.raises(ArgumentError, match=r"k.shape must be of batch 2 and head_dim 64"):
        auto_problem.problem_on_gpu(array(), array(head_dim=72), array(head_dim=72), OPTIONS)
    assert chosen == []


def test_a_gpu_without_a_table_is_told_of(monkeypatch):
    monkeypatch.setattr(auto_problem, "current_device", lambda: SimpleNamespace(name="a GPU"))
    monkeypatch.setattr(auto_problem, "table_for", lambda device: None)
    x = array()
    with pytest.warns(RuntimeWarning, match="'auto' is 'fp16', as there is no table of a GPU: run"):
        problem = auto_problem.problem_on_gpu(x, x, x, OPTIONS)
    assert problem.scheme == PRESETS["fp16"]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:scheme='auto")
@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("tokens", [64, 2048])
def test_it_is_bit_for_bit_the_scheme_that_is_named(rng, cupy, name, tokens):
    shape = (2, 8, tokens, 64)
    qkv = [cupy.asarray(rng.standard_normal(shape, np.float32)) for _ in range(3)]
    qkv = [x.astype(cupy.float16) for x in qkv]
    choice = cuattn.auto_scheme(shape, scheme=name)
    assert choice.scheme in AUTO[name]
    found, wanted = (cuattn.attention(*qkv, scheme=x).get() for x in (name, choice.scheme))
    np.testing.assert_array_equal(found, wanted)
