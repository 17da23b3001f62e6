"""The planner is a pure function; what it chooses fits the scheme and the GPU."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from cuattn.arrays.device import TARGETS, target
from cuattn.errors import ArgumentError, UnsupportedError
from cuattn.plan.kernels import SCALED_TILES, TILES, attention_spec, needs_stats, supported
from cuattn.plan.kernels_sm90 import INTEGER_O_KEYS, wgmma_serves
from cuattn.plan.listing import attention_specs
from cuattn.presets import PRESETS
from cuattn.reference.layout import HEAD_DIMS
from cuattn.scheme import INTEGERS, Scheme
from cuattn.specs.attention import AttentionSpec, PRange, Scope, Type
from cuattn.specs.coding import stored_scope
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.rotate import RotateSpec
from cuattn.specs.rules import Rules
from cuattn.specs.smoothing import BlockMeansSpec, DeltaSpec
from cuattn.specs.stats import FinishSpec, StatsSpec
from cuattn.specs.unpack import UnpackSpec
from cuattn.specs.wgmma import Order, WgmmaSpec

DTYPES = ("float16", "bfloat16", "float32")

every_target = pytest.mark.parametrize("arch", TARGETS)

# Registers of a multiprocessor, and the number of them that setmaxnreg counts in.
REGISTERS, REGISTER_UNIT = 65536, 8


HALF_BLOCK = Scheme("half block", k_scope="block", pv="fp16", p_range="row", p_block=64)


def everything(arch, schemes=None, dtypes=DTYPES):
    return attention_specs(schemes or supported(target(arch)), HEAD_DIMS, dtypes, target(arch))


def attentions(arch, **which):
    kinds = AttentionSpec, WgmmaSpec
    return [spec for spec in everything(arch, **which) if isinstance(spec, kinds)]


def tile_of(spec):
    row = "mma", Type.int8 if spec.pv.coded else Type.fp16, spec.head_dim
    return SCALED_TILES.get(row, TILES[row]) if spec.qk.coded else TILES[row]


def test_every_row_of_the_table_can_be_reached():
    assert set(TILES) == {("mma", pv, d) for pv in (Type.int8, Type.fp16) for d in HEAD_DIMS}
    # Where shared memory is plentiful nothing is cut.
    for arch in ("100a", "80"):
        all_rows = [*TILES.values(), *SCALED_TILES.values()]
        assert {id(tile_of(spec)) for spec in attentions(arch)} == set(map(id, all_rows))
    for spec in attentions("100a"):
        tile = tile_of(spec)
        assert (spec.num_warps, spec.row_tiles, spec.stages) == (
            tile.num_warps,
            tile.row_tiles,
            tile.stages,
        )


@every_target
def test_hopper_has_kernels_of_its_own(arch):
    kind = WgmmaSpec if arch == "90a" else AttentionSpec
    groups = Scheme("groups", q_scope="group", k_scope="group")
    assert wgmma_serves(TARGETS[arch], PRESETS["int8"]) == (arch == "90a")
    assert not wgmma_serves(TARGETS[arch], groups)
    assert {type(spec) for spec in attentions(arch)} == {kind}


def test_registers_of_all_warpgroups_fit():
    """What those that attend take, the one that copies gives; see `attention_wgmma`."""
    for spec in attentions("90a"):
        threads = spec.num_threads // (spec.groups + 1)
        at_launch = REGISTERS // spec.num_threads // REGISTER_UNIT * REGISTER_UNIT
        left = at_launch * (spec.groups + 1) - spec.group_registers * spec.groups
        assert at_launch <= spec.group_registers <= 256
        assert spec.group_registers % REGISTER_UNIT == 0
        assert left >= 24
        assert threads * (left + spec.group_registers * spec.groups) <= REGISTERS


def test_integers_of_o_cannot_overflow():
    assert 255 * 127 * INTEGER_O_KEYS < 2**31 <= 255 * 127 * (INTEGER_O_KEYS + 1)
    listed = set(everything("90a"))
    for scheme in supported(TARGETS["90a"]):
        for head_dim in HEAD_DIMS:
            kind = scheme, head_dim, Type.fp16, False, TARGETS["90a"]
            short, long = (attention_spec(*kind, long_kv=x) for x in (False, True))
            assert not long.integer_o
            assert short.integer_o == (scheme.p_range == "row_pow2")
            if not short.integer_o:
                assert long == short
            assert {short, long} <= listed


def test_ties_are_where_they_were_measured_to_pay():
    """Nothing with a scale for each key, or a mask or head dimension that was not measured with."""
    tied = [spec for spec in attentions("90a") if spec.tied_steps]
    assert {(spec.head_dim, spec.k_scope, spec.p_range, spec.integer_o) for spec in tied} == {
        (64, Scope.block, PRange.row_pow2, True),
        (128, Scope.block, PRange.row_pow2, True),
        (128, Scope.sorted, PRange.block, False),
    }
    for spec in tied:
        assert not spec.is_causal or (spec.head_dim, spec.order) == (128, Order.ahead)
        assert not spec.is_causal or spec.integer_o
        assert (spec.qk, spec.pv) == (Type.int8, Type.int8)
    ways = {"int8": (True, False), "int8-block": (False, False), "int8-fast": (True, True)}
    for name, wanted in ways.items():
        kind = PRESETS[name], 128, Type.fp16
        specs = [attention_spec(*kind, causal, TARGETS["90a"]) for causal in (False, True)]
        assert tuple(spec.tied_steps for spec in specs) == wanted


def test_sums_begin_as_floats_where_that_was_measured_to_pay():
    """And where a weight is all that products with V are multiplied by before they enter O."""
    floats = [spec for spec in attentions("90a") if spec.float_sums]
    assert floats
    for spec in floats:
        assert not spec.q_smooth
        assert (spec.head_dim, spec.p_range, spec.p_terms) == (128, PRange.block, 1)
        assert (spec.qk, spec.pv) == (Type.int8, Type.int8)
        assert (spec.k_scope, spec.v_scope) == (Scope.block, Scope.channel)
    for causal in (False, True):
        assert (
            attention_spec(PRESETS["int8-block"], 128, Type.fp16, causal, TARGETS["90a"]) in floats
        )


@every_target
def test_length_matters_to_hopper_only(arch):
    scheme = PRESETS["int8-fast"]
    kind = scheme, 128, Type.fp16, False, TARGETS[arch]
    specs = {attention_spec(*kind, long_kv=long_kv) for long_kv in (False, True)}
    assert len(specs) == (2 if arch == "90a" else 1)


@every_target
def test_kernels_fit_the_shared_memory(arch):
    facts = target(arch)
    for spec in everything(arch):
        assert spec.smem_bytes <= facts.max_smem_per_cta
        if isinstance(spec, AttentionSpec):
            # The driver takes 1 KiB of every CTA; those of the Hopper family are one to an SM.
            assert spec.min_ctas * (spec.smem_bytes + 1024) <= facts.max_smem_per_sm
        assert 32 <= spec.num_threads <= 1024
        assert spec.min_ctas * spec.num_threads <= 1536


@every_target
def test_numbers_do_not_depend_on_the_target(arch):
    """Whatever the tile: blocks of keys, scopes and types are the scheme's.

    Blocks of keys are a kernel's own where no scale is a block's and P, in 16 bits, is rounded
    relative to itself.
    """
    for scheme in [*supported(target(arch)), HALF_BLOCK]:
        for spec in attentions(arch, schemes=[scheme]):
            if scheme.pv == "fp16" and scheme.k_scope != "block":
                assert spec.block_kv in (64, 128)
            else:
                assert spec.block_kv == scheme.p_block
            assert spec.p_range is PRange(scheme.p_range)
            assert spec.qk.integer == (scheme.qk in INTEGERS)
            assert (spec.qk is Type.int4) <= (scheme.qk == "int4" and target(arch).native_s4)
            assert (spec.pv is Type.int8) == (scheme.pv in INTEGERS)
            assert (spec.qk is Type.e4m3) == (scheme.qk == "fp8")
            assert (spec.pv is Type.e4m3) == (scheme.pv == "fp8")
            if spec.qk.integer:
                assert spec.k_scope is stored_scope(scheme, "k")
            if spec.pv is Type.int8:
                assert (spec.v_scope is Scope.token) == (scheme.v_scope == "token")


def test_types_follow_the_inputs():
    def types(scheme, dtype):
        spec = attention_spec(PRESETS[scheme], 64, dtype, False, TARGETS["90a"])
        return spec.qk, spec.pv, spec.out

    assert types("int8", Type.bf16) == (Type.int8, Type.int8, Type.bf16)
    # P and V in half precision are float16, unless Q and K are bfloat16 themselves.
    assert types("int8-fp16", Type.bf16) == (Type.int8, Type.fp16, Type.bf16)
    assert types("fp16", Type.bf16) == (Type.bf16, Type.bf16, Type.bf16)
    assert types("fp16", Type.fp32) == (Type.fp16, Type.fp16, Type.fp32)
    assert types("fp16", Type.fp16) == (Type.fp16, Type.fp16, Type.fp16)


def test_listing_covers_every_combination_once():
    specs = everything("90a")
    assert len(specs) == len(set(specs))
    assert Counter(type(spec) for spec in specs).keys() == {
        WgmmaSpec,
        QuantizeSpec,
        StatsSpec,
        FinishSpec,
        BlockMeansSpec,
        DeltaSpec,
        RotateSpec,
        UnpackSpec,
    }
    for scheme in supported(TARGETS["90a"]):
        for head_dim in HEAD_DIMS:
            for dtype in (Type.fp16, Type.bf16, Type.fp32):
                for is_causal in (False, True):
                    one = attention_spec(scheme, head_dim, dtype, is_causal, TARGETS["90a"])
                    assert one in specs
                for aligned in (False, True):
                    quantize = QuantizeSpec.of(scheme, dtype, head_dim, aligned)
                    as_it_is = scheme.name == "fp16" and dtype is not Type.fp32 and aligned
                    assert (quantize in specs) != as_it_is
                    packed = QuantizeSpec.of(scheme, dtype, head_dim, aligned, True, True)
                    assert (packed in specs) != as_it_is
                    stats = StatsSpec.of(scheme, dtype, head_dim, aligned)
                    if any(needs_stats(scheme)):
                        assert stats in specs
                        assert stats.finish in specs
                    if scheme.rotates("v"):
                        assert QuantizeSpec.of_rotated_values(scheme, head_dim) in specs


def test_listing_takes_names_and_pads_head_dims():
    of = attention_specs(["int8"], [40], ["float16"], TARGETS["90a"])
    assert {spec.head_dim for spec in of} == {64}
    assert of == attention_specs([PRESETS["int8"]], [64], ["float16"], TARGETS["90a"])


def test_listing_refuses_what_has_no_kernel():
    with pytest.raises(ArgumentError, match=r"^head_dim must be"):
        attention_specs(["int8"], [600], ["float16"], TARGETS["90a"])
    with pytest.raises(ArgumentError, match=r"^scheme must be"):
        attention_specs(["int3"], [64], ["float16"], TARGETS["90a"])


def test_statistics_are_taken_only_where_they_are_needed():
    assert needs_stats(PRESETS["fp16"]) == ()
    assert needs_stats(PRESETS["int-flash-half"]) == ()
    assert needs_stats(PRESETS["int-flash"]) == ("v",)
    assert needs_stats(PRESETS["int8-fp16"]) == ("k",)
    assert needs_stats(Scheme("bare", smooth_k="none")) == ()
    assert needs_stats(PRESETS["int8-block"]) == ("k", "v")
    assert needs_stats(PRESETS["int8-fp8"]) == ("k", "v")
    assert needs_stats(PRESETS["fp8"]) == ("q", "k", "v")


@pytest.mark.parametrize("arch", ["80", "86"])
@pytest.mark.parametrize("name", ["fp8", "int8-fp8"])
def test_fp8_products_need_instructions(name, arch):
    facts = TARGETS[arch]
    assert supported(TARGETS["89"]) == list(PRESETS.values())
    assert {s.name for s in PRESETS.values()} - {s.name for s in supported(facts)} == {
        *("fp8", "int8-fp8", "sage2-8", "sage2-4"),
    }
    message = f"^scheme {name} multiplies in FP8, which sm_{arch} has no .* 'int8-block'"
    with pytest.raises(UnsupportedError, match=message):
        attention_spec(PRESETS[name], 64, Type.fp16, False, facts)
    # Asked for by name, it is not left out in silence.
    with pytest.raises(UnsupportedError, match=message):
        attention_specs([name], [64], ["float16"], facts)


def test_less_shared_memory_takes_rows_before_stages():
    generous = attention_spec(PRESETS["fp16"], 256, Type.fp16, False, TARGETS["100a"])
    tight = attention_spec(PRESETS["fp16"], 256, Type.fp16, False, TARGETS["86"])
    assert generous.stages == 2
    assert tight.rows <= generous.rows
    tiny = replace(TARGETS["86"], max_smem_per_cta=1000)
    with pytest.raises(UnsupportedError, match="needs more shared memory than the 1000 bytes"):
        attention_spec(PRESETS["fp16"], 256, Type.fp16, False, tiny)


def test_scores_begin_at_what_is_linear_in_the_key_where_they_have_room():
    """One unit of the scores of a lane's keys, of integers that leave room in 22 bits."""
    begun = set()
    for name, head_dim, causal, arch in product(
        ("int8", "int8-block", "int8-fast", "int8-token", "fp16"),
        (64, 128, 192, 256),
        (False, True),
        ("80", "90a"),
    ):
        kind = PRESETS[name], head_dim, Type.fp16, causal, TARGETS[arch]
        for rules in (Rules(alibi=True), Rules(alibi=True, softcap=True), Rules()):
            spec = attention_spec(*kind, rules=rules)
            if getattr(spec, "column_starts", False):
                assert (causal, arch, rules) == (True, "90a", Rules(alibi=True))
                begun.add((name, head_dim))
    assert begun == set(product(("int8", "int8-block"), (64, 128, 192)))
