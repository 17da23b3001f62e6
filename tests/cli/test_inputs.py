"""Input files of commands: settings, other names, and what must not be measured in silence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cuattn.choice import measure
from cuattn.choice.measure import measure_error
from cuattn.choice.scheme_plan import SchemePlan
from cuattn.cli import inputs, main
from cuattn.plan import kernels as plan
from cuattn.reference.distributions import make

ROOT = Path(__file__).parents[2]
SHAPE = {
    "batch": 1,
    "num_q_heads": 2,
    "num_kv_heads": 1,
    "seqlen_q": 24,
    "seqlen_kv": 24,
    "head_dim": 32,
}
INT8 = ["--schemes", "int8"]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    for module in (measure, plan, inputs):
        monkeypatch.setattr(module, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


@pytest.fixture(scope="module")
def qkv():
    return make("peaked", **SHAPE, seed=3)


@pytest.fixture
def file(tmp_path, qkv):
    """Return a function that writes a file with q, k, v and more."""

    def written(name="layer.npz", **more):
        np.savez(tmp_path / name, **{**dict(zip("qkv", qkv, strict=True)), **more})
        return str(tmp_path / name)

    return written


def reported(tmp_path, *arguments):
    document = tmp_path / "report.json"
    assert main(["report", *arguments, *INT8, "--json", str(document)]) == 0
    return json.loads(document.read_text())["results"]


def refused(capsys, *arguments):
    assert main([*arguments, *INT8]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_settings_of_a_file_are_used_and_said(capsys, tmp_path, file, qkv):
    causal, plain = file("a.npz", is_causal=True, scale=np.float32(0.5)), file("b.npz")
    rows = reported(tmp_path, "--input", causal, plain)
    printed = capsys.readouterr().out
    assert re.search(r"^a: batch 1, .*, float32, causal, scale 0\.5$", printed, re.MULTILINE)
    assert re.search(r"^b: batch 1, .*, float32$", printed, re.MULTILINE)
    for row, settings in zip(
        rows, ({"is_causal": True, "scale": 0.5}, {"is_causal": False, "scale": None}), strict=True
    ):
        assert {name: row[name] for name in settings} == settings
        assert row["metrics"] == measure_error(*qkv, scheme="int8", **settings).metrics


def test_choose_and_pages_use_the_settings_of_a_file(capsys, tmp_path, file, qkv):
    saved = tmp_path / "plan.json"
    given = ["--input", file("a.npz", is_causal=True), file("b.npz")]
    assert main(["choose", *given, *INT8, "--min-cosine", "0", "--save", str(saved)]) == 0
    assert list(SchemePlan.load(saved).schemes) == ["a", "b"]
    cosines = [
        measure_error(*qkv, scheme="int8", is_causal=is_causal).metrics["cosine"]
        for is_causal in (True, False)
    ]
    shown = re.findall(r"^  int8 +(0\.\d{6})", capsys.readouterr().out, re.MULTILINE)
    assert shown == [f"{x:.6f}" for x in cosines]
    page = tmp_path / "page.html"
    assert (
        main(["report", *given, *INT8, "--no-sources", "--close-ups=0", "--html", str(page)]) == 0
    )
    assert "float32, causal</h2>" in page.read_text(encoding="utf-8")


def test_options_that_a_file_contradicts_are_refused(capsys, file):
    not_causal, scaled = file("a.npz", is_causal=False), file("b.npz", scale=0.5)
    message = refused(capsys, "report", "--input", not_causal, "--causal")
    assert "--causal must be left out with" in message
    message = refused(capsys, "report", "--input", scaled, "--scale", "0.25")
    assert "--scale must be left out with" in message
    assert main(["report", "--input", scaled, "--scale", "0.5", *INT8, "--no-sources"]) == 0


@pytest.mark.parametrize("command", ["report", "choose"])
@pytest.mark.parametrize("name", ["attn_mask", "mask"])
def test_masks_are_refused_by_name(capsys, file, qkv, command, name):
    path = file(**{name: qkv[0]})
    message = refused(capsys, command, "--input", path)
    assert f"a file without '{name}', which is not carried out, got '{path}'" in message


def test_other_names_are_listed_and_taken(capsys, tmp_path, qkv):
    path = tmp_path / "layer.npz"
    np.savez(path, **dict(zip(("query", "key", "value"), qkv, strict=True)))
    message = refused(capsys, "report", "--input", str(path))
    assert "it has 'query', 'key', 'value'; keys such as q=query" in message
    keys = ["--keys", "q=query,k=key,v=value"]
    (row,) = reported(tmp_path, "--input", str(path), *keys)
    assert row["metrics"] == measure_error(*qkv, scheme="int8").metrics


@pytest.mark.parametrize("keys", ["query", "x=query", "q=", "q=a,q=b", ""])
def test_keys_that_are_none_are_refused(capsys, keys):
    message = refused(capsys, "report", "--input", "x.npz", "--keys", keys)
    assert "argument --keys: must be like q=query,k=key,v=value" in message


def test_keys_are_those_of_files(capsys):
    assert "--keys must be" in refused(capsys, "report", "--keys", "q=query")


@pytest.mark.parametrize("command", ["report", "choose"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_position(capsys, file, qkv, command, value):
    k = qkv[1].copy()
    k[0, 0, 7, 3] = k[0, 0, 8, 0] = value
    message = refused(capsys, command, "--input", file(k=k))
    assert f"layer.npz: k[0, 0, 7, 3] must be a finite number, got {value}" in message


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (["--batch", "0"], "no outputs, so no errors either"),
        (["--seqlen-q", "0"], "no outputs, so no errors either"),
        (["--seqlen-kv", "0"], "no keys, so all outputs are 0"),
    ],
)
def test_empty_inputs_are_said(capsys, sizes, words):
    small = ["--heads", "1", "--head-dim", "32", "--seqlen-q", "8", *sizes, *INT8]
    for command in ("report", "choose"):
        assert main([command, *small]) == 0
        assert re.search(rf"^normal: .*, {words}$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("name", ["$x^{$.npz", r"a_b $\frac{1}{2}$.npz", "注意.npz", "$$.npz"])
def test_any_name_can_be_drawn(tmp_path, file, name):
    given = ["report", "--input", file(name), file("b.npz"), *INT8, "--no-sources", "--close-ups=0"]
    page, plot = tmp_path / "x.html", tmp_path / "x.png"
    assert main([*given, "--html", str(page), "--plot", str(plot)]) == 0
    assert name.removesuffix(".npz") in page.read_text(encoding="utf-8")
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_names_that_cannot_be_encoded_are_escaped(tmp_path, file, encoding):
    path = os.fsencode(file()).replace(b"layer", b"a\xff\x1b\n\xc3\xa9")
    os.rename(file(), path)
    arguments = [*INT8, "--no-sources", "--close-ups=0", "--html=x.html"]
    ran = subprocess.run(
        [sys.executable, "-m", "cuattn", "report", "--input", path, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    e = "é".encode() if encoding.startswith("utf") else rb"\xe9"
    assert rb"a\udcff\x1b\n" + e + b": batch 1" in ran.stdout
    assert r"a\udcff\x1b\né: batch 1" in (tmp_path / "x.html").read_text(encoding="utf-8")
