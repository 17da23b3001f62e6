"""What a scheme rotates, from its field to the kernels of both families."""

from dataclasses import replace

import pytest

from cuattn.arrays.device import TARGETS
from cuattn.errors import ArgumentError
from cuattn.plan.kernels import attention_spec
from cuattn.plan.listing import quantizer_specs
from cuattn.presets import PRESETS
from cuattn.scheme import Scheme
from cuattn.specs.attention import Type
from cuattn.specs.coding import coding
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.rotate import RotateSpec

INT8 = PRESETS["int8-block"]
ROTATIONS = ("none", "qk", "qkv")


@pytest.mark.parametrize(
    ("rotate", "operands"), [("none", ""), ("qk", "qk"), ("qkv", "qkv")], ids=ROTATIONS
)
def test_scheme_says_which_operands_are_rotated(rotate, operands):
    scheme = Scheme("own", rotate=rotate)
    assert "".join(x for x in "qkv" if scheme.rotates(x)) == operands


def test_presets_rotate_q_and_k_where_no_paper_says_otherwise():
    found = {name: scheme.rotate for name, scheme in PRESETS.items() if scheme.rotate != "none"}
    for name in ("int8", "int8-block", "int8-fast", "int8-fp16", "int4"):
        assert found.pop(name) == "qk"
    assert found.pop("int-flash-rotated") == "qkv"
    assert not any(name.startswith(("int-flash", "sage", "twin", "fp")) for name in found)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"pv": "fp16", "p_range": "row", "rotate": "qkv"}, "('none', 'qk') with pv='fp16'"),
        (
            {"qk": "fp16", "pv": "fp16", "p_range": "row", "smooth_k": "none", "rotate": "qk"},
            "('none',) with qk='fp16'",
        ),
        (
            {"q_scope": "tensor", "k_scope": "tensor", "smooth_k": "mean", "rotate": "qk"},
            "('none',) with scales of whole heads",
        ),
        ({"rotate": True}, "('none', 'qk', 'qkv')"),
        ({"rotate": False}, "('none', 'qk', 'qkv')"),
        ({"rotate": "v"}, "('none', 'qk', 'qkv')"),
    ],
)
def test_what_cannot_be_rotated_is_refused_by_name(options, allowed):
    with pytest.raises(ArgumentError) as error:
        Scheme("own", **options)
    assert str(error.value).startswith(f"scheme.rotate must be one of {allowed}")


def test_codes_of_v_are_the_same_whether_q_and_k_are_rotated():
    none, qk, qkv = (replace(INT8, rotate=rotate) for rotate in ROTATIONS)
    assert coding(none, "v") == coding(qk, "v") != coding(qkv, "v")
    for operand in "qk":
        assert coding(none, operand) != coding(qk, operand) == coding(qkv, operand)


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("preset", ["int8-token", "int8-fast", "int4"])
def test_only_o_of_a_rotated_v_is_rotated_back(arch, preset):
    none, qk, qkv = (
        attention_spec(
            replace(PRESETS[preset], rotate=rotate), 128, Type.fp16, False, TARGETS[arch]
        )
        for rotate in ROTATIONS
    )
    assert none == qk
    assert (qk.v_rotated, qkv.v_rotated) == (False, True)


def test_quantizers_of_each_rotation():
    def kinds(rotate):
        return list(quantizer_specs(replace(INT8, rotate=rotate), 64, Type.fp16))

    for rotate in ROTATIONS:
        rotated_first = [spec for spec in kinds(rotate) if isinstance(spec, RotateSpec)]
        assert bool(rotated_first) == (rotate == "qkv")
        ours = [x for x in kinds(rotate) if isinstance(x, QuantizeSpec) and x.input is Type.fp16]
        assert {spec.rotate for spec in ours} == {rotate != "none"}
        assert {spec.v.coded for spec in ours} == {rotate != "qkv"}
