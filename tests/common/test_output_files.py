"""Files written whole or not at all, in this process and with faults: what commands rely on."""

import io
import os
import stat
import threading
from pathlib import Path

import pytest

from cuattn.common.output_files import check_target, open_whole, write_text
from cuattn.errors import ArgumentError


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    return place


def refused(target):
    with pytest.raises(ArgumentError) as error:
        check_target("--json", target)
    assert error.value.argument == "--json"
    assert repr(str(target))[:60] in str(error.value)  # long ones are cut
    return str(error.value)


def test_a_target_that_can_be_written_passes_and_nothing_is_left(folder):
    (folder / "there").write_text("old")
    (folder / "link").symlink_to(folder / "new")
    for target in (folder / "there", folder / "new", folder / "link", io.StringIO()):
        check_target("--json", target)
    assert sorted(path.name for path in folder.iterdir()) == ["link", "there"]
    assert (folder / "there").read_text() == "old"


def test_what_cannot_be_written_is_named(folder):
    (folder / "link").symlink_to(folder / "no" / "where")
    assert "must be a file, not a folder" in refused(folder)
    assert "must be a file in an existing folder" in refused(folder / "no" / "where")
    assert "must be a file in an existing folder" in refused(folder / "link")
    assert "must be a path that can be written (File name too long)" in refused(
        folder / ("n" * 300)
    )
    assert "must be a path that can be written (embedded null byte)" in refused(folder / "a\0b")


@pytest.mark.parametrize("is_regular", [True, False])
def test_permission_is_asked_where_it_matters(folder, monkeypatch, is_regular):
    """To replace a file takes the folder's; to write through a pipe takes its own."""
    target = folder / "x"
    if not is_regular:
        os.mkfifo(target)
    asked = []
    monkeypatch.setattr(os, "access", lambda *given: bool(asked.append(given)))  # root may all
    assert "must be a file that this user may write" in refused(target)
    assert asked == [(folder if is_regular else target, os.W_OK)]


def test_text_is_utf_8_whatever_it_holds(folder):
    target = folder / "x"
    write_text(target, "é\n\udcff")
    assert target.read_bytes() == b"\xc3\xa9\n\\udcff"


def test_text_goes_to_streams_at_once():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "utf-8")
    write_text(stream, "words")
    assert raw.getvalue() == b"words"


def test_a_file_is_replaced_whole_and_keeps_its_mode(folder):
    target, link = folder / "x", folder / "link"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    with open_whole(link) as stream:
        stream.write(b"new")
        stream.flush()
        # Until it is whole the old one is there, and the new one beside it.
        assert target.read_text() == "old"
        (partial,) = set(folder.iterdir()) - {target, link}
        assert partial.name.startswith(".")
        assert partial.name.endswith(".partial")
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert set(folder.iterdir()) == {target, link}


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_a_fault_leaves_what_was_there(folder, fault):
    target = folder / "x"
    target.write_text("old")

    def write():
        with open_whole(target) as stream:
            stream.write(b"ne")
            raise fault

    with pytest.raises(fault):
        write()
    assert target.read_text() == "old"
    assert list(folder.iterdir()) == [target]


def test_errors_of_writing_name_the_file(folder):
    target = folder / "x"
    with pytest.raises(OSError, match="No space left") as error, open_whole(target):
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(target)
    missing = folder / "no" / "x"
    with pytest.raises(FileNotFoundError) as error, open_whole(missing):
        raise AssertionError("was opened")
    # That of the file which could not be made.
    assert Path(error.value.filename).parent == folder / "no"


def test_a_pipe_is_written_through(folder):
    fifo, got = folder / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    write_text(fifo, "words")
    reader.join(10)
    assert got == [b"words"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert list(folder.iterdir()) == [fifo]


def test_an_open_descriptor_is_written_through_and_goes_on(folder):
    """Behind /dev/fd/N is a regular file, which is not to be replaced nor cut."""
    target = folder / "x"
    with target.open("w+") as stream:
        stream.write("before,")
        stream.flush()
        check_target("--json", Path(f"/dev/fd/{stream.fileno()}"))
        write_text(Path(f"/dev/fd/{stream.fileno()}"), "text")
        assert os.fstat(stream.fileno()).st_ino == target.stat().st_ino
    assert target.read_text() == "before,text"
    assert list(folder.iterdir()) == [target]
