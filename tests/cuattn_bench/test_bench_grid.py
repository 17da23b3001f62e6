"""The shapes that `cuattn bench` measures, and the kernels that they take."""

import pytest

from cuattn.arrays.device import TARGETS
from cuattn.bench import grid
from cuattn.bench.cases import CORE, DECODE, PREFILL, SCHEMES
from cuattn.bench.grid import PARTS, QUICK, make
from cuattn.errors import ArgumentError
from cuattn.kv_format import KV_HEAD_DIMS
from cuattn.plan.kernels import supported


def test_shapes_of_records_are_on_the_grid():
    default = make()
    assert set(PREFILL) < set(default.prefill)
    assert set(DECODE) < set(default.decode)
    assert default.schemes == CORE
    assert default.ceilings
    assert {name for _, name in default.errors} == {"normal", "outliers"}
    assert {case.head_dim for case, _ in default.errors} == {64, 128}


@pytest.mark.parametrize("part", ["prefill", "decode", "errors"])
def test_every_shape_is_there_once(part):
    cases = getattr(make(), part)
    assert len(set(cases)) == len(cases)


def test_a_quick_run_can_be_compared_with_a_whole_one():
    quick, whole = make(**QUICK), make()
    for part in ("prefill", "decode", "errors"):
        assert set(getattr(quick, part)) < set(getattr(whole, part))
    assert sum(x.operations for x in quick.prefill) < 0.05 * sum(
        x.operations for x in whole.prefill
    )


def test_parts_that_are_not_asked_for_are_empty():
    for part in PARTS:
        only = make(parts=[part])
        assert [name for name in PARTS if getattr(only, name)] == [part]


def test_long_sequences_are_fewer():
    sizes = {x.seqlen_q: x.batch for x in make(seqlens=(1024, 16384, 32768, 1 << 20)).prefill}
    assert sizes == {1024: 4, 16384: 4, 32768: 2, 1 << 20: 1}
    assert {x.batch for x in make(seqlens=(1024, 32768), batch=3).prefill} == {3}


def test_heads_are_those_of_everything():
    for options, heads in (
        ({"heads": 16}, (16, 16)),
        ({"kv_heads": 4}, (32, 4)),
        ({"heads": 28, "kv_heads": 4}, (28, 4)),
    ):
        given = make(**options)
        for case in (*given.prefill, *given.decode):
            assert (case.num_q_heads, case.num_kv_heads) == heads
    assert {x.num_kv_heads for x in make().prefill} == {32}


def test_channels_that_no_cache_has_are_those_of_prefill_only():
    given = make(head_dims=(80, 96))
    assert {x.head_dim for x in given.prefill} == {80, 96}
    assert {x.head_dim for x in given.decode} == {96}
    assert {case.head_dim for case, _ in given.errors if case.decodes} == {96}
    assert 80 not in KV_HEAD_DIMS


def test_caches_are_sequences_and_tokens():
    (case,) = make(caches=((3, 500),)).decode
    assert (case.batch, case.seqlen_kv, case.seqlen_q, case.num_kv_heads) == (3, 500, 1, 8)


def test_masks_and_lengths_are_combined():
    shapes = {(x.head_dim, x.seqlen_q, x.is_causal) for x in make(causal=(True,)).prefill}
    assert shapes == {(d, n, True) for d in grid.HEAD_DIMS for n in grid.SEQLENS}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 6, "kv_heads": 4}, "kv_heads must be a divisor of 6 heads, got 4"),
        ({"kv_heads": 5}, "a divisor of 32 heads"),
        ({"head_dims": (64, 600)}, "head_dim must be in 1..512, got 600"),
        ({"head_dims": (64, 100)}, "head_dim must be a multiple of 8, got 100"),
        ({"head_dims": (80,), "parts": ("decode",)}, "some that caches have"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        make(**options)


@pytest.mark.parametrize("arch", TARGETS)
def test_kernels_of_a_grid_are_listed_once(arch):
    facts = TARGETS[arch]
    schemes = [scheme.name for scheme in supported(facts) if scheme.name in SCHEMES]
    listed = grid.kernels(make(), schemes, facts)
    assert len(set(listed)) == len(listed)
    sources = {spec.source for spec in listed}
    assert sources >= {"quantize.cu", "stats.cu", "decode.cu", "append.cu", "offsets.cu"}
    assert any(source.startswith("attention") for source in sources)
    # Inputs of this project's own are aligned.
    assert all(getattr(spec, "aligned", True) for spec in listed)


def test_kernels_of_one_part_are_its_own():
    facts = TARGETS["90a"]
    of_caches = grid.kernels(make(parts=["decode"]), CORE, facts)
    assert {x.source for x in of_caches} == {"decode.cu", "append.cu", "offsets.cu"}
    of_ceilings = grid.kernels(make(parts=["ceilings"]), CORE, facts)
    assert {x.source for x in of_ceilings} == {
        "memory_rate.cu",
        "mma_rate_sm80.cu",
        "wgmma_rate_sm90.cu",
    }
