"""Expressions of callers in kernels: they compile, are cached apart, and mistakes explained."""

from dataclasses import replace

import pytest
from helpers.compile_check import complaints

from cuattn.arrays.device import target
from cuattn.compile import disk_cache, jit
from cuattn.errors import CompileError
from cuattn.plan.kernels import attention_spec
from cuattn.plan.linear_mod import slope_source
from cuattn.plan.user_code import check_user_code
from cuattn.presets import PRESETS
from cuattn.specs.attention import Type
from cuattn.specs.mods import ModSource
from cuattn.specs.rules import PLAIN, MaskKind, Rules

pytest.importorskip("cupy")

BIAS = ModSource(
    "score_mod",
    "score + bias[head] * (kv > q ? 0.f : n)",
    (("bias", "float16"),),
    (("n", "float"),),
)
DOCUMENTS = ModSource(
    "mask_mod",
    "if (q / w == kv / w) return true;\nreturn ids[q] == ids[kv]; // of one",
    (("ids", "int64"),),
    (("w", "int"),),
    1,
    1,
)
RULES = {
    "score": Rules(score_mod=BIAS),
    "mask": Rules(mask_mod=DOCUMENTS),
    "mask and map": Rules(attn_mask=MaskKind.bits, mask_mod=DOCUMENTS),
    "everything": Rules(True, True, True, True, MaskKind.fp32, score_mod=BIAS, mask_mod=DOCUMENTS),
    "lengths": Rules(windowed=True, varlen=True, score_mod=BIAS, mask_mod=DOCUMENTS),
}
DISTANCE = replace(BIAS, text="score - n * bias[head] * abs(own - kv)")
SLOPE = slope_source(DISTANCE, only_past=True)
LINEAR = Rules(score_mod=DISTANCE, score_slope=SLOPE)
SCHEMES = ("int8", "int8-block", "int8-fast", "int8-token", "int4", "int8-fp16", "fp16")
# Bytes of the stack: a few addresses are spilled where a call has all options.
MOST_SPILLED = {"90a": 32, "80": 512, "120": 256}


def spec_of(scheme, arch, rules, head_dim=64, is_causal=False):
    kind = PRESETS[scheme], head_dim, Type.fp16, is_causal, target(arch)
    return attention_spec(*kind, rules=rules)


@pytest.mark.parametrize("arch", MOST_SPILLED)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_kernels_compile(arch, scheme):
    turn = SCHEMES.index(scheme)
    cases = [(name, 64 << (turn + i) % 2) for i, name in enumerate(RULES) if (turn + i // 2) % 2]
    specs = [
        spec_of(scheme, arch, RULES[name], head_dim, is_causal=turn % 3 == 0)
        for name, head_dim in cases
    ]
    found = complaints(specs, arch, lambda _: {"max_spill": MOST_SPILLED[arch]})
    assert not found, found


@pytest.mark.parametrize(
    ("arch", "scheme", "head_dim"),
    [("90a", "int8-block", 128), ("90a", "fp16", 64), ("80", "int8", 64)],
)
def test_kernels_of_what_is_linear_compile(arch, scheme, head_dim):
    specs = [spec_of(scheme, arch, LINEAR, head_dim, is_causal=head_dim == 64)]
    found = complaints(specs, arch, lambda _: {"max_spill": 48})
    assert not found, found


def test_plain_kernels_have_no_trace_of_expressions():
    spec = spec_of("int8", "90a", PLAIN)
    text = jit._unit(spec.source, spec)
    assert text.startswith('#include "attention_sm90.cu"\n')
    assert ".score_mod = false, .mask_mod = false, .score_slope = false" in text


def test_no_two_expressions_have_one_binary():
    others = [
        replace(BIAS, text="score + bias[head] * (kv > q ? 0.f : n) "),
        replace(BIAS, text=BIAS.text.replace("0.f", "1.f")),
        replace(BIAS, arrays=(("bias", "float32"),)),
        replace(BIAS, numbers=(("n", "int"),)),
        replace(BIAS, first_array=1),
        replace(BIAS, first_number=1),
    ]
    rules = [RULES["score"], RULES["mask"], PLAIN, *(Rules(score_mod=x) for x in others)]
    steeper = replace(SLOPE, text=f"2 * {SLOPE.text}")
    rules += [Rules(score_mod=DISTANCE), LINEAR, replace(LINEAR, score_slope=steeper)]
    specs = [spec_of("int8", "90a", x) for x in rules]
    assert len(set(specs)) == len(specs)
    files = [jit._file(jit._unit(x.source, x), "90a") for x in specs]
    assert len(set(files)) == len(files)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("score + bixs[head]", ["score_mod(1): error:", "bixs", "score + bixs[head]"]),
        ("score\n  * 2\n  + nothing", ["score_mod(3): error:", "nothing"]),
        ("score +", ["score_mod(1): error: expected an expression"]),
        ("score;", ["score_mod(1): error:", 'expected a ")"']),
        ("bias", ["score_mod(1): error:", "no suitable conversion"]),
        ("int i = head\nreturn score;", ["score_mod(2): error:"]),
        ("float x = score; return y;", ["score_mod(1): error:", '"y" is undefined']),
        ("elsewhere(score)", ["score_mod(1): error:", '"elsewhere" is undefined']),
        ('score + "', ["score_mod"]),
    ],
)
def test_mistakes_are_said_of_the_lines_of_the_text(text, shown):
    mod = replace(BIAS, text=text)
    with pytest.raises(CompileError) as error:
        check_user_code(mod, "90a")
    message = str(error.value)
    assert message.startswith("score_mod does not compile for sm_90a\n")
    for part in shown:
        assert part in message
    for ours in ("unit.cu", "cuattn(", "user_arrays", "AttentionParams", "detected in the"):
        assert ours not in message


def test_mistakes_in_masks_name_them():
    with pytest.raises(CompileError, match=r"^mask_mod does not compile for sm_80\nmask_mod\(1\)"):
        check_user_code(replace(DOCUMENTS, text="ids[q] == idz[kv]"), "80")


@pytest.mark.parametrize("arch", MOST_SPILLED)
def test_what_is_right_passes_and_is_kept(arch, monkeypatch):
    dtypes = ("bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32")
    names = [f"x{i}" for i in range(8)]
    text = "score + " + " + ".join(f"{name}[q * 3]" for name in names)
    mod = ModSource("score_mod", text, tuple(zip(names, dtypes, strict=True)))
    check_user_code(mod, arch)
    check_user_code(DOCUMENTS, arch)
    check_user_code(replace(BIAS, text="kv == 3 ? -INFINITY : fmaxf(score, expf(0.5f))"), arch)
    check_user_code(replace(BIAS, text="score // as it is"), arch)
    check_user_code(None, arch)
    monkeypatch.setattr(disk_cache, "write", lambda *_: pytest.fail("compiled again"))
    check_user_code(mod, arch)


@pytest.mark.parametrize("name", ["score_mod", "mask_mod"])
@pytest.mark.parametrize("text", ["1", "return 1;"])
def test_names_of_ours_can_be_the_callers(name, text):
    names = ("data", "p", "params", "user", "S", "Type", "mask", "rules")
    mod = ModSource(name, text, tuple((x, "int32") for x in names), (("kInf", "int"),))
    check_user_code(mod, "90a")
