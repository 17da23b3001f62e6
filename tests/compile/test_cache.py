"""The disk cache: round trips, damage, folders that cannot be written, several processes."""

import multiprocessing
from functools import partial
from pathlib import Path

import pytest

from cuattn.compile import disk_cache as cache

IMAGE = b"\x7fELF" + bytes(range(256)) * 3


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_unsaved", {})
    return tmp_path / "cache"


def test_directory_follows_the_environment(monkeypatch, folder):
    assert cache.directory() == folder
    monkeypatch.delenv("CUATTN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.directory() == Path("/somewhere/cuattn")
    monkeypatch.setenv("HOME", "/home/someone")
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache.directory() == Path("/home/someone/.cache/cuattn")


def test_key_tells_parts_apart():
    keys = {cache.key(parts) for parts in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"], [])}
    assert len(keys) == 5
    assert cache.key(["ab", "c"]) == cache.key(["ab", "c"])


def test_written_image_is_read_back(folder):
    file = cache.path(cache.key(["x"]), "90a")
    assert cache.read(file) is None
    cache.write(file, IMAGE)
    assert cache.read(file) == IMAGE
    assert file.is_relative_to(folder / "sm_90a")
    assert cache.usage() == (1, file.stat().st_size)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:10], id="cut in the header"),
        pytest.param(lambda data: data[:60], id="cut in the image"),
        pytest.param(lambda data: data[:-1], id="last byte lost"),
        pytest.param(lambda data: data + b"\0", id="longer"),
        pytest.param(lambda data: data[:-5] + b"\1" + data[-4:], id="one byte changed"),
        pytest.param(lambda data: b"?" * len(data), id="garbage"),
        pytest.param(lambda data: IMAGE, id="image without header"),
        pytest.param(lambda data: data.replace(b"cubin 1", b"cubin 0"), id="older format"),
    ],
)
def test_damaged_file_is_built_again(damage):
    file = cache.path(cache.key(["x"]), "80")
    cache.write(file, IMAGE)
    file.write_bytes(damage(file.read_bytes()))
    assert cache.read(file) is None
    assert cache.fetch(file, lambda: IMAGE) == IMAGE
    assert cache.read(file) == IMAGE


def test_fetch_builds_once():
    file = cache.path(cache.key(["x"]), "80")
    built = []
    for _ in range(3):
        assert cache.fetch(file, lambda: built.append(0) or IMAGE) == IMAGE
    assert len(built) == 1


def test_folder_that_cannot_be_made_costs_only_the_saving(folder):
    folder.write_text("a file is in the way")
    file = cache.path(cache.key(["x"]), "80")
    with pytest.raises(OSError, match="cache"):
        cache.write(file, IMAGE)
    built = []
    for _ in range(3):
        assert cache.fetch(file, lambda: built.append(0) or IMAGE) == IMAGE
    assert len(built) == 1
    assert cache.usage() == (0, 0)


def test_failed_write_leaves_nothing_behind(folder, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        cache.write(cache.path("x", "80"), IMAGE)
    assert list((folder / "sm_80").iterdir()) == []


def test_build_error_saves_nothing(folder):
    def fail():
        raise RuntimeError("does not compile")

    with pytest.raises(RuntimeError, match="does not compile"):
        cache.fetch(cache.path("x", "80"), fail)
    assert not folder.exists()


def fill(count):
    """Fetch the same files as every other process, many times over."""
    wrong = 0
    for i in range(count):
        image = i.to_bytes(4, "little") * 20_000
        wrong += cache.fetch(cache.path(cache.key([str(i)]), "80"), partial(bytes, image)) != image
    return wrong


def test_processes_fill_one_folder_at_once(folder):
    files = 30
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(fill, [files] * 6, chunksize=1) == [0] * 6
    names = [f.name for f in (folder / "sm_80").iterdir()]
    assert len(names) == files
    assert not [name for name in names if not name.endswith(".cubin")]
    assert fill(files) == 0
