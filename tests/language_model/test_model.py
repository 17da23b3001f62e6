"""The forward pass: against one written out in float64, and against Transformers' models."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.tiny_models import CONFIG, TINY, logits, random_tensors, write_folder

from cuattn.errors import ArgumentError
from cuattn.language_model.attend import ROWS, Caches, PlainCache, exact, quantized
from cuattn.language_model.files import open_model
from cuattn.language_model.model import LanguageModel
from cuattn.language_model.sizes import sizes_of_config
from cuattn.language_model.weights import HUGGING_FACE, weights_of
from cuattn.presets import PRESETS

QWEN2 = {"architectures": ["Qwen2ForCausalLM"]}
IDS = np.random.default_rng(1).integers(0, TINY.vocabulary, 40).tolist()


def made(sizes, tensors):
    readers = {name: lambda x=x: x for name, x in tensors.items()}
    return LanguageModel(sizes, weights_of(readers, HUGGING_FACE, sizes))


def found(model, ids=IDS):
    return model.logits(model.states(ids, exact(np, model.sizes.window)))


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"adjacent": True}, {"tied": False}),
        ({"kv_heads": 4}, {"biases": True}),
        ({"kv_heads": 1}, {"norms": True}),
        ({"window": 7}, {}),
        ({"head_dim": 8, "layers": 3}, {}),
    ],
    ids=["halves", "adjacent", "biases", "norms", "window", "small-heads"],
)
def test_logits_are_those_written_out_in_float64(changes, options):
    sizes = replace(TINY, **changes)
    tensors = random_tensors(sizes, **options)
    expected = logits(sizes, tensors, IDS)
    # Rounding of float32 in sums of up to 256 terms, two or three layers deep.
    np.testing.assert_allclose(found(made(sizes, tensors)), expected, atol=3e-5)


ARCHITECTURES = {
    "Llama": {},
    "Llama with scaled angles": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "Llama with linear scaling": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
    },
    "Mistral": {"sliding_window": 9},
    "Qwen2": {},
    "Qwen3": {},
}


@pytest.mark.needs("torch", "transformers")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_transformers(name, tmp_path):
    import torch
    import transformers

    kind = name.split()[0]
    known = {x: y for x, y in CONFIG.items() if x != "architectures"}
    config = getattr(transformers, f"{kind}Config")(
        **known | ARCHITECTURES[name], attn_implementation="eager"
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for x in theirs.parameters():  # their initial weights are small, norms 1 and biases 0
            x += 0.2 * torch.randn_like(x)
        expected = theirs(torch.tensor([IDS])).logits[0].numpy()
    # Written by them: the config of their version, a head only if it is not the embedding.
    theirs.save_pretrained(tmp_path)
    model = open_model(tmp_path).load()
    assert (model.sizes.window > 0) == (kind == "Mistral")
    np.testing.assert_allclose(found(model), expected, atol=1e-4 * np.abs(expected).max())


def test_exact_attention_does_not_depend_on_its_blocks(monkeypatch, rng):
    q = rng.standard_normal((1, 4, 50, 16), np.float32)
    k, v = rng.standard_normal((2, 1, 2, 60, 16), np.float32)
    for window in (0, 5):
        whole = exact(np, window)(0, q, k, v)
        monkeypatch.setattr("cuattn.language_model.attend.ROWS", 8)
        np.testing.assert_allclose(exact(np, window)(0, q, k, v), whole, atol=1e-6)
        monkeypatch.setattr("cuattn.language_model.attend.ROWS", ROWS)
        # Only the last rows, behind keys that are there.
        np.testing.assert_allclose(
            exact(np, window)(0, q[:, :, 30:], k, v), whole[:, :, 30:], atol=1e-6
        )


def test_schemes_of_layers_are_used_in_their_layers(monkeypatch):
    model = made(TINY, random_tensors())
    called = []

    def attention(q, k, v, *, scheme, **options):
        called.append((scheme.name, options))
        return exact(np)(0, q, k, v)

    monkeypatch.setattr("cuattn.language_model.attend.attention", attention)
    expected = model.states(IDS, exact(np))
    attend = quantized([None, PRESETS["int8-block"]], np)
    np.testing.assert_array_equal(model.states(IDS, attend), expected)
    model.states(IDS, quantized(PRESETS["int8"], np, window=9))
    causal = {"is_causal": True, "window_size": (-1, -1)}
    windowed = ("int8", causal | {"window_size": (8, 0)})
    assert called == [("int8-block", causal), windowed, windowed]


@pytest.mark.parametrize("window", [0, 9])
def test_decoding_through_a_plain_cache_is_the_whole_pass(window):
    model = made(replace(TINY, window=window), random_tensors())
    caches = Caches(model, "float16", len(IDS))
    caches.of_layer = [PlainCache(np, 2, 64, len(IDS), "float32") for _ in range(2)]
    states = [model.states(IDS[:11], caches)]
    states += [model.states([token], caches, 11 + i) for i, token in enumerate(IDS[11:])]
    whole = model.states(IDS, exact(np, window))
    np.testing.assert_allclose(np.concatenate(states), whole, atol=1e-5)


def test_caches_have_fewer_bytes_with_fewer_bits():
    model = made(TINY, random_tensors())
    sizes = [Caches(model, name, 64).nbytes for name in ("float16", "int8", "k8v4", "int4-g32")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 2 * 2 * 64 * 2 * 64 * 2


@pytest.mark.parametrize("ids", [[0, 300], [-1, 0]])
def test_a_token_outside_the_vocabulary_is_an_error(ids):
    model = made(TINY, random_tensors())
    with pytest.raises(ArgumentError, match="a token must be from 0 to 299"):
        model.states(ids, exact(np))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kv_heads": 3}, "kv_heads of the model must be a divisor of its 4 heads, got 3"),
        ({"layers": 0}, "layers of the model must be a whole number of at least 1"),
        ({"head_dim": 63}, "head_dim of the model must be even"),
        ({"rope_base": float("nan")}, "rope_base of the model must be a positive number"),
        ({"window": -1}, "window of the model must be a whole number"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(change, said):
    with pytest.raises(ArgumentError, match=said):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures must be one of"),
        ({"architectures": None}, "architectures must be one of"),
        ({"hidden_size": None}, "one that says hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type must be 'default'"),
        ({"rope_scaling": {"type": "linear"}}, "rope parameters must be such with"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types must be the same"),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 9,
            },
            "use_sliding_window must be left out",
        ),
    ],
)
def test_what_a_config_asks_for_and_is_not_carried_out_is_refused(change, said):
    assert sizes_of_config(CONFIG) == TINY
    with pytest.raises(ArgumentError, match=said):
        sizes_of_config(CONFIG | change)


def test_folder_is_read_in_shards(tmp_path):
    tensors = random_tensors(tied=False)
    models = [
        open_model(write_folder(tmp_path / str(shards), tensors, shards=shards)).load()
        for shards in (1, 3)
    ]
    np.testing.assert_array_equal(*map(found, models))
