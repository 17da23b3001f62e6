"""Kernels that read lengths from memory, compiled: little is spilled beyond what plain ones do."""

from dataclasses import replace
from itertools import product

import pytest
from helpers.compile_check import complaints

from cuattn.arrays.device import target
from cuattn.plan.kernels import attention_spec
from cuattn.presets import PRESETS
from cuattn.reference.prefill import prefill_scheme
from cuattn.specs.attention import AttentionSpec, Scope, Type
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.rotate import RotateSpec
from cuattn.specs.rules import MaskKind, Rules
from cuattn.specs.smoothing import BlockMeansSpec, DeltaSpec
from cuattn.specs.stats import StatsSpec
from cuattn.specs.units import UnitsSpec

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")

SCHEMES = ("int8", "int8-block", "int8-fast", "int8-token", "int8-fp16", "int4", "fp16")
RULES = (
    Rules(varlen=True),
    Rules(varlen=True, windowed=True, sinks=True),
    Rules(varlen=True, softcap=True, alibi=True),
    Rules(varlen=True, attn_mask=MaskKind.bits),
)
HALVES = (Type.fp16, Type.bf16)


def attending(arch):
    """Return attention kernels, in which masks, types and rules take turns."""
    for i, (name, head_dim) in enumerate(product(SCHEMES, (64, 128, 256))):
        rules, out = RULES[1 + (i // 4 + i // 12) % 3 if i % 4 == 0 else 0], HALVES[i // 3 % 2]
        # A window says what is causal.
        is_causal = i % 2 == 1 and not rules.windowed
        yield attention_spec(PRESETS[name], head_dim, out, is_causal, target(arch), rules=rules)
    for name in SCHEMES:
        kind = PRESETS[name], 192, Type.fp16, True, target(arch)
        yield attention_spec(*kind, rules=RULES[0], head_dim_v=128)
    for head_dim, of_mask in ((64, MaskKind.fp16), (128, MaskKind.fp32)):
        kind = prefill_scheme(True, True), head_dim, Type.fp16, head_dim == 64, target(arch)
        rules = Rules(varlen=True, attn_mask=of_mask, mask_last=True)
        yield attention_spec(*kind, rules=rules)


def preparing():
    """Return the kernels around it."""
    for i, (name, head_dim) in enumerate(product(SCHEMES, (64, 128))):
        kind = (*HALVES, Type.fp32)[i % 3], head_dim, i % 2 == 0
        yield QuantizeSpec.of(PRESETS[name], *kind, varlen=True)
        stats = StatsSpec.of(PRESETS[name], *kind, varlen=True)
        yield from (stats, stats.finish)
        yield from (spec(*kind, varlen=True) for spec in (BlockMeansSpec, DeltaSpec, RotateSpec))
        yield QuantizeSpec.of(PRESETS[name], *kind, head_dim_v=192 - head_dim, varlen=True)
    yield UnitsSpec(192)


def allowed(spec):
    """Bytes a thread may spill: attention kernels have two lengths more to hold."""
    if isinstance(spec, AttentionSpec):
        return {64: 200, 128: 200, 192: 640, 256: 1050}[spec.head_dim]
    if hasattr(spec, "rules"):
        if spec.rules.change_scores and spec.k_scope is Scope.token:
            return 1300
        return 1000 if spec.k_scope in (Scope.token, Scope.thread, Scope.sorted) else 300
    # Of sorted keys, whose CTAs write to both K and V: where those of a sequence begin.
    return 64 if getattr(spec, "k_scope", None) is Scope.sorted else 32


@pytest.mark.parametrize("arch", ["80", "90a"])
def test_attention_kernels(arch):
    specs = list(dict.fromkeys(attending(arch)))
    assert complaints(specs, arch, lambda spec: {"max_spill": allowed(spec)}) == ""


@pytest.mark.parametrize(("part", "arch"), [(0, "80"), (1, "90a")])
def test_kernels_around_them(part, arch):
    """Each for one of the targets, which have the same sources."""
    specs = list(dict.fromkeys(preparing()))[part::2]
    assert complaints(specs, arch, lambda spec: {"max_spill": allowed(spec)}) == ""


@pytest.mark.parametrize("arch", ["80", "90a", "120a"])
@pytest.mark.parametrize("name", SCHEMES)
def test_choice_of_tiles_is_that_of_plain_kernels(arch, name):
    """So that a sequence has the same bits as by a call without lengths."""
    for head_dim, is_causal in product((64, 128, 256), (False, True)):
        kind = PRESETS[name], head_dim, Type.fp16, is_causal, target(arch)
        spec = attention_spec(*kind, rules=Rules(varlen=True))
        assert replace(spec, rules=Rules()) == attention_spec(*kind)
