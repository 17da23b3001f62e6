"""The example for Transformers; tests/with_transformers has the tests of the module it uses."""

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
    tokens = rng.integers(1, model.config.vocab_size, size=(2, 48))
    return llama.torch.from_numpy(tokens).to(model.device)


def test_errors_are_shown_layer_by_layer(llama, model, ids):
    results = llama.compare_schemes(model, ids, ["fp16", "int8", "int-flash"])
    assert list(results) == ["fp16", "int8", "int-flash"]
    for name, largest in (("fp16", 0.008), ("int8", 0.12), ("int-flash", 0.2)):
        # Errors of the layers before come on top.
        assert 0 < results[name][0] < results[name][-1] < largest
    assert results["int8"][-1] < results["int-flash"][-1]
    assert model.config._attn_implementation == "cuattn"


def test_caches_are_compared_by_logits(llama, model, ids):
    results = llama.compare_caches(model, ids, 40, [8, 4])
    # So few tokens have 8 bits in both, nested ones beside halves that they never lose.
    assert all(0 < error < 0.05 for error, _ in results.values())
    assert results[8][1] < results[4][1] < 1.6 * results[8][1]


def test_program_says_what_came_out(llama, capsys):
    llama.main(["--tokens", "32", "--layers", "2", "--width", "128", "--schemes", "int8", "fp16"])
    words = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert [line[0] for line in words if line[0] in ("int8", "fp16")] == ["int8", "fp16"]
    assert [line[2] for line in words if line[0] == "cache"] == ["8", "4"]
