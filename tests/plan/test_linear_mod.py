"""Expressions that are linear in the key: which are, how steep, and which calls make use of it."""

import math
import re

import numpy as np
import pytest

import cuattn
from cuattn import MaskMod, ScoreMod
from cuattn.plan import pipeline, score_rules, user_code
from cuattn.plan.linear_mod import slope_source
from cuattn.specs.mods import ModSource

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU, gpu_of
from simulated_gpu.score_rules import EXPRESSIONS

ARRAYS = (("slopes", "float32"), ("n", "int32"), ("h", "float16"), ("flag", "bool"))
NUMBERS = (("w", "int"), ("s", "float"))
# What the names stand for where slopes are worked out.
VALUES = {
    "batch": 1,
    "head": 3,
    "slopes": [0.5, 0.25, 2.0, 3.0, 5.0, 7.0],
    "n": [2, 4, 6, 8],
    "h": [1.5, 2.5, 3.5, 4.5],
    "flag": [False, True, False, True],
    "w": 2,
    "s": 0.75,
    "exp2f": lambda x: 2.0**x,
    "fmaxf": max,
}

LINEAR = {
    "score - slopes[head] * (q - kv)": 3.0,
    "score + 0.1f * (kv - q)": 0.1,
    "score-slopes[head]*(float)(q-kv)": 3.0,
    "(score) - slopes[batch * w + head] * float(own - kv)": 7.0,
    "return score + kv; // as it is": 1.0,
    "-(slopes[head] * (q - kv) - score)": 3.0,
    "kv * s + (score - q)": 0.75,
    "score - n[head] * (q - kv)": 8.0,
    "score + flag[head] * kv * h[batch]": 2.5,
    "score + exp2f(-8.f * (head + 1) / w) * (kv - own)": 2.0**-16,
    "score + fmaxf(s, 1e-3f) * (kv - q)": 0.75,
    "score + static_cast<float>(kv - q) / 8": 0.125,
    "score + (h[head] + (kv - q)) / 8": 0.125,
    "score + .5f * kv // far \\\n + 2 * kv\n": 0.5,
    "score + .25f * kv // far \\\\\r\n + 2 * kv": 0.25,
    "score - 2 * (-kv) + .5 * kv - 1.f * kv": 1.5,
    "score + /* far */ (kv - q) / (1 + s) + h[batch] * own + q % w": 1 / 1.75,
}
OTHERWISE = (
    "score",
    "score - slopes[head]",
    "2 * kv",
    "-score + kv",
    "score + score + kv",
    "score * 2 + kv",
    "score / 1.f + kv",
    "score - slopes[head] * abs(q - kv)",
    "score - slopes[head] * abs(own - kv) * abs(own - kv)",
    "score + kv * kv",
    "score + q * kv",
    "score + slopes[q] * kv",
    "score + slopes[kv]",
    "score + slopes[h[head]] * kv",
    "score + (kv - q) / 8",
    "score + (int)(s * kv)",
    "score + kv % 2",
    "score + (kv << 1)",
    "score + 0x2 * kv",
    "score + 2u * kv",
    "score - '\\1' + kv",
    "score + --kv",
    "score + kv, score",
    "kv > q ? score : 0.f",
    "fmaxf(score, kv)",
    "score + expf(kv)",
    "float x = score; return x + kv;",
    "return score + kv; return score;",
    "score + elsewhere * kv",
    "score + kv +",
    "score + " + "(" * 300 + "kv" + ")" * 300,
)
PAST = {
    "score - slopes[head] * abs(own - kv)": 3.0,
    "score - s * fabsf(float(kv - own))": 0.75,
    "score + -fabs((float)own - (float)kv)": 1.0,
}


def source(text):
    return ModSource("score_mod", text, ARRAYS, NUMBERS)


def worked_out(slope):
    """Evaluate a slope as C++ would, in which no integers are divided."""
    return eval(re.sub(r"(\b\d[\d.]*|\.\d+)f\b", r"\1", slope.text), {}, VALUES)


@pytest.mark.parametrize(("text", "steep"), [*LINEAR.items(), *PAST.items()])
def test_slopes_are_those_of_the_text(text, steep):
    slope = slope_source(source(text), only_past=True)
    assert math.isclose(worked_out(slope), steep, rel_tol=1e-12)
    assert (slope.name, slope.arrays, slope.numbers) == ("score_slope", ARRAYS, NUMBERS)


@pytest.mark.parametrize("text", OTHERWISE)
def test_what_is_not_linear_or_not_understood(text):
    assert slope_source(source(text), only_past=True) is None


@pytest.mark.parametrize("text", PAST)
def test_distances_are_linear_where_no_key_is_behind(text):
    assert slope_source(source(text), only_past=False) is None


def test_slopes_compile():
    added = " + ".join(slope_source(source(x), only_past=True).text for x in [*LINEAR, *PAST])
    user_code.check_user_code(ModSource("score_slope", added, ARRAYS, NUMBERS), "90a")


@pytest.fixture
def asked(monkeypatch, request):
    """Specs of the attention kernels that a simulated GPU runs."""
    SimulatedGPU(monkeypatch, gpu_of("90a"))
    found = []
    wanted = pipeline.attention_spec
    monkeypatch.setattr(
        pipeline,
        "attention_spec",
        lambda *kind, **options: found.append(wanted(*kind, **options)) or found[-1],
    )
    return found


BY_DISTANCE = ScoreMod("score - 0.5f * abs(own - kv)", reference=lambda score: score)
BY_PLACE = ScoreMod("score + 0.5f * (kv - q)", reference=lambda score: score)
SEEN = MaskMod("true", reference=lambda: True)


@pytest.mark.parametrize(
    ("options", "is_linear"),
    [
        ({"score_mod": BY_PLACE}, True),
        ({"score_mod": BY_PLACE, "scheme": "int8-block"}, True),
        ({"score_mod": BY_PLACE, "scheme": "fp16", "window_size": (20, 3)}, True),
        ({"score_mod": BY_DISTANCE}, False),
        ({"score_mod": BY_DISTANCE, "is_causal": True}, True),
        ({"score_mod": BY_DISTANCE, "window_size": (20, 0)}, True),
        ({"score_mod": BY_PLACE, "softcap": 5.0}, False),
        ({"score_mod": BY_PLACE, "mask_mod": SEEN}, False),
        ({"score_mod": BY_PLACE, "attn_mask": np.ones((60, 150), bool)}, False),
        ({"score_mod": BY_PLACE, "alibi_slopes": np.ones(4, np.float32)}, False),
        ({"score_mod": BY_PLACE, "scheme": "int8-token"}, False),
        ({"score_mod": BY_PLACE, "scheme": "int4"}, False),
    ],
)
def test_calls_make_use_of_it_where_nothing_else_changes_scores(asked, rng, options, is_linear):
    shapes = [(2, 4, 60, 64), (2, 2, 150, 64), (2, 2, 150, 64)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    for mod in (BY_DISTANCE, BY_PLACE, SEEN):
        EXPRESSIONS[mod.text] = mod
    cuattn.attention(*arrays, **options)
    (spec,) = asked
    assert (spec.rules.score_slope is not None) == is_linear
    assert spec.rules.score_mod.text == options["score_mod"].text
    if is_linear:
        assert "user_score_slope" in spec.prelude
        assert ".score_slope = true" in spec.cxx()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, False),
        ({"return_lse": True}, True),
        ({"sinks": np.ones(4, np.float32)}, True),
        ({"softcap": 5.0}, True),
    ],
)
def test_smoothing_is_undone_where_it_makes_a_difference(asked, rng, monkeypatch, options, wanted):
    found = []
    needed = score_rules.needs_lse_shift
    monkeypatch.setattr(
        pipeline, "needs_lse_shift", lambda problem: found.append(needed(problem)) or found[-1]
    )
    shapes = [(1, 4, 30, 64), (1, 2, 40, 64), (1, 2, 40, 64)]
    arrays = [rng.standard_normal(shape).astype(np.float32) + 3 for shape in shapes]
    EXPRESSIONS[BY_PLACE.text] = BY_PLACE
    o = cuattn.attention(*arrays, score_mod=BY_PLACE, **options)
    assert found == [wanted]
    assert np.isfinite(o[0] if options.get("return_lse") else o).all()
