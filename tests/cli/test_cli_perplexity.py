"""``cuattn perplexity`` on a tiny random model whose tokens are bytes."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tiny_models import random_tensors, write_folder

from cuattn.choice.scheme_plan import SchemePlan
from cuattn.cli import inputs, main
from cuattn.cli.perplexity import command as perplexity
from cuattn.common.typed_json import typed
from cuattn.language_model import files
from cuattn.language_model import judge as judging
from cuattn.language_model.files import open_model
from cuattn.language_model.judge import Judge
from cuattn.presets import PRESETS
from cuattn.records.rows import LanguageModelRow
from cuattn.reference.files import read_call

TEXT = "What becomes of a text of a few words, and of those behind them?"


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    monkeypatch.setattr(inputs, "gpu_status", lambda: ("no-gpu", "hidden by the test"))
    monkeypatch.setattr(perplexity, "gpu_available", lambda: False)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Return MODEL and TEXT."""
    write_folder(tmp_path / "tiny", random_tensors())
    tokenizer = SimpleNamespace(encode=lambda text: list(text.encode()))
    monkeypatch.setattr(files.ModelFile, "tokenizer", lambda self: tokenizer)
    (tmp_path / "words.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return ["tiny", "words.txt"]


def rows_of(path):
    document = json.loads(path.read_text())
    return document, typed(document["language_model"], list[LanguageModelRow], "rows")


def test_schemes_are_judged_in_all_layers(given, tmp_path, capsys):
    file = tmp_path / "x.json"
    options = ["--schemes", "int8,int8-fast", "--tokens", "40", "--json", str(file)]
    assert main(["perplexity", *given, *options]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tiny, 40 tokens of words.txt, emulated in NumPy, no usable GPU: hidden")
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()[4:]}
    judge = Judge(open_model("tiny").load(), list(TEXT.encode()[:40]))
    _, rows = rows_of(file)
    assert [row.scheme for row in rows] == ["exact", "int8", "int8-fast"]
    for row in rows:
        expected = judge.reference if row.scheme == "exact" else judge.scheme(PRESETS[row.scheme])
        assert row == LanguageModelRow(
            model="tiny",
            text="words.txt",
            tokens=40,
            scheme=row.scheme,
            cache=None,
            where="host",
            **expected.figures(),
        )
        assert float(lines[row.scheme][2]) == pytest.approx(expected.kl, rel=0.01)
        assert float(lines[row.scheme][3]) == pytest.approx(100 * expected.same_top1, rel=0.01)


def test_layers_become_a_plan_that_is_judged_and_can_be_given(given, tmp_path, capsys):
    file, plan = tmp_path / "x.json", tmp_path / "plan.json"
    options = ["--schemes", "int8-fast,int8,fp16", "--by-layer", "--max-kl"]
    assert main(["perplexity", *given, *options, "1", "--json", str(file)]) == 0
    document, _ = rows_of(file)
    costs = document["kl_by_layer"]
    assert [*costs] == ["int8-fast", "int8", "fp16"]
    assert all(len(of_layers) == 2 for of_layers in costs.values())
    bound = min(costs["int8-fast"]) + max(costs["int8"]) * 1.01
    capsys.readouterr()
    out = ["--save", str(plan), "--json", str(file)]
    assert main(["perplexity", *given, *options, str(bound), *out]) == 0
    text = capsys.readouterr().out
    assert re.search(r"KL with the scheme in one layer, 1e-6 nats\n  layer 0 .*\n  layer 1 ", text)
    assert re.search(r"\nplan\nlayer 0  \S+\nlayer 1  \S+\n$", text)
    _, rows = rows_of(file)
    assert rows[-1].scheme == "plan"
    assert rows[-1].kl < 2 * bound
    assert {*SchemePlan.load(plan).schemes} == {"layer 0", "layer 1"}
    assert main(["perplexity", *given, "--plan", str(plan), "--json", str(file)]) == 0
    _, again = rows_of(file)
    assert again == [rows[0], rows[-1]]


def test_caches_are_read_token_by_token(given, tmp_path, capsys):
    file = tmp_path / "x.json"
    options = ["--cache", "float16,int8,int4-g32", "--prompt", "20", "--chunk", "1"]
    assert main(["perplexity", *given, *options, "--json", str(file)]) == 0
    _, rows = rows_of(file)
    names = [(row.scheme, row.cache) for row in rows]
    assert names == [("exact", x) for x in (None, "float16", "int8", "int4-g32")]
    assert rows[1].kl < rows[2].kl < rows[3].kl
    text = capsys.readouterr().out
    assert "\ncaches\n  float16 " in text
    judge = Judge(open_model("tiny").load(), list(TEXT.encode()))
    assert rows[2].kl == judge.cache("int8", 20, 1).kl


def test_divergences_by_position(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(judging, "FIRST_RUN", 16)
    file = tmp_path / "x.json"
    options = ["--schemes", "int8", "--cache", "int8", "--by-position", "--tokens", "40"]
    assert main(["perplexity", *given, *options, "--json", str(file)]) == 0
    table = capsys.readouterr().out.partition("KL of the tokens from, to\n")[2].splitlines()
    found = json.loads(file.read_text())["kl_by_position"]
    assert [*found] == ["exact", "int8", "cache int8"]
    judge = Judge(open_model("tiny").load(), list(TEXT.encode()[:40]))
    runs = judge.scheme(PRESETS["int8"]).kl_by_position()
    assert [*runs] == [range(1, 17), range(17, 33), range(33, 40)]
    assert [(x["first"], x["last"]) for x in found["int8"]] == [(1, 16), (17, 32), (33, 39)]
    assert [x["kl"] for x in found["int8"]] == [*runs.values()]
    assert [line.split()[:3] for line in table] == [
        ["1", "to", "16"],
        ["17", "to", "32"],
        ["33", "to", "39"],
    ]
    for line, kl in zip(table, runs.values(), strict=True):
        assert float(line.split()[3]) == pytest.approx(kl, rel=0.01)


@pytest.mark.needs("tokenizers")
def test_a_folder_with_its_own_tokenizer_becomes_a_plan(tmp_path, monkeypatch, capsys):
    """As Hugging Face has models: config.json, safetensors in two files, and tokenizer.json."""
    import tokenizers

    words = {chr(c): i for i, c in enumerate(range(32, 127))} | {"<unknown>": 95}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unknown>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    folder = write_folder(tmp_path / "tiny", random_tensors(tied=False), shards=2)
    inner.save(str(folder / "tokenizer.json"))
    (tmp_path / "words.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    options = ["--schemes", "int8-fast,int8", "--by-layer", "--max-kl", "1", "--save", "plan.json"]
    assert main(["perplexity", "tiny", "words.txt", *options]) == 0
    assert capsys.readouterr().out.startswith(f"tiny, {len(TEXT)} tokens of words.txt")
    plan = SchemePlan.load(Path("plan.json"))
    assert [plan[f"layer {i}"].name for i in range(2)] == ["int8-fast", "int8-fast"]


def test_q_k_and_v_of_layers_are_written_as_report_reads_them(given, tmp_path, capsys):
    folder = tmp_path / "qkv"
    folder.mkdir()
    options = ["--schemes", "fp16", "--qkv", str(folder)]
    assert main(["perplexity", *given, *options]) == 0
    call = read_call(folder / "layer_1.npz")
    assert call.q.shape == (1, 4, len(TEXT), 64)
    assert call.k.shape == (1, 2, len(TEXT), 64)
    assert call.is_causal
    capsys.readouterr()
    files_of_layers = [str(folder / f"layer_{i}.npz") for i in range(2)]
    assert main(["choose", "--input", *files_of_layers, "--schemes", "int8,fp16"]) == 0
    assert "plan\nlayer_0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-kl", "1"], "--max-kl must be left out without --by-layer"),
        (["--by-layer", "--save", "plan.json"], "--save must be left out without --max-kl"),
        (["--prompt", "3"], "--prompt must be left out without --cache"),
        (["--chunk", "3"], "--chunk must be left out without --cache"),
        (["--cache", "int5"], "argument --cache: must be one of ['float16', 'int8',"),
        (["--cache", "int8", "--prompt", "200"], "prompt must be from 1 to the 64 tokens"),
        (["--tokens", "1"], "argument --tokens: must be at least 2, got 1"),
        (["--schemes", "int9"], "did you mean 'int8'"),
        (["--qkv", "gone"], "--qkv must be an existing folder, got 'gone'"),
        (["--plan", "gone.json"], "path must be an existing file"),
        (["--by-layer", "--schemes", "int4", "--max-kl", "0"], "max_kl must be at least"),
        (["--json", "words.txt"], "--json must be another file than that of TEXT"),
    ],
)
def test_options_that_do_not_fit_are_errors_of_one_line(given, capsys, options, message):
    assert main(["perplexity", *given, *options]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"cuattn: error: .+\n", error)
    assert message in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "TEXT must be a file of text in UTF-8 (No such file"),
        (b"\xff\xfe", "TEXT must be a file of text in UTF-8 ('utf-8' codec"),
        (b"a", "the text must be of 2 to 128 tokens, the model's context, got '1 tokens'"),
        (200 * b"a", "the text must be of 2 to 128 tokens"),
    ],
)
def test_texts_that_cannot_be_judged_are_errors(given, tmp_path, capsys, text, message):
    (tmp_path / "words.txt").unlink()
    if text is not None:
        (tmp_path / "words.txt").write_bytes(text)
    assert main(["perplexity", *given]) == 2
    assert message in capsys.readouterr().err


def test_with_a_gpu_arrays_are_cupys_unless_the_host_is_asked_for(given, monkeypatch, capsys):
    """NumPy stands in for CuPy."""
    monkeypatch.setattr(perplexity, "gpu_available", lambda: True)
    monkeypatch.setattr(perplexity, "where", lambda: "computed on a GPU")
    asked = []
    monkeypatch.setattr(perplexity, "import_module", lambda name: asked.append(name) or np)
    assert main(["perplexity", *given, "--schemes", "fp16", "--json", "x.json"]) == 0
    assert "computed on a GPU" in capsys.readouterr().out
    assert asked == ["cupy"]
    assert main(["perplexity", *given, "--schemes", "fp16", "--host"]) == 0
    assert "emulated in NumPy\n" in capsys.readouterr().out
    assert asked == ["cupy"]
    assert json.loads(Path("x.json").read_text())["language_model"][0]["where"] == "gpu"
