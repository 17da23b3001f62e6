"""The command line as a user meets it: output, files, exit codes and one-line errors."""

import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cuattn import cli
from cuattn.arrays.device import current_device, target
from cuattn.choice import measure
from cuattn.choice.measure import measure_error
from cuattn.choice.scheme_plan import SchemePlan
from cuattn.cli import compile as compile_command
from cuattn.cli import info, inputs, main, progress
from cuattn.cli.report import command as report
from cuattn.plan import kernels as plan
from cuattn.plan.kernels import supported
from cuattn.presets import PRESETS
from cuattn.reference.distributions import DISTRIBUTIONS, make

ROOT = Path(__file__).parents[2]

SMALL = ["--heads", "2", "--kv-heads", "1", "--seqlen-q", "24", "--head-dim", "32"]
SHAPE = {
    "batch": 1,
    "num_q_heads": 2,
    "num_kv_heads": 1,
    "seqlen_q": 24,
    "seqlen_kv": 24,
    "head_dim": 32,
}


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch, request):
    """Most of this is about words; a GPU computer has to say the same."""
    if not request.node.get_closest_marker("gpu"):
        for module in (measure, plan, inputs, info, compile_command):
            monkeypatch.setattr(module, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


@pytest.fixture
def small_file(tmp_path):
    q, k, v = make("peaked", **SHAPE, seed=3)
    np.savez(tmp_path / "peaked.npz", q=q, k=k, v=v)
    return tmp_path / "peaked.npz"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["repotr"], "invalid choice: 'repotr'"),
        (["report", "--frobnicate"], "arguments: --frobnicate (see cuattn report --help)"),
        (["report", "--head", "2"], "unrecognized arguments: --head"),  # no abbreviations
        (["report", "--heads", "0"], "argument --heads: must be at least 1, got 0"),
        (["report", "--heads", "two"], "argument --heads: invalid integer value: 'two'"),
        (["report", "--heads", "4", "--kv-heads", "3"], "--kv-heads must be a divisor"),
        (["report", "--schemes", "int8,int5"], "did you mean 'int8' or 'int4'?"),
        (["report", "--distribution", "cauchy"], "argument --distribution: invalid choice"),
        (["report", "--scale", "nan"], "--scale must be a finite number"),
        (["report", "--input", "gone.npz"], "path must be an existing file, got 'gone.npz'"),
        (["report", "--input", "x.npz", "--seed", "1"], "--seed must be left out with --input"),
        (["report", "--input", "x.npz", "--distribution", "normal"], "not allowed with"),
        (["report", "--json", "gone/x.json"], "--json must be a file in an existing folder"),
        (["report", "--plot", "x.gif"], "--plot must be a file that ends in"),
        (["choose", "--min-cosine", "2"], "argument --min-cosine: must be from 0 to 1, got 2"),
        (["choose", "--max-relative-l1", "nan"], "--max-relative-l1: must be from 0 to inf"),
        (["choose", "--min-cosine", "high"], "invalid number value: 'high'"),
        (["choose", "--save", "gone/plan.json"], "--save must be a file in an existing folder"),
        (["choose", "--json", "x.json"], "unrecognized arguments: --json"),
        (["compile"], "--arch must be given on a computer without a GPU, such as sm_90a"),
        (["compile", "--arch=sm_80", "int8"], "arguments: int8 (see cuattn compile --help)"),
        (["compile", "--arch", "sm_75"], "argument --arch: arch must be one of"),
        (["compile", "--arch", "sm_80", "--dtypes", "int8"], "argument --dtypes: must be one of"),
        (["compile", "--arch", "sm_80", "--head-dims", "64,300"], "--head-dims: must be among"),
        (["compile", "--arch", "sm_80", "--head-dims", "7"], "got 7, which runs the kernels of 32"),
        (["compile", "--arch", "sm_80", "--kv", "8,6"], "argument --kv: must be one of ['8', '4']"),
        (["compile", "--arch", "sm_80", "--all", "--kv", "8"], "--all must be left out with --kv"),
        (["compile", "--all", "--head-dims", "64"], "--all must be left out with --head-dims"),
        (["info", "more"], "unrecognized arguments: more"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"cuattn: error: .+\n", output.err)
    assert message in output.err


def test_module_runs_and_errors_reach_the_shell():
    ran = subprocess.run(
        [sys.executable, "-m", "cuattn", "--frobnicate"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith("cuattn: error: ")


def test_reader_that_leaves_early_gets_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "cuattn", "report", *SMALL],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


def test_interruption_is_quiet(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "measure_error", interrupted)
    assert main(["report", *SMALL]) == 130
    assert capsys.readouterr().err == ""


def test_too_large_an_input_is_an_error(capsys, monkeypatch):
    def too_large(args):
        raise MemoryError("Unable to allocate 9.1 PiB\nfor an array")

    monkeypatch.setattr(report, "inputs", too_large)
    assert main(["report"]) == 2
    assert capsys.readouterr().err == "cuattn: error: Unable to allocate 9.1 PiB\n"


def test_report_shows_every_scheme_and_every_source(capsys):
    assert main(["report", *SMALL, "--distribution", "normal", "sharp", "--causal"]) == 0
    output = capsys.readouterr()
    where, overview, errors, sources = output.out.split("\n\n")
    assert where == "causal attention, emulated in NumPy, no usable GPU: hidden by the test"
    assert overview.split()[:2] == ["normal", "sharp"]
    assert re.findall(r"^  (\S+)", overview, re.MULTILINE) == list(PRESETS)
    for table in (errors, sources):
        assert re.findall(r"^  (\S+)", table, re.MULTILINE) == 2 * list(PRESETS)
        assert re.findall(r"^(\w+): batch 1, heads 2 over 1", table, re.MULTILINE) == [
            "normal",
            "sharp",
        ]
    assert re.search("Q % +K % +P % +V %", sources)
    assert output.err == ""  # no progress bar where nobody looks


def test_report_on_every_distribution_is_one_table(capsys):
    arguments = ["--distribution", "all", "--schemes", "int8,fp16", "--no-sources"]
    assert main(["report", *SMALL, *arguments]) == 0
    _, overview, errors = capsys.readouterr().out.split("\n\n")
    titles, _, *rows = overview.splitlines()
    assert titles.split() == list(DISTRIBUTIONS)
    assert [row.split()[0] for row in rows] == ["int8", "fp16"]
    shown = re.findall(r"^  (?:int8|fp16) +(\S+)", errors, re.MULTILINE)
    assert [row.split()[1:] for row in rows] == [shown[::2], shown[1::2]]


def test_choose_saves_what_it_shows(capsys, small_file, tmp_path):
    saved = tmp_path / "plan.json"
    other = tmp_path / "other.npz"
    np.savez(other, **dict(zip("qkv", make("channel-outliers", **SHAPE), strict=True)))
    arguments = ["--schemes", "int8-fast,int8,fp16", "--min-cosine", "0.9999"]
    inputs = ["--input", str(small_file), str(other)]
    assert main(["choose", *inputs, *arguments, "--causal", "--save", str(saved)]) == 0
    output = capsys.readouterr()
    where, *tables, plan = output.out.split("\n\n")
    assert where.startswith("causal attention, emulated in NumPy")
    chosen = SchemePlan.load(saved)
    assert list(chosen.schemes) == ["peaked", "other"]
    for name, table in zip(chosen.schemes, tables, strict=True):
        title, first, _, *rows = table.splitlines()
        assert title.startswith(f"{name}: batch 1, heads 2 over 1")
        assert first.startswith(f"{chosen[name].name} is the fastest with a cosine similarity")
        assert [row.split()[0] for row in rows] == ["int8-fast", "int8", "fp16"]
    assert plan == f"plan\n{chosen}\n"
    assert output.err == ""


def test_choose_says_what_bound_could_be_met(capsys):
    arguments = ["--schemes", "int8", "--min-cosine", "1"]
    assert main(["choose", *SMALL, *arguments]) == 2
    assert "normal: min_cosine must be at most 0.9999" in capsys.readouterr().err


def test_choose_shows_progress(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.0)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert main(["choose", *SMALL, "--schemes", "int8,fp16"]) == 0
    assert any(re.search(r"^choosing +\|[^ ]+ *\| +\d+%", line) for line in screen.lines())
    assert screen.lines()[-1] == ""


def test_report_of_files_is_that_of_measure_error(capsys, small_file, tmp_path):
    json_file = tmp_path / "report.json"
    arguments = ["--schemes", "int-flash,int8", "--scale", "0.3", "--json", str(json_file)]
    assert main(["report", "--input", str(small_file), *arguments]) == 0
    assert "peaked: batch 1, heads 2 over 1, tokens 24 x 24, head_dim 32" in capsys.readouterr().out
    document = json.loads(json_file.read_text())
    assert (document["is_causal"], document["scale"]) == (False, 0.3)
    assert [row["scheme"] for row in document["results"]] == ["int-flash", "int8"]
    qkv = make("peaked", **SHAPE, seed=3)
    for row in document["results"]:
        expected = measure_error(*qkv, scheme=row["scheme"], scale=0.3)
        assert row["metrics"] == expected.metrics
        assert row["by_source"] == expected.by_source
        assert {name: row[name] for name in SHAPE} == SHAPE
        assert (row["input"], row["dtype"], row["backend"]) == ("peaked", "float32", "emulation")
        assert (row["seconds"], row["tops"]) == (None, None)


def test_files_of_one_name_are_told_apart(capsys, small_file, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    copy = other / small_file.name
    copy.write_bytes(small_file.read_bytes())
    files = [str(small_file), str(copy)]
    assert main(["report", "--input", *files, "--schemes", "int8", "--no-sources"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{file}: batch" in printed for file in files)


def test_sources_can_be_left_out(capsys, tmp_path):
    file = tmp_path / "report.json"
    assert main(["report", *SMALL, "--schemes", "int8", "--no-sources", "--json", str(file)]) == 0
    assert "one step quantized" not in capsys.readouterr().out
    assert json.loads(file.read_text())["results"][0]["by_source"] is None


def test_figures_that_json_lacks_become_null(tmp_path):
    """A file of zeros: no error at all, so an infinite signal-to-noise ratio."""
    zeros = np.zeros((1, 1, 4, 8), np.float32)
    np.savez(tmp_path / "zeros.npz", q=zeros, k=zeros, v=zeros)
    file = tmp_path / "report.json"
    given = ["--input", str(tmp_path / "zeros.npz"), "--schemes", "int8", "--json", str(file)]
    assert main(["report", *given]) == 0
    metrics = json.loads(file.read_text())["results"][0]["metrics"]
    assert (metrics["relative_l1"], metrics["snr_db"]) == (0.0, None)


@pytest.mark.parametrize("options", [[], ["--no-sources"], ["--batch", "0"]])
def test_plot_is_a_picture(tmp_path, options):
    file = tmp_path / "report.png"
    # Float16 inputs: the fp16 scheme makes no error in Q, which a logarithmic axis cannot show.
    assert main(["report", *SMALL, "--schemes", "int8,fp16", "--plot", str(file), *options]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_without_cupy_the_headline_is_short(monkeypatch):
    status = "no-cupy", "No module named 'cupy'; pip install \"cupy-cuda12x>=14.2\"; or another"
    monkeypatch.setattr(inputs, "gpu_status", lambda: status)
    expected = "emulated in NumPy, no usable GPU: No module named 'cupy' (see cuattn info)"
    assert inputs.where() == expected


def test_plot_needs_matplotlib_and_says_so_first(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["report", "--plot", str(tmp_path / "x.png")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "--plot needs matplotlib: pip install matplotlib" in output.err


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        """Return what the cursor's line has shown, one after the other."""
        return [line.rstrip(" ") for line in self.getvalue().split("\r")]


def test_progress_is_shown_on_a_terminal_and_cleared(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", 0.0)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert main(["report", *SMALL, "--schemes", "int8"]) == 0
    lines = screen.lines()
    assert any(re.search(r"normal, float64 +\|", line) for line in lines)
    assert any(re.search(r"normal, int8 +\|[^ ]+ *\| +\d+%", line) for line in lines)
    assert lines[-1] == ""


def test_error_comes_after_the_progress_bar_is_cleared(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)

    def fail(*args, **kwargs):
        raise OSError("disk on fire")

    monkeypatch.setattr(report, "measure_error", fail)
    assert main(["report", *SMALL]) == 2
    assert screen.getvalue().endswith(" \rcuattn: error: disk on fire\n")


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Bar() as bar:
        for task in ("first", "second"):
            tell = bar.task(task)
            for done in range(1, 5):
                now[0] += progress.SECONDS_BETWEEN_LINES / 2
                tell(done, 4)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" %")[0] for line in lines] == [
        *("first:  50", "first: 100"),
        *("second:  50", "second: 100"),
    ]


@pytest.mark.parametrize("command", ["report", "choose"])
def test_commands_in_a_pipe_say_how_far_they_are(capsys, monkeypatch, command):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert main([command, *SMALL, "--schemes", "int8"]) == 0
    output = capsys.readouterr()
    label = {"report": "normal, int8", "choose": "choosing"}[command]
    assert re.search(rf"^{label}: +\d+ %, 00:0\d left", output.err, re.MULTILINE)
    assert "\r" not in output.err


def test_info_says_what_there_is(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path))
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^GPU +none: hidden by the test$", text, re.MULTILINE)
    assert re.search(
        rf"^kernel cache +{re.escape(str(tmp_path))}: 0 kernels, 0\.0 MiB of at most \d+$",
        text,
        re.M,
    )
    assert re.search(r"^compiler +(NVRTC \d+\.\d|no: )", text, re.MULTILINE)
    assert re.search(r"^GPU record +\S", text, re.MULTILINE)
    for name in PRESETS:
        assert re.search(rf"^  {name} +emulated in NumPy, as there is no GPU$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (99.0, "99 s"), (150, "2 min"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds, text):
    assert progress.duration(seconds) == text


def test_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"cuattn {cli.__version__}\n"


@pytest.mark.gpu
def test_report_on_a_gpu_has_times(capsys):
    assert main(["report", *SMALL, "--no-sources"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("attention, computed on ")
    *_, times = text.split("\n\n")
    for name in (scheme.name for scheme in supported(target(current_device().arch))):
        assert re.search(rf"^  {name} +\d\S* +\d\S*$", times, re.MULTILINE)


@pytest.mark.gpu
def test_info_on_a_gpu_has_its_kernels(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    able = supported(target(current_device().arch))
    assert re.search(r"^GPU 0 +.+compute capability \d+\.\d", text, re.MULTILINE)
    assert len(re.findall(r"\.cu.* for sm_\d+a?$", text, re.MULTILINE)) == len(able)
