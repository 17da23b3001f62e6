"""Heads, head dims and masks of published models, with few tokens, against the emulation."""

import pytest
from helpers.gpu_cases import SCHEMES, _kernels, check, make, on_gpu, run  # noqa: F401

from cuattn.bench.cases import COMPARED
from cuattn.bench.models import MODELS

pytestmark = pytest.mark.gpu

# With tails of every block.
TOKENS = 197


@pytest.mark.parametrize("scheme", [name for name in COMPARED if name in SCHEMES])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_attention_of_models_matches_emulation(rng, model, scheme):
    inputs = make(
        rng,
        batch=model.batch,
        heads=(model.heads, model.kv_heads),
        seqlens=(TOKENS, TOKENS),
        head_dim=model.head_dim,
    )
    arrays = [on_gpu(x, "float16") for x in inputs]
    options = {"is_causal": model.is_causal}
    check(run(arrays, scheme, **options), arrays, scheme, **options)
