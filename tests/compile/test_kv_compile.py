"""Kernels of the KV cache, compiled: little or nothing spilled, the intended instructions.

So many that any two properties meet with every pair of values, each for one of the targets that
share sources: sm_80 to sm_89, and those that copy in bulk. All of them run with --slow.
"""

from dataclasses import replace
from itertools import product

import pytest
from helpers.compile_check import complaints
from helpers.kernel_choice import dealt

from cuattn.arrays.device import TARGETS, target
from cuattn.compile import jit
from cuattn.kv.append_spec import AppendSpec, OffsetSpec
from cuattn.kv.operands_spec import OperandsSpec
from cuattn.kv.queries_spec import QueriesSpec
from cuattn.kv.scores import Extra, Features
from cuattn.kv.spec import DecodeSpec, decode_spec
from cuattn.kv_format import KV_HEAD_DIMS, KVFormat
from cuattn.specs.attention import Type
from cuattn.specs.mods import ModSource

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")

INPUTS = (Type.fp16, Type.bf16, Type.fp32)

# Besides groups of 64 channels, of which no head of 96 consists.
KINDS = (
    (8, 8, 0, False, True),
    (8, 4, 0, True),
    (4, 4, 32, True, True),
    (4, 8, 32, False),
    (4, 4, 0, False),
    (4, 4, 0, False, True, True),
)


# With groups of 64.
WIDE = ((4, 4, 64, True), (4, 4, 64, False, True, True))


# Channels that kernels pad.
PADDED = ((80, KINDS[0]), (112, WIDE[1]), (48, KINDS[2]), (240, KINDS[1]))


BIAS = ModSource(
    "score_mod",
    "score + bias[head] * (kv > own ? 0.f : n)",
    (("bias", "float16"),),
    (("n", "float"),),
)
CHUNKS = ModSource("mask_mod", "own / w == kv / w", (), (("w", "int"),), 1, 1)


# Kernels with features are made when they are first called. Of these each feature is in one or
# more, and each kind of elements: (head_dim, kind, rows, features).
FEATURES = (
    (128, KINDS[0], 1, Features(window=True, sinks=Extra.bf16)),
    (256, KINDS[0], 9, Features(softcap=True, attn_mask=Extra.bf16)),
    (64, KINDS[2], 9, Features(attn_mask=Extra.boolean, alibi_slopes=Extra.fp32)),
    (96, KINDS[3], 1, Features(sinks=Extra.fp16, alibi_slopes=Extra.bf16, attn_mask=Extra.fp32)),
    (128, KINDS[4], 40, Features(True, True, Extra.fp32, Extra.fp16, Extra.fp16)),
    (128, WIDE[1], 1, Features(True, True, Extra.fp32, Extra.fp16, Extra.fp16)),
    (64, KINDS[5], 1, Features(batch_invariant=True)),
    (128, KINDS[0], 9, Features(window=True, batch_invariant=True)),
    (128, KINDS[0], 1, Features(rope=True)),
    (64, WIDE[1], 9, Features(rope=True)),
    (80, KINDS[3], 1, Features(rope=True, window=True)),
    (128, KINDS[0], 1, Features(score_mod=BIAS)),
    (64, KINDS[5], 9, Features(mask_mod=CHUNKS)),
    (128, KINDS[0], 9, Features(True, True, Extra.fp32, Extra.fp16, Extra.boolean, score_mod=BIAS)),
    (128, WIDE[1], 9, Features(attn_mask=Extra.fp32, score_mod=BIAS, mask_mod=CHUNKS)),
    (256, KINDS[2], 40, Features(batch_invariant=True, score_mod=BIAS, mask_mod=CHUNKS)),
)


def append_specs():
    kinds = [*product(KV_HEAD_DIMS, KINDS), *product((64, 128, 256), WIDE), *PADDED]
    for (head_dim, kind), element, aligned in product(kinds, INPUTS, (True, False)):
        for single in (False, True):
            yield AppendSpec.of(KVFormat(head_dim, *kind), element, aligned=aligned, single=single)


def offset_specs():
    sizes = (*KV_HEAD_DIMS, 16, 80, 240)
    for head_dim, element, aligned in product(sizes, INPUTS, (True, False)):
        yield OffsetSpec(element, head_dim, aligned)


# Keys that turn by their positions: (head_dim, kind).
TURNED = ((64, KINDS[0]), (128, KINDS[4]), (256, WIDE[1]), (96, KINDS[3]), (80, KINDS[0]))


def turned_specs():
    for i, (head_dim, kind) in enumerate(TURNED):
        element, aligned = INPUTS[i % len(INPUTS)], i % 2 == 0
        for single in (False, True):
            kv_format = KVFormat(head_dim, *kind)
            yield AppendSpec.of(kv_format, element, aligned=aligned, single=single, rope=True)
        yield OffsetSpec(element, head_dim, aligned, rope=True)


# Tokens of several sequences end to end: (head_dim, kind), of which some turn.
PACKED = ((64, KINDS[3]), (128, KINDS[0]), (96, KINDS[1]), (112, WIDE[1]))


def packed_specs():
    for i, (head_dim, kind) in enumerate(PACKED):
        element, flags = INPUTS[i % len(INPUTS)], {"aligned": i % 2 == 0, "rope": 0 < i < 3}
        yield AppendSpec.of(KVFormat(head_dim, *kind), element, packed=True, **flags)
        yield OffsetSpec(element, head_dim, packed=True, **flags)


def operands_specs():
    kinds = [*product(KV_HEAD_DIMS, KINDS), *product((64, 128, 256), WIDE)]
    for head_dim, kind in kinds:
        yield OperandsSpec.of(KVFormat(head_dim, *kind))
    yield OperandsSpec.of(KVFormat(112, *KINDS[0]))


def queries_specs():
    for i, (rotate, rope) in enumerate(product((True, False), repeat=2)):
        for j, head_dim in enumerate((48, 80, 112, 128, 256)):
            if rope or head_dim % 64:
                kv_format = KVFormat(head_dim, rotate=rotate)
                yield QueriesSpec.of(kv_format, INPUTS[(i + j) % len(INPUTS)], rope=rope)


def decode_specs(arch):
    kinds = [*product(KV_HEAD_DIMS, KINDS, (1, 9, 40)), *product((64, 128, 256), WIDE[1:], (1, 9))]
    kinds += [(*kind, rows) for kind, rows in zip(PADDED, (1, 9, 1, 9), strict=True)]
    specs = [
        decode_spec(KVFormat(head_dim, *kind), INPUTS[i % len(INPUTS)], rows, target(arch))
        for i, (head_dim, kind, rows) in enumerate(kinds)
    ]
    return list(dict.fromkeys(specs))


def feature_specs(arch):
    for i, (head_dim, kind, rows, features) in enumerate(FEATURES):
        element = INPUTS[i % len(INPUTS)]
        yield decode_spec(KVFormat(head_dim, *kind), element, rows, target(arch), features)


def allowed_spill(spec):
    """Bytes a thread may spill: four values at most of what decoding mostly is.

    Zero points and groups of channels have sums and probabilities of their own, and 32 rows more;
    queries that turn are in float32 with their tables beside them.
    """
    if not isinstance(spec, DecodeSpec):
        # Nested codes of 256 channels in float32, and their tables, want more than 255 registers.
        return 16 if isinstance(spec, AppendSpec) and spec.rope else 0
    if spec.rope:
        return 200
    alike = spec.nested and spec.rows == 8
    few = alike or not (spec.nested or spec.group or spec.v_zero)
    return 16 if spec.rows <= 16 and few else 200


def required(spec, arch):
    if not isinstance(spec, DecodeSpec):
        return ()
    return ("IMMA.16832.S8.S8", "IMMA.16832.U8.S8", "LDSM", copies(arch))


def copies(arch):
    """Return the instruction that copies tiles, which the targets have two families of code for."""
    return "UBLKCP" if int(arch.rstrip("a")) >= 90 else "LDGSTS"


def bounds(arch):
    """Return what to require of the kernel of a spec, and what to allow it."""
    return lambda spec: {"require": required(spec, arch), "max_spill": allowed_spill(spec)}


def all_kernels(arch):
    of_rows = [*operands_specs(), *queries_specs()]
    return [*append_specs(), *offset_specs(), *of_rows, *decode_specs(arch)]


def siblings(arch):
    """Return the targets that have the sources of one."""
    return [name for name in TARGETS if copies(name) == copies(arch)]


@pytest.mark.parametrize("arch", TARGETS)
def test_some_kernels(arch):
    some = dealt({name: all_kernels(name) for name in siblings(arch)})[arch]
    assert complaints(some, arch, bounds(arch)) == ""


def test_features_are_all_in_some_kernel():
    for field, kinds in (("window", {True}), ("softcap", {True}), ("attn_mask", set(Extra))):
        assert {getattr(features, field) for *_, features in FEATURES} >= kinds
    floats = {Extra.fp16, Extra.bf16, Extra.fp32}
    for field in ("sinks", "alibi_slopes"):
        assert {getattr(features, field) for *_, features in FEATURES} >= floats


def test_no_two_expressions_have_one_binary():
    others = [replace(BIAS, text=f"{BIAS.text} "), replace(BIAS, first_array=1)]
    others += [replace(BIAS, arrays=(("bias", "float32"),))]
    how = [Features(), Features(mask_mod=CHUNKS), *(Features(score_mod=x) for x in (BIAS, *others))]
    specs = [decode_spec(KVFormat(64), Type.fp16, 1, target("90a"), x) for x in how]
    assert len(set(specs)) == len(specs)
    units = [jit._unit(x.source, x) for x in specs]
    assert len({jit._file(x, "90a") for x in units}) == len(specs)
    assert units[0].startswith('#include "decode.cu"\n')


def with_features(arch):
    return [*feature_specs(arch), *turned_specs(), *packed_specs()]


@pytest.mark.parametrize("arch", TARGETS)
def test_every_feature(arch):
    among = siblings(arch)
    some = with_features(arch)[among.index(arch) :: len(among)]
    assert complaints(some, arch, bounds(arch)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("arch", TARGETS)
def test_all_kernels(arch, part):
    every = [*all_kernels(arch), *with_features(arch)]
    assert complaints(every[part::8], arch, bounds(arch)) == ""
