"""`cuattn.transformers.register`: what it refuses, leaves to PyTorch, and passes on."""

from inspect import signature

import numpy as np
import pytest
from tiny_models import logits, model_of, padded, relative_l1

import cuattn
from cuattn import ArgumentError, SchemePlan, UnsupportedError

pytestmark = pytest.mark.needs("torch", "transformers")


@pytest.fixture
def call(hf, rng):
    """Return a function that calls a registered attention as a model does, and its Q, K and V."""
    shapes = [(2, 4, 24, 64), (2, 2, 24, 64), (2, 2, 24, 64)]
    tensors = [hf.torch.from_numpy(rng.standard_normal(s, np.float32)) for s in shapes]
    module = model_of(hf, "llama").model.layers[0].self_attn

    def answer(attention, mask=None, qkv=tensors, **options):
        with hf.torch.inference_mode():
            o, weights = attention(module, *qkv, mask, **options)
        assert weights is None
        return o

    return answer, tensors


def expected(tensors, **options):
    return cuattn.attention(*tensors, **options).transpose(1, 2)


@pytest.mark.parametrize("scheme", ["int8", "int8-block", "fp16"])
def test_answers_have_cuattns_bits(hf, call, rng, scheme):
    answer, tensors = call
    sinks = hf.torch.from_numpy(rng.standard_normal(4, np.float32))
    ours = hf.ours.register(scheme, "cuattn-bits")
    wanted = expected(tensors, scheme=scheme, is_causal=True)
    assert hf.torch.equal(answer(ours), wanted)
    assert answer(ours).is_contiguous()
    found = answer(ours, scaling=0.2, softcap=3.0, s_aux=sinks, sliding_window=5)
    more = {"scale": 0.2, "softcap": 3.0, "sinks": sinks, "window_size": (4, 0)}
    assert hf.torch.equal(found, expected(tensors, scheme=scheme, is_causal=True, **more))
    bias = hf.torch.from_numpy(rng.standard_normal((1, 4, 24, 24), np.float32))
    found = answer(ours, is_causal=False, position_bias=bias)
    assert hf.torch.equal(found, expected(tensors, scheme=scheme, attn_mask=bias))


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_sequences_with_padding_have_the_bits_that_they_have_alone(hf, call, side):
    answer, tensors = call
    mask = hf.torch.ones(2, 24, dtype=hf.torch.bool)
    mask[0, {"left": slice(9), "right": slice(15, 24), "middle": slice(5, 14)}[side]] = False
    noisy = [x.masked_fill(~mask[:, None, :, None], float("nan")) for x in tensors]
    found = answer(hf.ours.register("int8-block", "cuattn-bits"), mask, noisy, sliding_window=4)
    for b in range(2):
        alone = [x[b : b + 1, :, mask[b]] for x in tensors]
        options = {"is_causal": True, "window_size": (3, 0), "scheme": "int8-block"}
        assert hf.torch.equal(found[b, mask[b]], expected(alone, **options)[0])
        assert not found[b, ~mask[b]].any()


@pytest.mark.parametrize("window", [None, 4])
def test_copies_of_a_mask_say_the_same(hf, call, window):
    """Models that are spread over devices move masks, and Python's attributes do not go along."""
    from transformers.masking_utils import sdpa_mask

    from cuattn.transformers.masks import mask_of_batch

    answer, _ = call
    mask = hf.torch.ones(2, 24, dtype=hf.torch.bool)
    mask[0, :9] = False
    sizes = {"q_length": 24, "kv_length": 24, "local_size": window}
    if "cache_position" in signature(sdpa_mask).parameters:  # Transformers 5.0
        del sizes["q_length"]
        sizes["cache_position"] = hf.torch.arange(24)
    made = mask_of_batch(2, attention_mask=mask, **sizes)
    assert made.shape == (2, 24)
    ours = hf.ours.register("int8", "cuattn-bits")
    expected = answer(ours, made)
    assert hf.torch.equal(answer(ours, made.clone()), expected)
    assert hf.torch.equal(answer(ours, mask, sliding_window=window), expected)
    # Whoever asks for a mask that is written out gets it.
    written = mask_of_batch(2, attention_mask=mask, **sizes, allow_is_causal_skip=False)
    assert written.shape == (2, 1, 24, 24)


def test_layers_have_the_schemes_of_a_plan(hf):
    model = model_of(hf, "llama")
    ids, _ = padded(hf, "none")
    int8, fp16 = cuattn.PRESETS["int8"], cuattn.PRESETS["fp16"]
    found = []
    for schemes in ({"layer 0": int8, "layer 1": int8}, {"layer 0": int8, "1": fp16}):
        ours = hf.ours.register(SchemePlan(schemes), "cuattn-plan")
        found.append(logits(hf, model, ours.name, ids))
    found.append(logits(hf, model, hf.ours.register("int8", "cuattn-int8").name, ids))
    np.testing.assert_array_equal(found[0], found[2])
    assert np.any(found[1] != found[2])
    lacking = hf.ours.register(SchemePlan({"layer 0": int8}), "cuattn-plan")
    with pytest.raises(ArgumentError, match="a plan with an entry 'layer 1'"):
        logits(hf, model, lacking.name, ids)


def test_layers_left_out_are_pytorchs(hf):
    ids, mask = padded(hf, "left")
    for name in ("gemma2", "gpt-oss", "llama"):  # by the models' own function, but for the last
        model = model_of(hf, name)
        exact = logits(hf, model, "eager", ids, attention_mask=mask)
        ours = hf.ours.register("int8", "cuattn-skip", skip=(0, 1))
        found = logits(hf, model, ours.name, ids, attention_mask=mask)
        real = mask.numpy().astype(bool)
        assert ours.calls == {"PyTorch: layer left out": 2}
        assert relative_l1(found[real], exact[real]) < 1e-5
    part = hf.ours.register("int8", "cuattn-skip", skip=[1])
    logits(hf, model, part.name, ids)
    assert part.calls == {"cuattn": 1, "PyTorch: layer left out": 1}
    assert repr(part) == f"Attention('cuattn-skip', calls={dict(part.calls)})"


def test_gradients_and_dropout_are_refused_or_pytorchs(hf, call):
    answer, _ = call
    model = model_of(hf, "llama")
    ids, _ = padded(hf, "none")
    model.set_attn_implementation(hf.ours.register("int8", "cuattn-strict").name)
    with pytest.raises(UnsupportedError, match=r"no gradients: call the model in eval\(\) under"):
        model(ids)
    ours = hf.ours.register("int8", "cuattn-lenient", fallback=True)
    model.set_attn_implementation(ours.name)
    model(ids, labels=ids).loss.backward()
    assert ours.calls == {"PyTorch: gradients": 2}
    assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().max() > 0
    model.zero_grad()
    with pytest.raises(UnsupportedError, match="no dropout"):
        answer(hf.ours.register("int8", "cuattn-strict"), dropout=0.1)
    answer(ours, dropout=0.1)
    assert ours.calls["PyTorch: dropout"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "cuattn-flash"}, "name must be a name without 'flash', '/', '|'"),
        ({"name": ""}, "name must be"),
        ({"scheme": "int9"}, "scheme must be"),
        ({"skip": "3"}, r"skip must be numbers of layers, as \(0, 31\)"),
        ({"skip": [-1]}, "skip must be"),
        ({"fallback": "sdpa"}, "fallback must be True or False"),
        ({"schemes": "int8"}, "there is no argument 'schemes'; expected 'scheme'"),
    ],
)
def test_wrong_arguments_are_named(hf, options, said):
    with pytest.raises(ArgumentError, match=said.replace("|", r"\|")):
        hf.ours.register(**options)


def test_masks_that_do_not_fit_are_named(hf, call):
    answer, _ = call
    ours = hf.ours.register("int8", "cuattn-bits")
    for shape, said in (((2, 30), "at most 24 slots"), ((24,), r"\[batch, slots\] or")):
        with pytest.raises(ArgumentError, match=f"attention_mask must be .*{said}"):
            answer(ours, hf.torch.ones(shape, dtype=hf.torch.bool))
