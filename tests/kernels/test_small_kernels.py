"""The kernels beside the quantizer, without a GPU: their specs, their code, their arguments.

What they compute is simulated, so the tests of arguments hold the simulation to the reference.
"""

import re

import numpy as np
import pytest

from cuattn.compile.params import record
from cuattn.compile.sources import sources
from cuattn.plan.listing import quantizer_specs
from cuattn.reference.layout import HEAD_DIMS, TOKEN_PAD
from cuattn.reference.smoothing import Q_BLOCK
from cuattn.scheme import Scheme
from cuattn.specs.attention import Type
from cuattn.specs.rotate import RotateSpec
from cuattn.specs.smoothing import KEY_PAD, BlockMeansSpec, DeltaSpec
from cuattn.specs.unpack import PIECE, UnpackSpec

pytest.importorskip("cupy")
from helpers.around_quantizer_cases import (
    Place,
    check_block_means,
    check_deltas,
    check_rotation,
    check_unpacked,
)
from helpers.spec_structs import begins_with_its_fields
from simulated_gpu import GPU, SimulatedGPU

INPUTS = (Type.fp16, Type.bf16, Type.fp32)
ROWS = (BlockMeansSpec, DeltaSpec, RotateSpec)
SPECS = [*(kind(Type.bf16, 96, aligned=True) for kind in ROWS), UnpackSpec()]
every_kind = pytest.mark.parametrize("kind", ROWS, ids=lambda kind: kind.__name__)
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)


@pytest.fixture
def place(monkeypatch):
    SimulatedGPU(monkeypatch)
    return Place(GPU, np)


@every_spec
def test_literal_names_every_member_in_order(spec):
    begins_with_its_fields(spec, spec.params_file)


@every_spec
def test_params_can_be_read(spec):
    assert record(spec.params, spec.params_file).itemsize % 8 == 0
    assert re.search(rf"\b{spec.function}\(const {spec.params}& ", sources()[spec.source])


def test_constants_agree():
    block = re.search(r"kQBlock = (\d+);", sources()["layout.cuh"])[1]
    assert int(block) == Q_BLOCK
    assert KEY_PAD == TOKEN_PAD


@every_kind
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("element", INPUTS, ids=lambda t: t.value)
def test_tiles_cover_every_length_once(kind, head_dim, element):
    spec = kind(element, head_dim, aligned=True)
    assert spec.smem_bytes <= 48 * 1024
    count, tile, pad = {
        BlockMeansSpec: lambda: (spec.blocks, Q_BLOCK, 1),
        DeltaSpec: lambda: (spec.tiles, spec.keys, KEY_PAD),
        RotateSpec: lambda: (spec.tiles, spec.tile, 1),
    }[kind]()
    assert count(0) == 0
    for n in (1, tile - 1, tile, tile + 1, 10 * tile + 1):
        tokens = -(-n // pad) * pad
        assert (count(n) - 1) * tile < tokens <= count(n) * tile


def test_ctas_cover_all_codes():
    spec = UnpackSpec()
    whole = spec.pieces * PIECE
    assert [spec.ctas(n) for n in (PIECE, whole, whole + PIECE)] == [1, 1, 2]


def test_schemes_say_which_of_them_are_needed():
    def kinds(**how):
        found = {type(spec) for spec in quantizer_specs(Scheme("mine", **how), 64, Type.fp16)}
        return found & {BlockMeansSpec, DeltaSpec, RotateSpec, UnpackSpec}

    assert kinds() == set()
    assert kinds(smooth_q="block") == {BlockMeansSpec, DeltaSpec}
    assert kinds(rotate="qkv") == {RotateSpec}
    assert kinds(rotate="qk") == kinds(rotate="qk", pv="fp16", p_range="row") == set()
    assert kinds(qk="int4") == kinds(pv="int4") == {UnpackSpec}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("memory", ["contiguous", "odd base", "tokens backwards"])
def test_arguments_reach_the_kernels(place, rng, dtype, memory):
    x = rng.standard_normal((2, 3, 300, 40), np.float32)
    vector = x.mean(axis=2)
    mean = rng.standard_normal((2, 6, 5, 40), np.float32)
    check_block_means(place, x, dtype, memory)
    check_deltas(place, mean, x, dtype, vector=vector, memory=memory)
    check_deltas(place, mean, x, dtype, factor=3.0, memory=memory)
    check_rotation(place, x, dtype, vector=vector, memory=memory)
    check_rotation(place, x, dtype, memory=memory)


def test_all_codes_are_unpacked(place):
    check_unpacked(place, np.tile(np.arange(-8, 8, dtype=np.int8), 3))
