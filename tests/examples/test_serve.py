"""The example that serves several requests: their texts are those of one at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.example_modules import example
from helpers.tiny_models import TINY, random_tensors, write_folder

import cuattn
from cuattn.language_model import files

serve = example("serve")
PREFIX = list(b"all requests begin with these words, ")
CACHES = {"int8": {"bits": 8}, "int4": {"bits": 4, "recent": 16}}
SIZES = {"capacity": 96, "chunk": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("serve") / "model", random_tensors(tied=False))


def tokenizer():
    return SimpleNamespace(
        encode=lambda text: list(text.encode()),
        decode=lambda ids: bytes(i % 128 for i in ids).decode(),
    )


@pytest.fixture(params=["trained", "little"])
def model(serve, folder, request):
    if request.param == "trained":
        return serve.Trained(files.open_model(str(folder)).load(), tokenizer())
    tiny = serve.TinyLM(np, serve.Sizes(layers=2, width=32, hidden=64, context=128))
    rng = np.random.default_rng(1)
    # One that has not been trained writes the same byte for ever, if its layers add little.
    for name, parameter in tiny.parameters.items():
        if name != "embedding":
            parameter += np.float32(0.5) * rng.standard_normal(parameter.shape, np.float32)
    return serve.Little(tiny)


def requests(serve):
    prompts = (b"one", b"a prompt of several chunks", b"and", b"the last one of them", b"x")
    return [serve.Request(list(p), 2 * i, 20 + i) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("name", CACHES)
def test_texts_are_those_of_one_request_at_a_time(serve, model, name):
    options, asked = CACHES[name], requests(serve)
    expected = [serve.alone(model, PREFIX, options, r, pages=8, **SIZES) for r in asked]
    assert len({tuple(tokens) for tokens in expected}) == len(asked)
    assert all(len(set(tokens)) > 2 for tokens in expected)
    server = serve.Server(model, PREFIX, options, slots=3, pages=8, **SIZES)
    server.serve(asked)
    assert server.preempted > 0
    assert [r.tokens for r in asked] == expected
    # All that is left is the prefix.
    assert server.free_pages == 8 - 3
    for cache in server.caches:
        assert cache.lengths.tolist() == [len(PREFIX), 0, 0, 0]


def test_the_prefix_is_read_and_kept_once(serve, model):
    server = serve.Server(model, PREFIX, {"bits": 8}, slots=3, pages=30, **SIZES)
    asked = [serve.Request(list(b"abc"), 0, 4) for _ in range(3)]
    used = []
    step = server._step

    def counted():
        step()
        used.append(30 - server.free_pages)

    server._step = counted
    server.serve(asked)
    assert server.steps == 4
    # Two full pages of the prefix, and the last one of each sequence.
    assert max(used) == 2 + 4
    assert asked[0].tokens == asked[1].tokens == asked[2].tokens


def test_a_request_that_can_never_fit_is_an_error(serve, model):
    server = serve.Server(model, PREFIX, {"bits": 8}, slots=2, pages=4, **SIZES)
    with pytest.raises(cuattn.ArgumentError, match="free pages suffice"):
        server.serve([serve.Request(list(b"abc"), 0, 40)])


def test_example_runs_to_the_end(serve, folder, monkeypatch, capsys):
    monkeypatch.setattr(files.ModelFile, "tokenizer", lambda self: tokenizer())
    monkeypatch.setattr(serve.cuattn, "gpu_available", lambda: False)
    context = {"trained": "A: "}, {"trained": ["b?", "what?"]}
    monkeypatch.setattr(serve, "PREFIX", context[0])
    monkeypatch.setattr(serve, "PROMPTS", context[1])
    serve.main(["--model", str(folder), "--requests", "3", "--tokens", "20", "--cache", "int4"])
    text = capsys.readouterr().out
    assert "\n60 tokens in " in text
    assert text.endswith("texts as of one request at a time: 3 of 3\n")
    pages = -(-(3 + 5 + 20) // 16) + 1 + 4
    halves = 2 * 2 * TINY.layers * TINY.kv_heads * TINY.head_dim
    assert f"\n{halves * 16 * pages} in float16 for as many pages" in text


def test_tiny_is_trained_and_serves(serve, monkeypatch, capsys):
    monkeypatch.setattr(serve.cuattn, "gpu_available", lambda: False)
    monkeypatch.setattr(serve, "ON_HOST", {"steps": 2, "batch": 1, "length": 16})
    serve.main(["--model", "tiny", "--requests", "2", "--tokens", "3", "--slots", "2"])
    assert capsys.readouterr().out.endswith("texts as of one request at a time: 2 of 2\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens", "1"], "requests, slots and chunks are 1 at least, tokens 2"),
        (["--model", "gone.gguf"], "model must be a GGUF file"),
    ],
)
def test_what_cannot_be_served_is_an_error(serve, capsys, options, said):
    with pytest.raises(SystemExit) as leaving:
        serve.main(options)
    assert leaving.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("name", CACHES)
def test_a_gpu_serves_texts_of_one_request_at_a_time(serve, folder, cupy, name):
    model = serve.Trained(files.open_model(str(folder)).load(cupy), tokenizer())
    options, asked = CACHES[name], requests(serve)
    expected = [serve.alone(model, PREFIX, options, r, pages=8, **SIZES) for r in asked]
    server = serve.Server(model, PREFIX, options, slots=3, pages=8, **SIZES)
    server.serve(asked)
    assert server.preempted > 0
    assert [r.tokens for r in asked] == expected
