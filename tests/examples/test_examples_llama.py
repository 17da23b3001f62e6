"""The example for Transformers: a Llama with random weights, with cuattn's attention."""

import numpy as np
import pytest
from helpers.example_modules import example

pytestmark = pytest.mark.needs("torch", "transformers")


llama = example("torch_llama")


@pytest.fixture(scope="module")
def model(llama):
    torch = llama.torch
    torch.manual_seed(0)
    return llama.small_llama(layers=3, device="cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def ids(llama, model, rng):
    tokens = rng.integers(1, model.config.vocab_size, size=(2, 48))  # 0 is padding
    return llama.torch.from_numpy(tokens).to(model.device)


def logits(llama, model, name, ids, **options):
    model.set_attn_implementation(name)
    with llama.torch.inference_mode():
        return model(ids, **options).logits.double().cpu().numpy()


def test_errors_are_shown_layer_by_layer(llama, model, ids):
    results = llama.compare(model, ids, ["fp16", "int8", "int-flash"])
    assert list(results) == ["fp16", "int8", "int-flash"]
    for name, largest in (("fp16", 0.002), ("int8", 0.03), ("int-flash", 0.05)):
        result = results[name]
        assert len(result["attention"]) == len(result["hidden"]) == 3
        assert 0 < min(result["attention"]) <= max(result["attention"]) < largest
        # Errors of the layers before come on top.
        assert result["hidden"][0] < result["hidden"][-1] < 4 * largest
        assert 0 < result["logits"] < largest
    layers = zip(results["int8"]["attention"], results["int-flash"]["attention"], strict=True)
    assert all(sorted_keys < tokens for sorted_keys, tokens in layers)
    assert model.config._attn_implementation == "cuattn-int-fa"


@pytest.fixture
def served(llama, monkeypatch):
    """Return a list to which every call of cuattn appends whether it is causal."""
    found = []
    own = llama.attend

    def attend(q, k, v, is_causal, *options):
        found.append(is_causal)
        return own(q, k, v, is_causal, *options)

    monkeypatch.setattr(llama, "attend", attend)
    return found


def test_causal_mask_is_cuattns_and_padding_is_pytorchs(llama, model, ids, served):
    name = llama.register("int8")
    exact = logits(llama, model, "sdpa", ids)
    found = logits(llama, model, name, ids)
    assert served == [True] * 3
    assert 0 < abs(found - exact).mean() / abs(exact).mean() < 0.2
    mask = llama.torch.ones_like(ids)
    mask[0, :7] = 0  # the first sequence is padded on the left
    padded = logits(llama, model, name, ids, attention_mask=mask)
    assert len(served) == 3
    np.testing.assert_array_equal(padded, logits(llama, model, "sdpa", ids, attention_mask=mask))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_text_is_generated_from_a_prompt_that_is_cuattns(llama, model, ids, served, cache):
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    if cache == "static":
        options |= {"cache_implementation": "static", "disable_compile": True}
    texts = []
    for name in ("sdpa", llama.register("fp16")):
        model.set_attn_implementation(name)
        texts.append(model.generate(ids, **options).cpu().numpy())
    assert texts[0].shape == (2, 53)
    assert served == [True] * 3
    np.testing.assert_array_equal(*texts)


def test_gradients_are_pytorchs(llama, model, ids):
    model.set_attn_implementation(llama.register("int8"))
    loss = model(ids, labels=ids).loss
    loss.backward()
    weight = model.model.layers[0].self_attn.k_proj.weight
    assert weight.grad.abs().max() > 0
    model.zero_grad()


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_what_would_be_left_out_is_an_error(llama, model, name):
    forward = llama.AttentionInterface()[llama.register("int8")]
    qkv = llama.torch.zeros(3, 1, 4, 8, 64, device=model.device)
    with pytest.raises(ValueError, match=f"cuattn has no {name}"):
        forward(model.model.layers[0].self_attn, *qkv, None, **{name: 30.0})


def test_program_says_what_came_out(llama, capsys):
    llama.main(["--tokens", "32", "--layers", "2", "--width", "128", "--schemes", "int8", "fp16"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("int8", "fp16"))] == [
        *("int8", "fp16"),
        *("int8", "fp16"),
    ]
