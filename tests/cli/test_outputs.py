"""Files that commands write: checked before any work, to standard output, through what is there."""

import json
import os
import shlex
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from cuattn.choice import measure
from cuattn.choice.scheme_plan import SchemePlan
from cuattn.cli import choose, inputs, main
from cuattn.cli.report import command as report
from cuattn.plan import kernels as plan

SMALL = ["--heads", "1", "--seqlen-q", "16", "--head-dim", "32", "--schemes", "int8,fp16"]
REPORT = ["report", *SMALL, "--no-sources"]
OPTIONS = [
    (REPORT, "--json", "x.json"),
    ([*REPORT, "--close-ups", "0"], "--html", "x.html"),
    (REPORT, "--plot", "x.png"),
    (["choose", *SMALL], "--save", "x.json"),
]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch):
    for module in (measure, plan, inputs):
        monkeypatch.setattr(module, "gpu_status", lambda: ("no-gpu", "hidden by the test"))


@pytest.fixture
def no_work(monkeypatch):
    """Fail a command that begins to measure."""

    def work(*given, **options):
        raise AssertionError("measured before it looked at its outputs")

    monkeypatch.setattr(report, "measure_error", work)
    monkeypatch.setattr(choose, "plan_schemes", work)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("command", "option", "name"), OPTIONS)
def test_what_cannot_be_written_is_refused_before_any_work(capsys, tmp_path, command, option, name):
    (tmp_path / name).mkdir()
    long = tmp_path / f"{'n' * 300}{name[1:]}"
    for path, words in (
        (tmp_path / name, "must be a file, not a folder"),
        (tmp_path / "gone" / name, "must be a file in an existing folder"),
        (long, "File name too long"),
        (tmp_path / f"a\0b{name[1:]}", "null"),
    ):
        before = sorted(tmp_path.rglob("*"))
        assert main([*command, option, str(path)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith(f"cuattn: error: {option} must be ")
        assert words in output.err
        assert output.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("no_work")
def test_a_folder_that_is_read_only_is_refused_first(capsys, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda *given: bool(asked.append(given)))  # root may all
    assert main([*REPORT, "--json", str(tmp_path / "x.json")]) == 2
    assert "a file that this user may write" in capsys.readouterr().err
    assert asked == [(tmp_path, os.W_OK)]


@pytest.mark.usefixtures("no_work")
def test_two_outputs_are_two_files(capsys, tmp_path):
    for json_file, html_file in (("-", "-"), (tmp_path / "x", tmp_path / "." / "x")):
        assert main([*REPORT, "--json", str(json_file), "--html", str(html_file)]) == 2
        assert "--html must be another file than that of --json" in capsys.readouterr().err


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("command", "reads", "option"),
    [
        (["report"], "--input", "--json"),
        (["choose"], "--input", "--save"),
        (["bench"], "--from", "--html"),
        (["bench"], "--compare", "--json"),
    ],
)
def test_what_is_read_is_not_replaced(capsys, tmp_path, command, reads, option):
    file, link = tmp_path / "x.npz", tmp_path / "link.npz"
    file.write_text("of the user")
    link.symlink_to(file)
    for path in (file, link):
        assert main([*command, reads, str(file), option, str(path)]) == 2
        assert f"{option} must be another file than that of {reads}" in capsys.readouterr().err
    assert file.read_text() == "of the user"


@pytest.mark.parametrize(("command", "option"), [(REPORT, "--json"), (OPTIONS[3][0], "--save")])
def test_a_dash_is_standard_output(capsys, tmp_path, monkeypatch, command, option):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    words = capsys.readouterr().out
    assert main([*command, option, "-"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)
    assert output.err == words
    assert list(tmp_path.iterdir()) == []


def test_a_page_on_standard_output(capsys):
    assert main([*OPTIONS[1][0], "--html", "-"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("<!DOCTYPE html>")
    assert output.out.endswith("</html>\n")
    assert "emulated in NumPy" in output.err


@pytest.mark.parametrize(("command", "option", "name"), OPTIONS)
def test_links_are_followed_and_stay(tmp_path, command, option, name):
    there = tmp_path / "there"
    there.mkdir()
    target, link = there / f"target{name[1:]}", tmp_path / name
    link.symlink_to(target)
    for mode in (None, 0o640):  # a link to nothing first
        if mode is not None:
            target.write_text("old")
            target.chmod(mode)
        assert main([*command, option, str(link)]) == 0
        assert link.is_symlink()
        assert target.stat().st_size > 100
        assert list(there.iterdir()) == [target]
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize(("command", "option", "name"), OPTIONS)
def test_a_fifo_is_written_through(tmp_path, command, option, name):
    fifo = tmp_path / name
    os.mkfifo(fifo)
    got = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    assert main([*command, option, str(fifo)]) == 0
    reader.join(10)
    assert len(got[0]) > 100
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert list(tmp_path.iterdir()) == [fifo]


def test_devices_stay_and_a_full_one_is_named(capsys):
    assert main([*REPORT, "--json", "/dev/null"]) == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert main([*REPORT, "--json", "/dev/full"]) == 2
    assert capsys.readouterr().err.endswith("No space left on device: '/dev/full'\n")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="a folder of Linux")
def test_files_of_shared_memory_are_files():
    """Not all that is below /dev is a device."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder) / "x.json"
        for _ in range(2):
            assert main([*OPTIONS[3][0], "--save", str(file)]) == 0
        assert len(SchemePlan.load(file).schemes) == 1


def test_a_file_that_fails_half_way_is_as_it_was(monkeypatch, tmp_path, capsys):
    file = tmp_path / "plan.json"
    file.write_text("old")

    def full(self, *given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    assert main([*OPTIONS[3][0], "--save", str(file)]) == 2
    assert f"No space left on device: '{file}'" in capsys.readouterr().err
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_new_files_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        assert main([*OPTIONS[3][0], "--save", str(tmp_path / "plan.json")]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o640
    assert len(SchemePlan.load(tmp_path / "plan.json").schemes) == 1


@pytest.mark.skipif(os.name == "nt", reason="a way of POSIX shells")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_get_nothing(tmp_path, closed):
    command = [sys.executable, "-m", "cuattn", *OPTIONS[3][0], "--save", str(tmp_path / "x.json")]
    done = subprocess.run(f"{shlex.join(command)} {closed}", shell=True, capture_output=True)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert len(SchemePlan.load(tmp_path / "x.json").schemes) == 1
