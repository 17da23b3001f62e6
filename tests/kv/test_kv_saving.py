"""Where KV caches are saved: files that are there whole or not at all, links, pipes."""

import os
import stat
from pathlib import Path
from threading import Thread

import pytest
from kv_cases import assert_same_contents, filled

from cuattn import KVCache
from cuattn.errors import ArgumentError

pytest.importorskip("safetensors")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.safetensors"


@pytest.mark.parametrize("wrong", [None, 5, "", b"cache"])
def test_what_is_no_path_is_refused(rng, wrong):
    for call in (filled(rng).save, lambda path: KVCache.load(path, "cpu")):
        with pytest.raises(ArgumentError) as error:
            call(wrong)
        words = f"path must be that of a file, a str or pathlib.Path, got {wrong!r}"
        assert str(error.value) == words


@pytest.mark.parametrize(
    "name",
    ["a\0b", "n" * 300, "missing/cache", ""],
    ids=["NUL", "too long", "no such folder", "a folder"],
)
def test_a_place_that_cannot_be_written_or_read_is_refused(rng, tmp_path, name):
    (tmp_path / "a folder").mkdir()
    path = tmp_path / (name or "a folder")
    with pytest.raises(ArgumentError, match=r"^path must be a file that can be written") as error:
        filled(rng).save(path)
    assert str(error.value).endswith(str(ArgumentError("", str(path), "")).partition("got")[2])
    with pytest.raises(ArgumentError, match=r"^path must be"):
        KVCache.load(path, "cpu")
    assert [x.name for x in tmp_path.iterdir()] == ["a folder"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("step", ["replace", "open", "chmod"])
def test_a_file_is_replaced_whole_or_not_at_all(rng, path, monkeypatch, error, step):
    cache = filled(rng)
    cache.save(path)
    content = path.read_bytes()
    cache.truncate([1, 0, 0])

    def interrupted(self, *args):
        if step == "open":
            with open(self, "w") as stream:
                stream.write("half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, interrupted)
        expected = ArgumentError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected):
            cache.save(path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    cache.save(path)
    assert KVCache.load(path, "cpu").lengths.tolist() == [1, 0, 0]


def test_who_reads_the_old_file_goes_on_reading_it(rng, path, tmp_path):
    cache = filled(rng)
    cache.save(path)
    content = path.read_bytes()
    os.link(path, tmp_path / "old")
    with path.open("rb") as old:
        cache.truncate([1, 0, 0])
        cache.save(path)
        assert old.read() == content
    assert (tmp_path / "old").read_bytes() == content != path.read_bytes()


@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed(rng, tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "cache", tmp_path / "link"
    if there:
        target.write_text("something else")
    link.symlink_to(target)
    filled(rng).save(link)
    assert link.is_symlink()
    assert KVCache.load(link, "cpu").lengths.tolist() == [50, 0, 21]
    assert list(target.parent.iterdir()) == [target]


def test_permissions_are_those_of_the_file_or_the_user(rng, path):
    umask = os.umask(0o027)
    try:
        filled(rng).save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        filled(rng).save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(umask)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_through(rng, path, tmp_path):
    cache, pipe, found = filled(rng), tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    cache.save(pipe)
    reader.join(10)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    path.write_bytes(found[0])
    assert_same_contents(KVCache.load(path, "cpu"), cache)
    with pytest.raises(ArgumentError, match="an existing file"):
        KVCache.load(pipe, "cpu")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no names of descriptors here")
def test_a_descriptor_is_written_through(rng, path):
    cache = filled(rng)
    with path.open("wb") as stream:
        cache.save(f"/proc/self/fd/{stream.fileno()}")
        assert os.fstat(stream.fileno()).st_size == path.stat().st_size > 0
    assert_same_contents(KVCache.load(path, "cpu"), cache)


def test_a_link_that_leads_nowhere_else_stays(rng, path):
    path.symlink_to(path)
    with pytest.raises(ArgumentError, match=r"^path must be a file that can be written"):
        filled(rng).save(path)
    assert path.is_symlink()
