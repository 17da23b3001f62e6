"""What is timed for a table of `scheme="auto"`, and the command that writes it."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from cuattn.auto.table import CANDIDATES, SpeedTable, load
from cuattn.auto.tables import own_file
from cuattn.bench import auto_table
from cuattn.choice.timing import Median
from cuattn.cli import main
from cuattn.cli.bench import auto_table as command
from cuattn.errors import NoGPUError
from cuattn.records.digest import ATTENTION, digest
from cuattn.records.record import Timing

DEVICE = SimpleNamespace(name="NVIDIA Test", compute_capability="80", arch="80")


@pytest.fixture
def times(monkeypatch):
    """Stand in for the GPU's clock; return the calls that were timed together."""
    timed = []

    def time_gpu(calls, **options):
        timed.append([*calls])
        return {call: Median(ms=1.0, iqr_ms=0.01) for call in calls}

    for name in ("noise", "token_noise"):
        monkeypatch.setattr(auto_table, name, lambda *args: 0)
    monkeypatch.setattr(auto_table, "_calls", lambda case: dict.fromkeys(CALLS))
    monkeypatch.setattr(auto_table, "time_gpu", time_gpu)
    monkeypatch.setattr(auto_table.ours, "family", lambda scheme, case: "any")
    return timed


CALLS = [(is_causal, scheme) for is_causal in (False, True) for scheme in CANDIDATES]


def test_all_candidates_take_turns_with_a_mask_and_without(monkeypatch, times):
    rooms = iter([True, False, True])
    told, shown = [], []

    def room_for(case, needed, left_out):
        assert needed > case.input_bytes
        return nullcontext(next(rooms))

    monkeypatch.setattr(auto_table, "room_for", room_for)
    cases = auto_table.CASES[:3]
    found = list(auto_table.timings(told.append, lambda *args: shown.append(args), cases))
    assert times == [CALLS, CALLS]
    assert shown == [(1, 3), (2, 3), (3, 3)]
    wanted = [
        (replace(case, is_causal=mask), scheme)
        for case in (cases[0], cases[2])
        for mask, scheme in CALLS
    ]
    assert [(t.seqlen_q, t.is_causal, t.scheme) for t in found] == [
        (case.seqlen_q, case.is_causal, scheme) for case, scheme in wanted
    ]
    monkeypatch.setattr(auto_table, "current_device", lambda: DEVICE)
    made = auto_table.table(found)
    assert len(made.rows) == 4
    assert (made.gpu, made.compute_capability) == (DEVICE.name, "80")
    assert made.digest == digest(ATTENTION)


def test_shapes_are_all_different_and_none_is_too_long():
    assert len({*auto_table.CASES}) == len(auto_table.CASES)
    for case in auto_table.CASES:
        assert case.batch * case.num_q_heads * case.seqlen_q <= auto_table.MOST_TOKENS
        assert not case.is_causal
    for head_dim in auto_table.HEAD_DIMS:
        groups = {x.group for x in auto_table.CASES if x.head_dim == head_dim}
        assert groups == {1, 4}


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Have a GPU whose quantized calls take half of the time with a mask, and twice without."""

    def timings(left_out, progress):
        left_out("N16384", "no room")
        progress(1, 1)
        for case in auto_table.CASES[:2]:
            for is_causal, scheme in CALLS:
                ms = 1.0 if scheme == "fp16" else 0.5 if is_causal else 2.0
                yield Timing(
                    **asdict(replace(case, is_causal=is_causal)),
                    case="auto",
                    implementation="cuattn",
                    scheme=scheme,
                    family="any",
                    end_to_end_ms=ms,
                )

    compiled = []
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "current_device", lambda: DEVICE)
    monkeypatch.setattr(auto_table, "current_device", lambda: DEVICE)
    monkeypatch.setattr(command, "timings", timings)
    monkeypatch.setattr(command, "precompile", lambda specs, *_, **__: compiled.extend(specs))
    return compiled


def test_the_table_is_written_to_where_it_is_looked_for(gpu, capsys):
    assert main(["bench", "--auto-table"]) == 0
    output = capsys.readouterr()
    file = own_file(DEVICE.name)
    assert str(file) in output.err
    assert "left out: N16384: no room" in output.err
    found = load(file)
    assert isinstance(found, SpeedTable)
    assert len(found.rows) == 4
    assert gpu
    lines = [line.split() for line in output.out.splitlines()]
    assert lines[1] == ["fp16", "int8", "int8-block", "auto", "auto-block"]
    assert [line[-5:] for line in lines if "512" in line] == [
        ["1000", "2000", "2000", "1000", "1000"],
        ["1000", "500", "500", "500", "500"],
    ]


@pytest.mark.parametrize("target", ["file", "-"])
def test_or_elsewhere(gpu, capsys, tmp_path, target):
    file = tmp_path / "mine.json"
    assert main(["bench", "--auto-table", "--json", target if target == "-" else str(file)]) == 0
    if target == "-":
        file.write_text(capsys.readouterr().out)
    assert load(file).gpu == DEVICE.name
    assert not own_file(DEVICE.name).exists()


def test_a_gpu_without_room_is_an_error(gpu, capsys, monkeypatch):
    monkeypatch.setattr(command, "timings", lambda *args: iter([]))
    assert main(["bench", "--auto-table"]) == 2
    assert "--auto-table must be run on a GPU with free memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quick"], "--quick must be left out with --auto-table"),
        (["--schemes", "int8"], "--schemes must be left out with --auto-table"),
        (["--html", "x.html"], "--html must be left out with --auto-table"),
        (["--compare", "x.json"], "--compare must be left out with --auto-table"),
        (["--from", "x.json"], "--from must be left out with --auto-table"),
        (["--json", "gone/x.json"], "--json must be a file in an existing folder"),
        ([], "no usable GPU"),
    ],
)
def test_errors_are_one_line(capsys, monkeypatch, tmp_path, options, message):
    def current_device():
        raise NoGPUError("no usable GPU: hidden by the test")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "current_device", current_device)
    assert main(["bench", "--auto-table", *options]) == 2
    assert message in capsys.readouterr().err
