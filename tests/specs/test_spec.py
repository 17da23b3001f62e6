"""Specs and the C++ structs that they are the mirror of."""

import re

import pytest
from helpers.spec_structs import members, named

from cuattn.arrays.device import TARGETS
from cuattn.compile.sources import sources
from cuattn.plan.kernels import supported
from cuattn.plan.listing import attention_specs
from cuattn.specs.attention import AttentionSpec, PRange, Scope, Type
from cuattn.specs.wgmma import WgmmaSpec

HEADERS = {
    ("AttentionSpec", "100a"): "spec.cuh",
    ("WgmmaSpec", "90a"): "sm90/wgmma_spec.cuh",
}


@pytest.mark.parametrize(("struct", "arch"), HEADERS, ids=lambda x: x)
def test_literal_has_the_members_of_the_struct_in_order(struct, arch):
    spec = attention_specs(["int8-token"], [64], ["float16"], TARGETS[arch])[0]
    assert type(spec).__name__ == struct
    name, values = re.fullmatch(r"(\w+)\{(.*)\}", spec.cxx()).groups()
    assert name == struct
    assert named(values) == members(struct, HEADERS[struct, arch])


@pytest.mark.parametrize("enum", [Type, Scope, PRange])
def test_enumerators_are_those_of_the_header(enum):
    found = re.search(rf"enum class {enum.__name__} {{ (.*?) }};", sources()["spec.cuh"])[1]
    assert found.split(", ") == [member.value for member in enum]


@pytest.mark.parametrize("arch", TARGETS)
def test_specs_say_what_is_to_be_compiled(arch):
    for spec in attention_specs(["int8", "fp16"], [40, 256], ["bfloat16"], TARGETS[arch]):
        assert spec.source in sources()
        assert f"struct {spec.params} " in sources()[spec.params_file]
        assert re.search(rf"\b{spec.function}\(const {spec.params}& ", sources()[spec.source])


def test_rows_and_threads_follow_from_warps_and_warpgroups():
    for arch in TARGETS:
        schemes = supported(TARGETS[arch])
        for spec in attention_specs(schemes, [64], ["float16"], TARGETS[arch]):
            if isinstance(spec, AttentionSpec):
                assert spec.rows * 2 == spec.num_threads * spec.row_tiles
            elif isinstance(spec, WgmmaSpec):
                assert (spec.rows, spec.num_threads) == (64 * spec.groups, 128 * spec.groups + 128)
