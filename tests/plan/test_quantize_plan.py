"""The quantizing kernels' specs: they agree with the sources, and their tiles cover any input."""

import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.spec_structs import begins_with_its_fields

from cuattn.arrays.device import TARGETS
from cuattn.compile.params import record
from cuattn.compile.sources import sources
from cuattn.plan.kernels import needs_stats
from cuattn.presets import PRESETS
from cuattn.reference.layout import HEAD_DIMS, LOG2_BIAS, TOKEN_PAD
from cuattn.reference.quantize import AMAX_FLOOR, SAMPLE
from cuattn.reference.quantized import LARGEST_CODE
from cuattn.reference.smoothing import FENCE, GROUPS, Q_BLOCK
from cuattn.reference.softmax import FIRST_HEADROOM
from cuattn.reference.sorting import LANES, PLACE_SCALES, SORTED_BLOCK
from cuattn.scheme import Scheme
from cuattn.specs.attention import Scope, Type
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.stats import FinishSpec, StatsSpec

INPUTS = (Type.fp16, Type.bf16, Type.fp32)
SCHEMES = {
    **PRESETS,
    "smoothed": Scheme("smoothed", smooth_k="mean", smooth_v="mean"),
    "blocks of 64": Scheme("b64", k_scope="block", pv="fp16", p_range="row", p_block=64),
    "blocks and tokens": Scheme("bt", q_scope="block", k_scope="block"),
    "rotated blocks": Scheme(
        "rb", q_scope="block", k_scope="block", v_scope="channel", smooth_q="block", rotate="qkv"
    ),
    "sorted": Scheme("sorted", k_scope="sorted", v_scope="sorted", smooth_v="sample"),
    "rotated threads": Scheme("rt", q_scope="thread", k_scope="thread", rotate="qk"),
}


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return SCHEMES[request.param]


@pytest.fixture(params=HEAD_DIMS)
def head_dim(request):
    return request.param


@pytest.fixture(params=INPUTS, ids=lambda t: t.value)
def spec(request, scheme, head_dim):
    return QuantizeSpec.of(scheme, request.param, head_dim, aligned=True)


def constant(file, name):
    return re.search(rf"constexpr \w+ {name} = ([^;]+?)f?;", sources()[file])[1]


@pytest.mark.parametrize(
    "spec",
    [
        QuantizeSpec.of(PRESETS["int8"], Type.fp16, 128, aligned=True),
        StatsSpec.of(PRESETS["int8"], Type.fp16, 128, aligned=True),
        FinishSpec(128, qk_range=False, v_range=True),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_literal_names_every_member_in_order(spec):
    begins_with_its_fields(spec, "quant/quantize_spec.cuh")


def test_literal_is_cxx():
    spec = FinishSpec(head_dim=64, qk_range=False, v_range=True)
    expected = (
        ".head_dim = 64, .qk_range = false, .v_range = true, .varlen = false, "
        ".num_threads = 256, .min_ctas = 2"
    )
    assert spec.cxx() == f"FinishSpec{{{expected}, .smem_bytes = {spec.smem_bytes}}}"
    quantize = QuantizeSpec.of(PRESETS["int8-block"], Type.bf16, 96, aligned=False)
    assert ".input = Type::bf16, .q = Type::int8" in quantize.cxx()
    scopes = ".q_scope = Scope::token, .k_scope = Scope::block, .k_stored = Scope::block"
    assert f"{scopes}, .k_block = 128" in quantize.cxx()


def test_constants_agree_with_the_reference():
    assert float.fromhex(constant("quant/codes.cuh", "kAmaxFloor")) == AMAX_FLOOR
    assert int(constant("layout.cuh", "kTokenPad")) == TOKEN_PAD
    assert float(constant("layout.cuh", "kLog2Bias")) == LOG2_BIAS
    assert int(constant("quant/moments.cuh", "kSample")) == SAMPLE
    assert int(constant("quant/group_means.cuh", "kMeanGroups")) == GROUPS
    assert float(constant("quant/group_means.cuh", "kFence").rstrip("f")) == FENCE
    headroom = np.float32(constant("attn/p_range.cuh", "kFirstHeadroom"))
    assert headroom == np.float32(FIRST_HEADROOM)
    largest = re.search(
        r"Type::e4m3 \? ([\d.]+)f : Bits == 4 \? ([\d.]+)f : ([\d.]+)f",
        sources()["quant/codes.cuh"],
    )
    expected = [LARGEST_CODE[x] for x in ("fp8", "int4", "int8")]
    assert list(map(float, largest.groups())) == expected
    assert int(constant("layout.cuh", "kQBlock")) == Q_BLOCK
    assert int(constant("layout.cuh", "kSortedBlock")) == SORTED_BLOCK
    assert LANES * int(constant("layout.cuh", "kLanePlaces")) == SORTED_BLOCK
    assert LANES * int(constant("layout.cuh", "kSections")) == PLACE_SCALES


@pytest.mark.parametrize("struct", ["QuantizeParams", "StatsParams"])
def test_params_can_be_read(struct):
    dtype = record(struct, "quant/quantize_params.cuh")
    assert dtype.itemsize % 8 == 0
    assert dtype.itemsize < 4096  # what a kernel takes by value


def test_scheme_decides_what_operands_become():
    def types(packed):
        return {
            name: tuple(t.value for t in (spec.q, spec.k, spec.v))
            for name in PRESETS
            for spec in [QuantizeSpec.of(PRESETS[name], Type.bf16, 64, True, packed, packed)]
        }

    half_values = ("int8", "int8", "fp16")
    others = {
        "int8-fp8": ("int8", "int8", "e4m3"),
        "int8-fp16": half_values,
        "int4-fp16": half_values,
        "int-flash-half": half_values,
        "int-flash-rotated": half_values,  # V's codes are made by a launch of their own
        "sage-t": half_values,
        "sage-b": half_values,
        "sage2-8": ("int8", "int8", "e4m3"),
        "sage2-4": ("int8", "int8", "e4m3"),
        "fp8": ("e4m3",) * 3,
        "fp16": ("bf16",) * 3,
    }
    assert types(packed=False) == dict.fromkeys(PRESETS, ("int8",) * 3) | others
    assert types(packed=True) == types(packed=False) | {
        "int4": ("int4", "int4", "int8"),
        "int4-fp16": ("int4", "int4", "fp16"),
        "int-flash-int4": ("int4",) * 3,
        "sage2-4": ("int4", "int4", "e4m3"),
    }


def test_codes_have_the_bits_of_the_scheme_however_they_are_stored():
    for packed in (False, True):
        spec = QuantizeSpec.of(PRESETS["int-flash-int4"], Type.fp16, 64, True, packed, packed)
        assert (spec.qk_bits, spec.v_bits) == (4, 4)
        spec = QuantizeSpec.of(PRESETS["sage2-4"], Type.fp16, 64, True, packed, packed)
        assert (spec.qk_bits, spec.v_bits) == (4, 8)


def test_rotated_values_have_a_spec_of_their_own():
    scheme = replace(SCHEMES["rotated blocks"], smooth_v="mean")
    spec = QuantizeSpec.of(scheme, Type.bf16, 128, aligned=False)
    assert spec.rotate
    assert not spec.v.coded
    values = QuantizeSpec.of_rotated_values(scheme, 128)
    assert (values.input, values.v, values.v_scope) == (Type.fp32, Type.int8, Scope.channel)
    assert values.aligned
    assert not values.rotate
    assert not values.v_smooth
    of_input, of_values = (
        StatsSpec.of(scheme, Type.bf16, 128, True),
        StatsSpec.of_rotated_values(128),
    )
    assert (of_input.v_range, of_values.v_range) == (False, True)


def test_only_values_that_are_rotated_have_a_spec_of_their_own():
    scores = replace(SCHEMES["rotated blocks"], rotate="qk", smooth_v="mean")
    spec = QuantizeSpec.of(scores, Type.fp16, 128, aligned=True)
    assert (spec.rotate, spec.v, spec.v_smooth) == (True, Type.int8, True)
    assert spec.v_scope is Scope.channel
    assert StatsSpec.of(scores, Type.fp16, 128, True).v_range
    assert needs_stats(scores) == needs_stats(replace(scores, rotate="none"))


def test_lanes_of_a_group_of_channels_are_neighbours():
    groups = Scheme("groups", q_scope="group", k_scope="group", rotate="qk")
    assert QuantizeSpec.of(groups, Type.fp16, 128, aligned=True).qk_lanes == 0


def test_scales_of_keys_are_stored_by_block_only_where_nothing_else_is_by_key():
    blocks = PRESETS["sage-vb"]
    assert QuantizeSpec.of(blocks, Type.fp16, 64, True).k_stored is Scope.block
    smoothed = replace(blocks, smooth_q="block")
    assert QuantizeSpec.of(smoothed, Type.fp16, 64, True).k_stored is Scope.token
    assert (
        QuantizeSpec.of(SCHEMES["blocks and tokens"], Type.fp16, 64, True).k_stored is Scope.token
    )


def test_tiles_hold_whole_scopes_and_padding(spec):
    needed = {Scope.block: (128, spec.k_block), Scope.thread: (32, 64)}
    for tile, scope, i in ((spec.q_tile, spec.q_scope, 0), (spec.k_tile, spec.k_scope, 1)):
        assert tile % needed.get(scope, (1, 1))[i] == 0
    if spec.v.coded:
        assert spec.v_tile % TOKEN_PAD == 0


def test_rotated_rows_fit_the_registers_of_few_lanes(spec):
    assert spec.qk_lanes == (0 if not spec.rotate else 4 if spec.head_dim >= 192 else 2)
    if spec.rotate:
        # Each lane has whole runs of 16 channels.
        assert spec.head_dim % (16 * spec.qk_lanes) == 0
        # A block of sorted keys is held whole, by as few threads as make words of V.
        of_keys = 96 if spec.k_scope is Scope.sorted else 64
        for tile, most in ((spec.q_tile, 64), (spec.k_tile, of_keys)):
            assert tile * spec.head_dim / spec.num_threads <= most
        assert spec.min_ctas * spec.num_threads <= 512


def test_tiles_keep_enough_loads_under_way(spec):
    # 64 KiB an SM hide the latency of device memory (docs/lab-notebook.md); the registers that hold
    # them must leave room for arithmetic: at most half of the SM's 256 KiB. Rotated rows of 16 bits
    # are widened there.
    least = 48 if spec.rotate and spec.input is not Type.fp32 else 64
    if spec.k_scope is Scope.sorted:
        # A CTA that sorts holds a whole block of keys, so there are few; tiles of later ones are
        # brought to the L2 cache meanwhile.
        least = 24
    for tile in (spec.q_tile, spec.k_tile):
        under_way = spec.min_ctas * tile * spec.head_dim * spec.input.nbytes
        assert least * 1024 <= under_way <= 128 * 1024


def test_shared_memory_fits_every_gpu_and_the_ctas(spec):
    assert spec.smem_bytes % 16 == 0
    # Rows of the next tile take more than needs no permission.
    assert spec.smem_bytes <= (96 if spec.staged else 53) * 1024
    assert spec.smem_bytes <= min(facts.max_smem_per_cta for facts in TARGETS.values())
    assert spec.min_ctas * (spec.smem_bytes + 1024) <= TARGETS["80"].max_smem_per_sm


def test_rows_that_take_more_than_loads_come_a_tile_ahead(spec):
    takes_more = spec.rotate or spec.k_scope is Scope.sorted
    assert not spec.staged or takes_more
    assert not spec.v_staged or (spec.staged and spec.k_scope is Scope.sorted)
    if takes_more and spec.input.nbytes == 2 and spec.head_dim <= 128:
        assert spec.staged
        assert spec.v_staged == (spec.k_scope is Scope.sorted)
    assert not replace(spec, aligned=False).staged  # only whole vectors are copied


def test_ctas_are_as_many_as_run_at_a_time_where_they_take_turns():
    spec = QuantizeSpec.of(PRESETS["int8"], Type.fp16, 128, aligned=True)
    assert (spec.min_ctas, spec.staged) == (2, True)
    assert [spec.ctas(tiles, 132) for tiles in (1, 264, 5000)] == [1, 264, 264]
    alone = replace(spec, aligned=False)
    assert [alone.ctas(tiles, 132) for tiles in (1, 264, 5000)] == [1, 264, 5000]


@pytest.mark.parametrize("element", INPUTS, ids=lambda t: t.value)
def test_staged_rows_meet_few_banks_twice(element, head_dim):
    """The addresses of `StagedRows`, with the lanes of `Rows`: eight read 16 bytes at a time."""
    spec = QuantizeSpec.of(PRESETS["int8-block"], element, head_dim, aligned=True)
    row_chunks, run = head_dim * element.nbytes // 16, element.nbytes
    lanes = min(row_chunks & -row_chunks, spec.qk_lanes * run) // run
    span, pitch = lanes * run, row_chunks

    def permutation(row):
        if pitch % 8:
            return 0
        return row % run + (row // run % max(8 // span, 1) * span if span < 8 else 0)

    thread = np.arange(32)
    row, first = thread // lanes, thread % lanes * run
    permuted = np.array([permutation(r) for r in row])
    seen = set()
    for c in range(row_chunks // lanes):
        offset = c // run * span + c % run
        if pitch % 8:
            at = row * pitch + first + offset
        else:
            at = (row * pitch + (first ^ permuted) ^ offset % 8) + offset // 8 * 8
        # Each chunk is where the copy of its row has put it.
        chunk = first + offset
        np.testing.assert_array_equal(at, row * pitch + (chunk ^ permuted))
        seen |= {*zip(row, at - row * pitch, strict=True)}
        times = [np.bincount(eight % 8).max() for eight in at.reshape(-1, 8)]
        assert max(times) <= (1 if pitch % 8 == 0 and span <= 8 else 2)
    assert len(seen) == 32 // lanes * row_chunks


def test_sorting_takes_a_block_of_both():
    spec = QuantizeSpec.of(SCHEMES["sorted"], Type.fp16, 128, aligned=True)
    assert spec.k_tile == spec.v_tile == SORTED_BLOCK
    assert (spec.k_stored, spec.tiles("k", 129), spec.tiles("v", 129)) == (Scope.sorted, 2, 2)


@pytest.mark.parametrize("operand", ["q", "k", "v"])
def test_tiles_cover_every_length_once(spec, operand):
    tile = getattr(spec, f"{operand}_tile")
    assert spec.tiles(operand, 0) == 0
    # Scales per token of K are written for whole blocks of 128.
    padded = operand == "k" and spec.k.coded and spec.k_stored is not Scope.block
    for n in (1, tile - 1, tile, tile + 1, 10 * tile + 1):
        tokens = -(-n // TOKEN_PAD) * TOKEN_PAD if padded else n
        assert (spec.tiles(operand, n) - 1) * tile < tokens <= spec.tiles(operand, n) * tile


@pytest.mark.parametrize("element", INPUTS, ids=lambda t: t.value)
def test_stats_chunks(scheme, head_dim, element):
    spec = StatsSpec.of(scheme, element, head_dim, aligned=True)
    for operand in ("q", "k", "v"):
        assert spec.chunks(operand, 0) == 0
        assert spec.chunks(operand, 1) == 1
        assert spec.chunks(operand, spec.chunk) == 1
    # As many for each of 16 groups of tokens, of which each is in a few of them.
    for n, chunks in ((spec.chunk + 1, 16), (16 * spec.chunk, 16), (40 * spec.chunk + 1, 48)):
        assert spec.chunks("v", n) == (1 if scheme.smooth_v == "sample" else chunks)
        assert spec.chunks("k", n) == (1 if scheme.smooth_k == "sample" else chunks)
        assert spec.chunks("q", n) == chunks
        of_group = -(-n // GROUPS)
        assert of_group <= spec.tokens("q", n) * chunks // GROUPS < of_group + chunks // GROUPS
        assert spec.tokens("q", n) <= spec.chunk
    assert spec.kinds("q") == spec.kinds("k") == (3 if scheme.k_scope == "tensor" else 1)
    by_channel = scheme.pv != "fp16" and scheme.v_scope in ("channel", "tensor")
    assert spec.kinds("v") == (3 if by_channel and not scheme.rotates("v") else 1)
    assert max(spec.smem_bytes, spec.finish.smem_bytes) <= 48 * 1024


def test_equal_needs_share_a_kernel():
    one = QuantizeSpec.of(PRESETS["int8-fp16"], Type.fp16, 128, aligned=True)
    other = QuantizeSpec.of(
        replace(PRESETS["int8-fp16"], name="mine", smooth_k="mean"), Type.fp16, 128, aligned=True
    )
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize("element", INPUTS, ids=lambda t: t.value)
def test_transposed_tile_meets_all_banks(element, head_dim):
    """The addresses of `TransposedTile`, with a warp's lanes as in `Values` and `RowLanes`."""
    spec = QuantizeSpec.of(PRESETS["int8"], element, head_dim, aligned=True)
    chunk, threads = 16 // element.nbytes, np.arange(spec.num_threads)
    row_chunks = head_dim // chunk
    lanes = min(row_chunks & -row_chunks, 32)
    put = (8 if row_chunks == lanes else 4) // 4
    spread = max(put, 32 // lanes)
    words = spec.v_tile // 4

    def permute(channel):
        return channel // chunk * spread & 31

    # Writing: `put` words a lane, so that 32 / put lanes go through at a time.
    for channel_of_chunk in range(chunk):
        for c in range(row_chunks // lanes):
            channel = (threads % lanes + lanes * c) * chunk + channel_of_chunk
            first = channel * words + (threads // lanes * put ^ permute(channel))
            banks = (first[:, None] + np.arange(put)) % 32
            assert all(len(set(group)) == 32 for group in banks.reshape(-1, 32).tolist())
    # Reading: 4 words a lane, 8 lanes at a time.
    columns = spec.v_tile // 16
    channel, column = threads // columns, threads % columns
    first = channel * words + 4 * (column ^ permute(channel) // 4)
    banks = (first[:, None] + np.arange(4)) % 32
    assert all(len(set(group)) == 32 for group in banks.reshape(-1, 32).tolist())
