"""`cuattn bench` as a user meets it: words, files and exit codes, of a run that is made up."""

import importlib.util
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from cuattn.bench import grid, results
from cuattn.bench.cases import CORE, SCHEMES, Case, decoding
from cuattn.cli import main
from cuattn.cli.bench import command as bench
from cuattn.cli.bench import page as bench_page
from cuattn.cli.progress import Bar
from cuattn.errors import NoGPUError
from cuattn.records.record import Accuracy, Timing, records

PREFILL = [Case.square(4, 32, seqlen, 128, False) for seqlen in (1024, 4096)]
CACHE = decoding(16, 8, 8192)


def timing(case, kind, name, scheme, ms, **figures):
    return Timing(
        **asdict(case),
        case=kind,
        implementation=name,
        scheme=scheme,
        family="",
        kernel_ms=ms,
        kernel_iqr_ms=0.01 * ms,
        **figures,
    )


def prefill(case, name, scheme, ms):
    tops = case.operations / ms * 1e-9
    return timing(case, "prefill", name, scheme, ms, end_to_end_ms=2 * ms, tops=tops)


def found():
    """Return what a run could have found; a millisecond is twice as fast as float16."""
    ceilings = [
        results.Ceiling(what="int8", instruction="wgmma", rate=1000.0, iqr=2.0),
        results.Ceiling(what="copy", instruction="ld", rate=4000.0, iqr=8.0),
    ]
    times = [
        prefill(case, name, scheme, ms)
        for case in PREFILL
        for name, scheme, ms in (("cuattn", "int8", 1.0), ("pytorch-flash", "fp16", 2.0))
    ]
    times += [
        timing(CACHE, "decode", "cuattn", "kv-int8", 0.1, gbps=3000.0),
        timing(CACHE, "decode", "pytorch-flash", "fp16", 0.2, gbps=3500.0),
        timing(CACHE, "copy-decode", "cudaMemcpyAsync", "", 0.5, gbps=4000.0),
    ]
    accuracy = [
        Accuracy(
            **asdict(PREFILL[1]), scheme="int8", family="", distribution="outliers",
            metrics={"relative_l1": 0.0321},
        )
    ]  # fmt: skip
    return results.Results(
        digest="0123456789abcdef",
        gpu="a GPU",
        measured_at="2026-01-02T03:04:05+00:00",
        rounds=30,
        versions={"cuattn": "1.0"},
        left_out={"comfy-kitchen": "comfy_kitchen does not import"},
        ceilings=ceilings,
        timings=times,
        accuracy=accuracy,
    )


@pytest.fixture
def file(tmp_path):
    results.save(found(), tmp_path / "run.json")
    return str(tmp_path / "run.json")


@pytest.fixture
def no_gpu(monkeypatch):
    def begun(rounds):
        raise NoGPUError("no usable GPU: hidden by the test")

    monkeypatch.setattr(bench.runs, "begun", begun)


@pytest.fixture
def gpu(monkeypatch):
    """Have a run find what `found` says; return the options that it is given."""
    given = {}

    def begun(rounds):
        given["rounds"] = rounds
        return results.Results("0123456789abcdef", "a GPU", "today", rounds, {"cuattn": "1.0"})

    def measure(chosen, into, *, with_baselines, task, say):
        given.update(grid=chosen, with_baselines=with_baselines)
        task("prefill")(1, 2)
        say("fp8", "needs sm_89")
        into.ceilings += found().ceilings
        if given.get("interrupt"):
            raise KeyboardInterrupt
        into.timings += found().timings

    monkeypatch.setattr(bench.runs, "begun", begun)
    monkeypatch.setattr(bench.runs, "measure", measure)
    return given


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no usable GPU: hidden by the test"),
        (
            ["--schemes", "int9"],
            "argument --schemes: scheme must be a Scheme or a preset's name",
        ),
        (["--only", "prefil"], "argument --only: must be one of ['ceilings', 'prefill'"),
        (["--causal", "maybe"], "argument --causal: must be one of ['both', 'yes', 'no']"),
        (["--caches", "8192"], "argument --caches: must be sequences x tokens like 16x8192"),
        (["--caches", "0x8192"], "argument --caches: must be at least 1, got 0"),
        (["--kv-heads", "3"], "kv_heads must be a divisor of 32 heads, got 3"),
        (["--head-dim", "520"], "head_dim must be in 1..512, got 520"),
        (["--rounds", "1"], "argument --rounds: must be at least 2, got 1"),
        (["--json", "gone/x.json"], "--json must be a file in an existing folder"),
        (["--html", "gone/x.html"], "--html must be a file in an existing folder"),
        (["--compare", "gone.json"], "gone.json must be a JSON file of cuattn bench"),
        (["--from", "gone.json"], "gone.json must be a JSON file of cuattn bench"),
        (
            ["--from", str(records()[0])],
            ".json must be a JSON file of cuattn bench, an object with",
        ),
        (["--from", "x.json", "--quick"], "--quick must be left out with --from"),
        (["--from", "x.json", "--seqlen", "64"], "--seqlen must be left out with --from"),
        (["--from", "x.json", "--json", "y.json"], "--json must be left out with --from"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    no_gpu, capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"cuattn: error: .+\n", output.err)
    assert message in output.err


def test_a_page_without_matplotlib_is_refused_before_the_run(gpu, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "--html", str(tmp_path / "x.html")]) == 2
    assert (
        "--html needs matplotlib and jinja2: pip install matplotlib jinja2"
        in capsys.readouterr().err
    )
    assert not gpu


def tables(text):
    """Return the columns and rows of each table, by how its title begins."""
    found = {}
    for part in text.split("\n\n")[1:]:
        title, columns, *rows = [*part.splitlines(), ""]
        cells = [re.split(r" {2,}", row.strip()) for row in rows]
        found[re.split("[,:]", title)[0]] = {x[0]: x[1:] for x in cells} | {"": columns.split()}
    return found


def test_a_file_is_shown_without_a_gpu(no_gpu, file, capsys):
    assert main(["bench", "--from", file]) == 0
    output = capsys.readouterr()
    assert output.err == "left out: comfy-kitchen: comfy_kitchen does not import\n"
    assert output.out.startswith(
        "a GPU, cuattn 1.0, 2026-01-02T03:04:05+00:00, digest 0123456789ab\n\n"
    )
    assert "medians of 30 rounds, with inter-quartile ranges of 1.0 %" in output.out
    shown = tables(output.out)
    assert shown["the most that this GPU can do"]["int8, wgmma"] == ["1000", "0.200"]
    prefilled = shown["prefill"]
    assert prefilled[""] == ["N=1024", "call", "%", "N=4096", "call", "%"]
    wanted = [
        x for case in PREFILL for x in (1e-9 * case.operations * scale for scale in (1, 0.5, 0.1))
    ]
    assert [float(x) for x in prefilled["int8"]] == pytest.approx(wanted, rel=5e-3)
    assert prefilled["pytorch-flash, fp16"][2] == "-"  # no ceiling of float16
    assert shown["decode"]["kv-int8"] == ["0.100", "1.00", "3000", "75.0", "2.00"]
    assert shown["relative L1 error against float64"][""] == ["outliers"]
    assert shown["relative L1 error against float64"]["int8"] == ["3.21"]


def test_a_file_of_another_kind_is_refused(tmp_path, capsys):
    for name, content in (
        ("x.png", b"\x89PNG\xff"),
        ("x.json", b"[]"),
        ("y.json", b"{"),
        ("deep.json", b"[" * 200_000),
        ("deeper.json", b'{"a":' * 200_000),
        ("nan.json", b"NaN"),
        ("long.json", b"9" * 5000),
    ):
        (tmp_path / name).write_bytes(content)
        assert main(["bench", "--from", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.startswith(f"cuattn: error: {name} must be ")


def numbers(value, path=()):
    """Yield the places of all numbers in JSON's own types."""
    if isinstance(value, (dict, list)):
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inside, (*path, key))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize("figure", ["0", "NaN", "Infinity", "-1", "1e999", "1e300", "1e-300"])
def test_a_file_with_impossible_figures_is_refused_or_shown(
    no_gpu, file, tmp_path, capsys, monkeypatch, figure
):
    """Any one number of a file, in every kind of row: never more than one line of complaint."""
    monkeypatch.setattr(bench_page, "render", lambda *given, **values: "")
    document = json.loads(Path(file).read_text())
    seen = set()
    for path in numbers(document):
        kind = tuple(key for key in path if isinstance(key, str))
        if kind in seen:
            continue
        seen.add(kind)
        changed = json.loads(json.dumps(document))
        inside = changed
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = "FIGURE"
        bad = tmp_path / "bad.json"
        bad.write_text(json.dumps(changed).replace('"FIGURE"', figure))
        for options in ([], ["--compare", file], ["--html", str(tmp_path / "x.html")]):
            code = main(["bench", "--from", str(bad), *options])
            output = capsys.readouterr()
            assert code in (0, 2)
            if code:
                assert output.out == ""
                assert re.fullmatch(r"cuattn: error: bad\.json.+\n", output.err)
                break
            assert figure in ("0", "1e-300", "1e300")
            assert "inf" not in output.out.replace("rounds", "")
    assert len(seen) > 15


def test_two_files_are_compared(no_gpu, file, capsys):
    assert main(["bench", "--from", file, "--compare", file]) == 0
    assert "0 faster, 0 slower" in capsys.readouterr().out


def test_a_page_is_written_of_a_file(no_gpu, file, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.html"
    assert main(["bench", "--from", file, "--html", str(page)]) == 0
    assert "a GPU" in page.read_text(encoding="utf-8")


def test_a_run_is_shown_and_written(gpu, capsys, tmp_path):
    path = tmp_path / "run.json"
    assert main(["bench", "--json", str(path)]) == 0
    output = capsys.readouterr()
    assert output.err == "left out: fp8: needs sm_89\n"
    assert "pytorch-flash, fp16" in output.out
    written = results.load(path)
    assert written.timings == found().timings
    assert written.rounds == gpu["rounds"] == 30
    assert gpu["grid"] == grid.make()
    assert gpu["with_baselines"]


def test_a_run_that_is_interrupted_is_written_nevertheless(gpu, capsys, tmp_path):
    path = tmp_path / "run.json"
    gpu["interrupt"] = True
    assert main(["bench", "--json", str(path)]) == 130
    assert f"{path} has what was measured" in capsys.readouterr().err
    assert results.load(path).ceilings == found().ceilings


def test_options_say_what_is_measured(gpu):
    assert main(["bench", "--quick", "--no-baselines"]) == 0
    assert gpu["grid"] == grid.make(**grid.QUICK)
    assert gpu["rounds"] == grid.QUICK_ROUNDS
    assert not gpu["with_baselines"]
    options = ["--schemes", "all", "--seqlen", "512,2048", "--head-dim", "96", "--causal", "yes"]
    options += ["--batch", "2", "--heads", "8", "--kv-heads", "2", "--caches", "3x100,4x200"]
    assert main(["bench", *options, "--only", "prefill,decode", "--rounds", "5"]) == 0
    assert gpu["rounds"] == 5
    assert gpu["grid"] == grid.make(
        schemes=SCHEMES,
        seqlens=(512, 2048),
        head_dims=(96,),
        causal=(True,),
        batch=2,
        heads=8,
        kv_heads=2,
        caches=((3, 100), (4, 200)),
        parts=("prefill", "decode"),
    )
    # An option is stronger than --quick.
    assert main(["bench", "--quick", "--seqlen", "512", "--rounds", "3"]) == 0
    assert gpu["grid"] == grid.make(**{**grid.QUICK, "seqlens": (512,)})
    assert gpu["grid"].schemes == CORE
    assert gpu["rounds"] == 3


def test_notes_stay_above_the_bar(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Bar() as bar:
        bar.task("prefill")
        bar.note("left out: fp8")
    shown = [line.rstrip(" ") for line in capsys.readouterr().err.split("\r") if line.strip()]
    assert shown[0].startswith("prefill  |")
    assert shown[1] == "left out: fp8\n"
    assert shown[2] == shown[0]
    assert len(shown) == 3
