"""What the judge says of schemes, layers and caches, and plans made of that."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny_models import TINY, logits, random_tensors

from cuattn.errors import ArgumentError
from cuattn.language_model import judge as judging
from cuattn.language_model.attend import CACHES, exact
from cuattn.language_model.judge import Judge
from cuattn.language_model.layer_plan import plan_layers, schemes_of
from cuattn.language_model.model import LanguageModel
from cuattn.language_model.weights import HUGGING_FACE, weights_of
from cuattn.presets import PRESETS

INT8, BLOCK, FAST, FP16 = (PRESETS[x] for x in ("int8", "int8-block", "int8-fast", "fp16"))
IDS = np.random.default_rng(2).integers(0, TINY.vocabulary, 60).tolist()
TENSORS = random_tensors()


@pytest.fixture(scope="module")
def model():
    readers = {name: lambda x=x: x for name, x in TENSORS.items()}
    return LanguageModel(TINY, weights_of(readers, HUGGING_FACE, TINY))


@pytest.fixture(scope="module")
def judge(model):
    return Judge(model, IDS)


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def test_exact_attention_has_the_perplexity_of_float64_and_no_divergence(judge):
    found = judge.reference
    expected = log_softmax(logits(TINY, TENSORS, IDS))[np.arange(59), IDS[1:]]
    assert found.perplexity == pytest.approx(np.exp(-expected.mean()), rel=1e-5)
    assert (found.delta_nll, found.kl, found.same_top1) == (0, 0, 1)


def test_figures_are_those_of_their_definitions(model, judge, monkeypatch):
    def attend(layer, q, k, v):
        return 1.3 * exact(np)(layer, q, k, v)

    monkeypatch.setattr(judging, "ROWS", 7)
    found = judge.attention(attend)
    p, q = (
        log_softmax(model.logits(model.states(IDS, x))[:-1].astype(np.float64))
        for x in (exact(np), attend)
    )
    own = np.arange(59), IDS[1:]
    assert found.kl == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-6)
    assert found.kl > 1e-3
    assert found.delta_nll == pytest.approx(p[own].mean() - q[own].mean(), rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(-q[own].mean()), rel=1e-6)
    assert found.same_top1 == (p.argmax(axis=1) == q.argmax(axis=1)).mean() < 1
    np.testing.assert_allclose(found.kl_of_tokens, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-5)


def test_runs_of_positions_double_and_cover_the_text(judge, monkeypatch):
    monkeypatch.setattr(judging, "FIRST_RUN", 8)
    found = judge.scheme(INT8)
    runs = found.kl_by_position()
    assert [*runs] == [range(1, 9), range(9, 17), range(17, 33), range(33, 60)]
    assert sum(len(x) * kl for x, kl in runs.items()) == pytest.approx(59 * found.kl)
    assert runs[range(9, 17)] == found.kl_of_tokens[8:16].mean()


def test_fewer_bits_diverge_more(judge):
    kl = [judge.scheme(PRESETS[x]).kl for x in ("fp16", "int8", "int-flash", "int4")]
    assert kl == sorted(kl)
    assert 0 < kl[0] < 1e-6
    assert 1e-6 < kl[1] < 1e-3


def test_layers_one_at_a_time_are_those_with_the_others_exact(judge):
    found = judge.by_layer(INT8)
    assert found == [judge.scheme([INT8, None]), judge.scheme([None, INT8])]


# Of nested codes as many of the newest tokens have 8 bits as chunks leave.
@pytest.mark.parametrize("name", [name for name in CACHES if name != "int4"])
def test_a_cache_read_token_by_token_is_the_same_in_chunks(judge, name):
    """But for rounding: a token's codes depend on no others but those that fix K's offset."""
    single = judge.cache(name, prompt=16)
    chunked = judge.cache(name, prompt=16, chunk=13)
    assert chunked.kl == pytest.approx(single.kl, rel=0.02)
    assert chunked.delta_nll == pytest.approx(single.delta_nll, abs=1e-4)


def test_caches_of_fewer_bits_diverge_more(judge):
    kl = [judge.cache(x, prompt=16, chunk=60).kl for x in ("float16", "int8", "k8v4", "int4-g32")]
    assert kl == sorted(kl)
    assert kl[0] < 1e-6


def test_what_goes_into_attention_can_be_watched(model):
    seen = []
    Judge(model, IDS, watch=lambda *call: seen.append(call))
    assert [layer for layer, *_ in seen] == [0, 1]
    assert [x.shape for x in seen[0][1:]] == [(1, 4, 60, 64), (1, 2, 60, 64), (1, 2, 60, 64)]


def test_progress_comes_to_its_end(model):
    said = []
    judge = Judge(model, IDS, lambda *x: said.append(x))
    judge.by_layer(FP16, lambda *x: said.append(x))
    judge.cache("float16", 20, 20, lambda *x: said.append(x))
    assert said == [(1, 2), (2, 2), (1, 2), (2, 2), (20, 60), (40, 60), (60, 60)]


@pytest.mark.parametrize("count", [0, 1, 129])
def test_a_text_of_the_wrong_length_is_an_error(model, count):
    with pytest.raises(ArgumentError, match=r"the text must be of 2 to 128 tokens"):
        Judge(model, [1] * count)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": 0}, "prompt must be from 1 to the 60 tokens"),
        ({"prompt": 61}, "prompt must be from 1 to the 60 tokens"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"name": "int5"}, "cache must be one of"),
    ],
)
def test_options_of_caches_are_checked(judge, options, said):
    with pytest.raises(ArgumentError, match=said):
        judge.cache(**{"name": "int8"} | options)


# By layer; the fastest first, as `speed_rank` has it.
COSTS = {FAST: [8e-4, 5e-4, 1e-4], BLOCK: [9e-4, 1e-4, 1e-4], INT8: [2e-4, 2e-4, 3e-5]}


@pytest.mark.parametrize(
    ("max_kl", "names"),
    [
        (1e-2, ["int8-fast", "int8-fast", "int8-fast"]),
        # int8-block is no choice for the first layer, and enough for the second.
        (1.1e-3, ["int8-fast", "int8-block", "int8-fast"]),
        (4e-4, ["int8", "int8-block", "int8-fast"]),
        (3.4e-4, ["int8", "int8-block", "int8"]),
    ],
)
def test_plans_spend_speed_where_it_gains_most(max_kl, names):
    plan = plan_layers(dict(reversed(COSTS.items())), max_kl)
    assert [scheme.name for scheme in schemes_of(plan, 3)] == names
    assert plan["layer 0"].name == names[0]


def test_a_plan_that_cannot_be_had_says_what_could_be():
    with pytest.raises(ArgumentError, match=r"max_kl must be at least 0.00033"):
        plan_layers(COSTS, 3e-4)
    with pytest.raises(ArgumentError, match="layer must be one of"):
        schemes_of(plan_layers(COSTS, 1), 4)


def test_divergences_that_are_no_numbers_are_chosen_by_none():
    costs = {FAST: [float("nan")], INT8: [1e-4]}
    assert schemes_of(plan_layers(costs, 1e-3), 1) == [INT8]


def test_windows_are_those_of_the_model(model):
    windowed = LanguageModel(replace(TINY, window=5), model.weights)
    judge = Judge(windowed, IDS)
    assert judge.scheme(FP16).kl < 1e-6
    assert judge.cache("int8", 10, 10).kl < 1e-2
    assert judge.reference.perplexity != Judge(model, IDS).reference.perplexity
