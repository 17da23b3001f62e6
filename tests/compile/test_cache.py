"""The disk cache: round trips, damage, folders that cannot be written, several processes."""

import multiprocessing
import os
import stat
import time
from functools import partial
from pathlib import Path

import pytest

from cuattn.compile import cache_folder
from cuattn.compile import disk_cache as cache
from cuattn.errors import ArgumentError

posix = pytest.mark.skipif(os.name != "posix", reason="files have no owner or mode here")

IMAGE = b"\x7fELF" + bytes(range(256)) * 3


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CUATTN_CACHE_MAX_MIB", raising=False)
    monkeypatch.setattr(cache, "_unsaved", {})
    monkeypatch.setattr(cache, "_warned_of", set())
    return tmp_path / "cache"


def test_directory_follows_the_environment(monkeypatch, folder):
    assert cache_folder.directory() == folder
    monkeypatch.delenv("CUATTN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder.directory() == Path("/somewhere/cuattn")
    monkeypatch.setenv("HOME", "/home/someone")
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder.directory() == Path("/home/someone/.cache/cuattn")


def test_chosen_directory_may_begin_at_home(monkeypatch):
    """A variable set in a file of settings, such as a Dockerfile, has seen no shell."""
    monkeypatch.setenv("CUATTN_CACHE_DIR", "~/kernels")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder.directory() == Path("/home/someone/kernels")


def test_user_without_a_home_gets_no_folder_in_the_working_directory(monkeypatch, tmp_path):
    """A container may run as a number that no user has, and without HOME."""
    for name in ("CUATTN_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache_folder.os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(cache_folder.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = cache_folder.directory()
    assert folder.parent == tmp_path
    assert folder.name.startswith("cuattn-")


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
    assert cache_folder.usage() == (1, file.stat().st_size)


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
        pytest.param(lambda data: data.replace(b"cubin 2", b"cubin 1"), id="older format"),
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
    assert cache_folder.usage() == (0, 0)


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


def written(name, image=IMAGE, used=None):
    """Write a file whose kernel was last used so many seconds ago."""
    file = cache.path(cache.key([name]), "80")
    cache.write(file, image)
    if used is not None:
        os.utime(file, (time.time() - used,) * 2)
    return file


def test_file_in_the_place_of_another_is_not_read():
    one, other = written("one"), cache.path(cache.key(["other"]), "80")
    os.replace(one, other)
    assert cache.read(other) is None


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o644)])
def test_others_may_read_as_far_as_the_umask_lets_them(umask, mode):
    before = os.umask(umask)
    try:
        file = written("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert cache.read(file) == IMAGE


@posix
@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_file_that_others_may_write_is_not_loaded_and_said_once(mode):
    file, second = written("x"), written("y")
    for path in (file, second):
        path.chmod(mode)
    with pytest.warns(RuntimeWarning, match=r"not used, as others may write it.*CUATTN_CACHE_DIR"):
        assert cache.read(file) is None
    assert cache.read(second) is None  # a second warning would be an error
    assert cache.fetch(file, lambda: IMAGE) == IMAGE
    assert cache.read(file) == IMAGE


@posix
@pytest.mark.parametrize(("owner", "trusted"), [(0, True), (4711, True), (4712, False)])
def test_files_of_this_user_and_root_are_loaded(monkeypatch, owner, trusted):
    file = written("x")
    fstat = os.fstat

    def owned(handle):
        status = list(fstat(handle))
        status[stat.ST_UID] = owner
        return os.stat_result(status)

    monkeypatch.setattr(cache.os, "fstat", owned)
    monkeypatch.setattr(cache.os, "geteuid", lambda: 4711)
    if trusted:
        assert cache.read(file) == IMAGE
    else:
        with pytest.warns(RuntimeWarning, match="belongs to user 4712"):
            assert cache.read(file) is None


def test_where_files_have_no_owner_they_are_loaded(monkeypatch):
    monkeypatch.delattr(os, "geteuid", raising=False)
    monkeypatch.delattr(os, "O_NONBLOCK", raising=False)
    file = written("x")
    assert cache.read(file) == IMAGE


@posix
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(os.mkfifo, id="named pipe"),
        pytest.param(lambda file: file.symlink_to("nowhere"), id="dangling link"),
        pytest.param(lambda file: file.mkdir(), id="folder"),
    ],
)
def test_what_is_no_file_is_none(place):
    file = cache.path(cache.key(["x"]), "80")
    file.parent.mkdir(parents=True)
    place(file)
    assert cache.read(file) is None
    assert cache_folder.usage() == (0, 0)
    assert cache.fetch(file, lambda: IMAGE) == IMAGE
    is_folder = file.is_dir()
    assert cache.read(file) == (None if is_folder else IMAGE)
    cache_folder.clear()
    assert os.path.lexists(file) == is_folder


def test_leftovers_of_killed_processes_are_removed(folder):
    written("x")
    old, new = (folder / "sm_80" / f".new-{name}" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half a kernel")
    os.utime(old, (time.time() - 7200,) * 2)
    assert cache_folder.prune() == (1, 13)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it
    assert cache_folder.usage()[0] == 1


def test_least_recently_used_are_removed_beyond_the_size(monkeypatch):
    files = [written(str(n), bytes(400_000), used=3 * 3600 - n) for n in range(5)]
    cache.read(files[0])  # used again
    monkeypatch.setenv("CUATTN_CACHE_MAX_MIB", "1")
    removed = cache_folder.prune()
    assert removed.files == 3
    assert [file.exists() for file in files] == [True, False, False, False, True]
    assert cache_folder.usage()[1] < 2**20
    size = cache_folder.usage()[1]
    assert cache_folder.prune(size) == (0, 0)
    assert cache_folder.prune(size - 1).files == 1
    assert cache_folder.prune(0).files == 1


def test_folder_is_pruned_when_kernels_are_written(monkeypatch):
    monkeypatch.setenv("CUATTN_CACHE_MAX_MIB", "1")
    monkeypatch.setattr(cache, "_PRUNE_EVERY", 2)
    for n in range(8):
        written(str(n), bytes(400_000), used=3600 - n)
    assert cache_folder.usage()[0] <= 3


def test_the_folder_is_looked_at_with_the_first_kernel_and_now_and_then(monkeypatch):
    looks = []
    monkeypatch.setattr(cache, "_PRUNE_EVERY", 4)
    monkeypatch.setattr(cache, "_written", 0)
    monkeypatch.setattr(cache, "prune", lambda: looks.append(n))
    for n in range(10):
        written(str(n))
    assert looks == [0, 4, 8]


def test_a_file_that_cannot_be_made_is_what_is_reported(monkeypatch):
    def refused(*_):
        raise PermissionError("not here")

    monkeypatch.setattr(cache, "_open_for_all", refused)
    with pytest.raises(PermissionError, match="not here"):
        written("x")


def test_use_is_marked_now_and_then(monkeypatch):
    old, recent = written("x", used=7200), written("y", used=600)
    before = recent.stat().st_mtime
    assert cache.read(old) == cache.read(recent) == IMAGE
    assert time.time() - old.stat().st_mtime < 60
    assert recent.stat().st_mtime == before

    def refuse(*_):
        raise PermissionError("read-only")

    os.utime(old, (0, 0))
    monkeypatch.setattr(cache.os, "utime", refuse)
    assert cache.read(old) == IMAGE


@pytest.mark.parametrize("text", ["-1", "1.5", "much"])
def test_size_that_is_no_number_is_refused(monkeypatch, text):
    monkeypatch.setenv("CUATTN_CACHE_MAX_MIB", text)
    with pytest.raises(ArgumentError) as error:
        cache_folder.prune()
    assert str(error.value) == f"CUATTN_CACHE_MAX_MIB must be a number of MiB, got {text!r}"


@pytest.mark.parametrize("gone", ["cache", "sm_90a"])
def test_folders_that_others_remove_meanwhile_are_empty(monkeypatch, gone):
    cache.write(cache.path(cache.key(["a"]), "90a"), IMAGE)
    scandir = os.scandir

    def removed(path="."):
        if Path(path).name == gone:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", removed)
    assert cache_folder.usage() == (0, 0)
    assert cache_folder.prune(0) == cache_folder.clear() == (0, 0)


def test_clear_leaves_nothing_of_ours_and_all_else(folder):
    written("x")
    (folder / "sm_80" / ".new-1").write_bytes(b"1")
    (folder / "sm_90a").mkdir()
    (folder / "notes").mkdir()
    assert cache_folder.clear().files == 2
    assert [path.name for path in folder.iterdir()] == ["notes"]


@posix
def test_clear_removes_whatever_has_the_name_of_a_kernel(folder):
    for n, arch in enumerate(("80", "86", "90a", "100a")):
        (folder / f"sm_{arch}").mkdir(parents=True)
        (folder / f"sm_{arch}" / "x.cubin").symlink_to("nowhere")
        if n % 2:
            (folder / f"sm_{arch}" / "notes").write_text("not ours")
    os.mkfifo(folder / "sm_80" / "y.cubin")
    assert cache_folder.prune(0) == (0, 0)
    assert cache_folder.clear().files == 5
    # Folders that are empty are gone, whichever come after one that is not.
    assert sorted(path.name for path in folder.iterdir()) == ["sm_100a", "sm_86"]


@pytest.mark.parametrize("step", ["lstat", "unlink"])
def test_files_that_other_processes_removed_are_passed_over(monkeypatch, step):
    """Whichever of them it is: the others are counted, and removed."""
    files = [written(str(n), bytes(100 + n)) for n in range(4)]
    sizes = {file: file.stat().st_size for file in files}
    plain = getattr(cache_folder.Path, step)
    for gone in files:

        def missing(self, gone=gone):
            if self == gone:
                raise FileNotFoundError(self)
            return plain(self) if step == "lstat" else None

        with monkeypatch.context() as patch:
            patch.setattr(cache_folder.Path, step, missing)
            rest = sum(size for file, size in sizes.items() if file != gone)
            assert cache_folder.clear() == (3, rest)
            if step == "lstat":
                assert not any(file.exists() for file in files if file != gone)
        files = [written(str(n), bytes(100 + n)) for n in range(4)]


def test_paths_with_spaces_and_letters_of_all_kinds(monkeypatch, tmp_path):
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path / "кэш ядер (größe) 核"))
    assert cache.read(written("x")) == IMAGE
    assert cache_folder.usage()[0] == 1
