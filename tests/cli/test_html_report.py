"""The page of ``cuattn report --html``: complete, sound, and without anything from outside."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest
from html_pages import BROWSER, Page, has_its_own_colors, is_shown_as_it_should_be, is_sound

from cuattn.choice import measure
from cuattn.cli import main, progress, setting
from cuattn.cli.report import html as html_report
from cuattn.cli.report.sample import HEADS, ROW_BLOCKS, ROWS, Sample
from cuattn.cli.table import number
from cuattn.plan import kernels as plan
from cuattn.presets import PRESETS
from cuattn.reference.distributions import make

SMALL = ["--heads", "2", "--kv-heads", "1", "--seqlen-q", "24", "--head-dim", "32"]
TWO = ["--schemes", "int8,fp16"]
# Every type of Q, K, V and P.
SCHEMES = ("int8", "int8-two-term", "int4", "twin", "fp8", "fp16")


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    for module in (measure, plan, setting):
        monkeypatch.setattr(module, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


def page_of(tmp_path, *arguments):
    file = tmp_path / "report.html"
    assert main(["report", *arguments, "--html", str(file)]) == 0
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page with all that there can be, and its JSON."""
    folder = tmp_path_factory.mktemp("page")
    sweeps = ["--sweep-seqlen", "16,32", "--sweep-head-dim", "32,64"]
    given = ["--distribution", "normal", "sinks", "--causal", "--schemes", ",".join(SCHEMES)]
    given += ["--json", str(folder / "report.json")]
    with pytest.MonkeyPatch.context() as patch:
        for module in (measure, plan, setting):
            patch.setattr(module, "gpu_status", lambda: ("no-gpu", "hidden by the test"))
        text = page_of(folder, *SMALL, *given, *sweeps)
    return text, json.loads((folder / "report.json").read_text()), folder / "report.html"


def test_page_is_sound_and_refers_to_nothing_outside(whole):
    is_sound(whole[0])


def test_page_has_every_picture_with_title_and_words(whole):
    text, document, _ = whole
    page = Page(text)
    schemes, inputs, sweeps = len(SCHEMES), 2, 2
    without_codes = sum(PRESETS[scheme].qk == "fp16" for scheme in SCHEMES)
    pictures = inputs * (2 + 4 * schemes - without_codes) + inputs * sweeps
    assert page.tags.count("svg") == page.tags.count("figcaption") == pictures
    assert page.tags.count("figure") == pictures
    assert page.tags.count("details") == inputs * schemes
    assert {row["scheme"] for row in document["results"]} == set(SCHEMES)
    assert page.tags.count("image") >= inputs * schemes  # the heat maps


def test_tables_have_the_figures_of_the_json(whole):
    text, document, _ = whole
    cells = Page(text).cells
    rows = [*document["results"], *document["sweeps"]["seqlen"], *document["sweeps"]["head_dim"]]
    for row in rows:
        assert number(100 * row["metrics"]["relative_l1"]) in cells
    for row in document["results"]:
        for source in "qkpv":
            assert number(100 * row["by_source"][source]["relative_l1"]) in cells


def test_pictures_have_the_colours_of_the_page(whole):
    has_its_own_colors(whole[0])


def test_sweeps_are_printed_and_in_the_json(capsys, tmp_path):
    file = tmp_path / "report.json"
    arguments = [*SMALL, *TWO, "--no-sources", "--sweep-seqlen", "16,48", "--json", str(file)]
    assert main(["report", *arguments, "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"relative L1 error, %, against tokens\n +16 +48\nnormal\n +int8 ", printed)
    sweeps = json.loads(file.read_text())["sweeps"]
    assert set(sweeps) == {"seqlen"}
    rows = sweeps["seqlen"]
    assert [(r["seqlen_q"], r["seqlen_kv"], r["scheme"]) for r in rows] == [
        (n, n, scheme) for n in (16, 48) for scheme in ("int8", "fp16")
    ]
    assert {r["dtype"] for r in rows} == {"float32"}
    # Each is what a report of that size says.
    only = tmp_path / "only.json"
    sized = ["--heads", "2", "--kv-heads", "1", "--seqlen-q", "48", "--head-dim", "32"]
    given = [*sized, *TWO, "--no-sources", "--dtype", "float32", "--json", str(only)]
    assert main(["report", *given]) == 0
    assert json.loads(only.read_text())["results"] == rows[2:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--html", "gone/x.html"], "--html must be a file in an existing folder"),
        (["--sweep-seqlen", "16,0"], "argument --sweep-seqlen: must be at least 1, got 0"),
        (["--sweep-head-dim", "16,x"], "argument --sweep-head-dim: invalid list value"),
        (["--close-ups", "1"], "--close-ups must be left out without --html"),
        (["--sweep-seqlen", "16", "--input", "x.npz"], "--sweep-seqlen must be left out with"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert main(["report", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "closer", "said"),
    [
        ([], 1, "Only the first input has"),
        (["--close-ups", "0"], 0, "No input has"),
        (["--close-ups", "2"], 2, "Only the first 2 inputs have"),
        (["--close-ups", "9"], 3, None),
    ],
)
def test_schemes_of_the_first_inputs_are_drawn_one_by_one(
    monkeypatch, tmp_path, options, closer, said
):
    monkeypatch.setattr(html_report, "CLOSE_UPS", 3)
    inputs = ["--distribution", "normal", "sinks", "uniform", "--no-sources"]
    page = Page(page_of(tmp_path, *SMALL, *TWO, *inputs, *options))
    assert page.tags.count("details") == 2 * closer
    told = [text for text in page.texts if "--close-ups" in text]
    assert len(told) == 3 - closer
    assert all(said in text for text in told)


def test_page_needs_matplotlib_and_says_so_first(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["report", "--html", str(tmp_path / "x.html")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "--html needs matplotlib: pip install matplotlib" in output.err


def test_page_of_a_gpu_has_speeds(monkeypatch, tmp_path):
    run = measure._run
    monkeypatch.setattr(measure, "_run", lambda *given: (run(*given)[0], 1e-3))
    text = page_of(tmp_path, *SMALL, *TWO, "--no-sources", "--sweep-seqlen", "16,32")
    assert text.count(">Speed by scheme<") == 1
    assert text.count(">Speed against sequence length: normal<") == 1
    assert "Time of a call, quantization included" in text
    Page(text)


def test_page_of_a_users_file(tmp_path):
    q, k, v = make(
        "peaked", batch=2, num_q_heads=4, num_kv_heads=2, seqlen_q=20, seqlen_kv=40, head_dim=64
    )
    file = tmp_path / "layer <0>.npz"
    np.savez(file, q=q, k=k, v=v)
    text = page_of(tmp_path, "--input", str(file), *TWO, "--no-sources")
    assert "layer &lt;0&gt;: batch 2, heads 4 over 2, tokens 20 x 40" in text
    Page(text)


@pytest.mark.parametrize(
    "sizes", [["--batch", "0"], ["--seqlen-q", "0"], ["--seqlen-kv", "0"], ["--seqlen-q", "1"]]
)
def test_page_of_next_to_nothing(tmp_path, sizes):
    Page(page_of(tmp_path, "--heads", "1", "--head-dim", "32", "--seqlen-q", "8", *sizes, *TWO))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_page_of_inputs_that_have_no_figures(tmp_path, value):
    x = np.full((1, 1, 8, 32), value, np.float32)
    np.savez(tmp_path / "x.npz", q=x, k=x, v=x)
    Page(page_of(tmp_path, "--input", str(tmp_path / "x.npz"), "--schemes", "int8,int4,fp8,fp16"))


def test_sample_is_evenly_spaced_and_said():
    class Long:
        shape = type("", (), {"batch": 2, "num_q_heads": 8, "seqlen_q": 5000, "seqlen_kv": 9})

    sample = Sample.of(Long)
    assert sample.heads == [(0, 0), (0, 5), (1, 2), (1, 7)]
    assert len(sample.rows) == ROW_BLOCKS
    assert sample.rows[0] == range(ROWS)
    assert sample.rows[-1] == range(39 * ROWS, 5000)
    assert len(sample.heads) == HEADS
    assert str(sample) == "4 of 16 heads, 904 of the 5000 rows of each"


def test_progress_names_the_pictures(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.0)
    written = []
    monkeypatch.setattr(
        sys,
        "stderr",
        type(
            "",
            (),
            {
                "isatty": lambda self: True,
                "write": lambda self, x: written.append(x),
                "flush": lambda self: None,
            },
        )(),
    )
    page_of(tmp_path, *SMALL, *TWO, "--sweep-seqlen", "16")
    assert any("normal, int8, pictures" in line for line in written)
    assert any("normal, tokens 16, int8" in line for line in written)


if BROWSER:

    def test_browser_shows_the_page(whole, tmp_path):
        is_shown_as_it_should_be(tmp_path, whole[2])
