"""Attention kernels with rules, compiled: windows, caps, slopes, sinks and masks of every kind.

For sm_80 and sm_90a so many that any two of scheme, head_dim and rules meet with every pair of
values, and some of these for each of the other targets.
"""

from functools import cache
from itertools import product

import pytest
from helpers.attention_products import forbidden, has_token_scales, required
from helpers.compile_check import complaints
from helpers.covering import covering

from cuattn.arrays.device import TARGETS, target
from cuattn.plan.kernels import attention_spec
from cuattn.presets import PRESETS
from cuattn.reference.layout import HEAD_DIMS
from cuattn.specs.attention import AttentionSpec, Type
from cuattn.specs.rules import PLAIN, MaskKind, Rules
from cuattn.specs.wgmma import WgmmaSpec

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")

SCHEMES = ("int8", "int8-token", "int8-block", "fp16")
TYPES = (Type.fp16, Type.bf16, Type.fp32)
# Of the family that all other targets have fewer.
SIZES = {"90a": HEAD_DIMS, "80": (64, 128, 256)}
OTHERS = [arch for arch in TARGETS if arch not in SIZES]
SAMPLE = 2

# Tests that the kernels of a target are spread over, as processes share them.
PARTS = 4


@cache
def chosen(arch):
    """Return the kernels that are compiled for a target."""
    if arch not in SIZES:
        first = SAMPLE * OTHERS.index(arch)
        rows = rows_of("80")[first : first + SAMPLE]
    else:
        rows = rows_of(arch)
    specs = []
    for i, row in enumerate(rows):
        names = ("windowed", "softcap", "alibi", "sinks", "attn_mask")
        rules = Rules(**{name: row[name] for name in names})
        is_causal = i % 2 == 0 and not rules.windowed
        kind = PRESETS[row["scheme"]], row["head_dim"], TYPES[i % 3], is_causal, target(arch)
        specs.append(attention_spec(*kind, rules=rules))
    return specs


@cache
def rows_of(arch):
    """Return schemes, head dimensions and rules by their names, one after the other."""
    options = {"scheme": SCHEMES, "head_dim": SIZES[arch]}
    options |= dict.fromkeys(("windowed", "softcap", "alibi", "sinks"), (False, True))
    options["attn_mask"] = tuple(MaskKind)
    rows = [dict(zip(options, values, strict=True)) for values in product(*options.values())]
    rows = [row for row in rows if Rules(*[*row.values()][2:]) != PLAIN]
    return [rows[i] for i in covering(rows)]


# Bytes that a thread may spill, by family, whether keys have scales of their own, and head_dim, as
# what becomes of scores takes registers beside O and S: what there is today, and a little more.
SPILL = {
    (WgmmaSpec, False): {32: 16, 64: 16, 96: 640, 128: 1000, 192: 360, 256: 1100},
    (WgmmaSpec, True): {32: 16, 64: 2560, 96: 520, 128: 570, 192: 360, 256: 1200},
    (AttentionSpec, False): {64: 130, 128: 60, 256: 230},
    (AttentionSpec, True): {64: 30, 128: 100, 256: 1300},
}


def bounds(arch):
    """Return what to require of the kernel of a spec, and what to allow it."""
    native_fp8 = target(arch).native_e4m3_mma
    return lambda spec: {
        "require": required(spec, native_fp8),
        "forbid": forbidden(spec),
        "max_spill": SPILL[type(spec), has_token_scales(spec)][spec.head_dim],
    }


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("arch", SIZES)
def test_kernels_of_the_oldest_targets(arch, part):
    assert complaints(chosen(arch)[part::PARTS], arch, bounds(arch)) == ""


@pytest.mark.parametrize("arch", OTHERS)
def test_kernels_of_other_targets(arch):
    assert complaints(chosen(arch), arch, bounds(arch)) == ""
