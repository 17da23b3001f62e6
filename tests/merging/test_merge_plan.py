"""`merge_states` on the simulated GPU: which launches there are, and what reaches them."""

import re

import numpy as np
import pytest
from helpers.arrays_in_memory import DTYPES, MEMORY, is_aligned
from helpers.merge_cases import merged, placed, stored_states
from helpers.spec_structs import begins_with_its_fields

import cuattn
from cuattn.compile.params import record
from cuattn.compile.sources import sources
from cuattn.errors import ArgumentError
from cuattn.operands.operand import DTYPES as TYPES
from cuattn.plan.listing import merge_specs
from cuattn.specs.attention import Type
from cuattn.specs.merge import MergeSpec

pytest.importorskip("cupy")
from simulated_gpu.memory import garbage

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def test_spec_mirrors_the_source():
    spec = MergeSpec(Type.fp16, Type.fp32, aligned=True)
    begins_with_its_fields(spec, spec.params_file)
    assert re.search(rf"\b{spec.function}\(const {spec.params}& ", sources()[spec.source])
    parts = record(spec.params, spec.params_file).fields["part"][0]
    assert parts.shape == (spec.parts,)


@pytest.mark.parametrize("head_dim", [8, 24, 64, 72, 128, 256, 512, 1024])
@every_dtype
def test_threads_have_whole_rows(head_dim, dtype):
    spec = MergeSpec(TYPES[dtype], TYPES[dtype], aligned=True)
    lanes, tile = spec.lanes(head_dim), spec.tile(head_dim)
    assert lanes * spec.chunks * 16 >= head_dim * spec.input.nbytes
    assert tile >= 1
    assert lanes * tile <= spec.num_threads


def test_every_kernel_is_listed(gpu, rng):
    for dtype in DTYPES:
        for memory in ("contiguous", "odd base"):
            for parts in (2, 20):
                o, lse = stored_states(rng, dtype, parts, (1, 2, 3, 8))
                cuattn.merge_states(*placed(np, o, lse, dtype, memory))
    assert {*gpu.specs} == {*merge_specs(DTYPES)}


@every_dtype
@pytest.mark.parametrize("parts", [1, 2, 15, 16, 17, 32, 33, 100])
def test_any_number_of_parts(gpu, rng, parts, dtype):
    o, lse = stored_states(rng, dtype, parts, (2, 3, 7, 16))
    merged(placed(np, o, lse, dtype), o, lse, dtype)
    assert gpu.launched == ["merge_states"] * -(-parts // 16)
    assert [spec.out for spec in gpu.specs[:-1]] == [Type.fp32] * (len(gpu.specs) - 1)
    assert gpu.specs[-1].out is TYPES[dtype]


@every_dtype
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("parts", [3, 18])
def test_parts_lie_anywhere(gpu, rng, memory, dtype, layout, parts):
    o, lse = stored_states(rng, dtype, parts, (2, 3, 7, 24))
    given, lses = placed(np, o, lse, dtype, memory)
    if layout == "NHD":
        given = [x.swapaxes(1, 2) for x in given]
    before = [x.copy() for x in (*given, *lses)]
    merged((given, lses), o, lse, dtype, layout=layout)
    assert gpu.specs[0].aligned == is_aligned(memory)
    for x, y in zip((*given, *lses), before, strict=True):
        assert x.tobytes() == y.tobytes()


@every_dtype
def test_channels_that_are_apart_are_copied(gpu, rng, dtype):
    o, lse = stored_states(rng, dtype, 4, (2, 3, 7, 24))
    given, lses = placed(np, o, lse, dtype)
    given[2] = np.repeat(given[2], 2, axis=3)[..., ::2]
    merged((given, lses), o, lse, dtype)


def test_strides_of_lse_are_its_own(gpu, rng):
    o, lse = stored_states(rng, "float16", 3, (2, 3, 7, 24))
    given, lses = placed(np, o, lse, "float16")
    tokens_first = [np.ascontiguousarray(x.transpose(2, 0, 1)).transpose(1, 2, 0) for x in lses]
    backwards = [np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1] for x in lses]
    merged((given, [tokens_first[0], backwards[1], lses[2]]), o, lse, "float16")


@every_dtype
@pytest.mark.parametrize("parts", [1, 5, 20])
def test_parts_may_be_stacked(gpu, rng, parts, dtype):
    o, lse = stored_states(rng, dtype, parts, (2, 3, 7, 24))
    given, lses = placed(np, o, lse, dtype)
    wanted = cuattn.merge_states(given, lses)
    inner = np.ascontiguousarray(o.transpose(1, 2, 3, 0, 4)).transpose(3, 0, 1, 2, 4)
    for some in ((o, lse), (o, lses), (tuple(given), lse), (inner, lse)):
        found = cuattn.merge_states(*some)
        for x, y in zip(found, wanted, strict=True):
            assert x.tobytes() == y.tobytes()
    nhd = merged((o.swapaxes(2, 3), lse), o, lse, dtype, layout="NHD")
    assert nhd[0].tobytes() == np.ascontiguousarray(wanted[0].swapaxes(1, 2)).tobytes()


@every_dtype
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("parts", [2, 17])
def test_output_may_be_the_callers(gpu, rng, dtype, layout, parts):
    o, lse = stored_states(rng, dtype, parts, (2, 3, 7, 24))
    given, lses = placed(np, o, lse, dtype)
    if layout == "NHD":
        given = [x.swapaxes(1, 2) for x in given]
    shape = given[0].shape
    kind = o.dtype
    wide = garbage((*shape[:3], 2 * shape[3]), kind)
    outputs = {
        "contiguous": garbage(shape, kind),
        "between others": wide[..., 8:32],
        "odd": garbage((*shape[:3], 25), kind)[..., 1:],
        "channels apart": wide[..., ::2],
    }
    for place, out in outputs.items():
        wide.view(np.uint8).fill(0xFF)
        result = merged((given, lses), o, lse, dtype, layout=layout, out=out)
        assert result[0] is out
        assert gpu.specs[-1].aligned == (place != "odd")
        rest = wide[..., 1::2] if place == "channels apart" else wide[..., 32:]
        assert (rest.copy().view(np.uint8) == 0xFF).all()


@pytest.mark.parametrize("shape", [(0, 3, 7, 24), (2, 0, 7, 24), (2, 3, 0, 24)])
def test_no_rows_are_no_launches(gpu, shape):
    o, lse = np.zeros(shape, np.float16), np.zeros(shape[:3], np.float32)
    merged_o, merged_lse = cuattn.merge_states([o, o], [lse, lse])
    assert (merged_o.shape, merged_lse.shape) == (shape, shape[:3])
    assert gpu.launched == []


def test_output_apart_from_all_inputs(gpu, rng):
    o, lse = stored_states(rng, "float16", 3, (2, 3, 7, 24))
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of o\[1\]"):
        cuattn.merge_states(o, lse, out=o[1])
    # Where an lse is, and what lies between its elements.
    both = np.zeros((2, 3, 7, 28), np.float16)
    inside = both[..., :2].view(np.float32)[..., 0]
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of lse\[0\]"):
        cuattn.merge_states([o[0]], [inside], out=both[..., :24])
    inside[...] = lse[0]
    merged(([o[0]], [inside]), o[:1], lse[:1], "float16", out=both[..., 2:26])
    np.testing.assert_array_equal(inside, lse[0])


def test_plans_are_remembered(gpu, rng):
    o, lse = stored_states(rng, "float16", 3, (2, 3, 7, 24))
    prepare = cuattn.merging.prepare_merge
    for _ in range(3):
        cuattn.merge_states(o, lse)
    assert (prepare.cache_info().misses, prepare.cache_info().hits) == (1, 2)
