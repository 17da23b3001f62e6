"""Shapes of models: what the kernels can serve, and what has to be true of any."""

import pytest

from cuattn.arrays.device import TARGETS
from cuattn.bench.cases import COMPARED
from cuattn.bench.models import MODELS
from cuattn.plan.kernels import attention_spec
from cuattn.presets import resolve
from cuattn.reference.layout import pad_head_dim
from cuattn.specs.attention import Type

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def test_names_tell_models_apart():
    names = [model.name for model in MODELS]
    assert len(set(names)) == len(names)


@every_model
def test_query_heads_share_heads_of_k_evenly(model):
    assert model.heads % model.kv_heads == 0
    assert model.case.num_q_heads == model.heads
    assert model.case.num_kv_heads == model.kv_heads
    assert model.case.seqlen_q == model.case.seqlen_kv == model.tokens


@every_model
@pytest.mark.parametrize("scheme", COMPARED)
def test_there_are_kernels_for_every_model(model, scheme):
    padded = pad_head_dim(model.head_dim)
    spec = attention_spec(resolve(scheme), padded, Type.fp16, model.is_causal, TARGETS["90a"])
    assert spec.head_dim == padded


def test_all_models_take_seconds_to_time():
    # From float16 at half a peta-operation a second, six calls of each, a dozen rounds.
    seconds = sum(6 * 12 * model.case.operations / 5e14 for model in MODELS)
    assert seconds < 15
