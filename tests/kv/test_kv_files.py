"""KV caches saved to a file and loaded from it."""

import json
import os
import stat
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from kv_cases import FORMATS, options, tokens

from cuattn import KVCache
from cuattn.errors import ArgumentError, CuattnError
from cuattn.kv.files import checksum

numpy = pytest.importorskip("safetensors.numpy")
safetensors = pytest.importorskip("safetensors")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.safetensors"


def filled(rng, kv_format=FORMATS["4-group64-zero"], **others):
    given = options(kv_format) | others
    cache = KVCache(3, 2, kv_format.head_dim, 80, device="cpu", **given)
    cache.append(*tokens(rng, 3, 2, 50, kv_format.head_dim), counts=[50, 0, 21])
    return cache


def assert_same(cache, expected):
    np.testing.assert_array_equal(cache.lengths, expected.lengths)
    for x, y in zip(cache.codes(), expected.codes(), strict=True):
        for part in ("codes", "scale", "zero", "vector"):
            np.testing.assert_array_equal(getattr(x, part), getattr(y, part))


def parts(path):
    with safetensors.safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.offset_keys()}, file.metadata()


@pytest.mark.parametrize("others", [{}, {"page_size": 16, "num_pages": 8}, {"smooth_k": False}])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_loaded_is_what_was_saved(rng, path, name, others):
    cache = filled(rng, FORMATS[name], **others)
    cache.save(path)
    loaded = KVCache.load(path, device="cpu")
    assert loaded.format == cache.format
    assert loaded.nbytes == cache.nbytes
    assert_same(loaded, cache)
    k, v = tokens(rng, 3, 2, 5, cache.format.head_dim)
    for one in (cache, loaded):
        one.append(k, v)
    for x, y in zip(loaded.gather(), cache.gather(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_caller_s_pages_become_others(rng, path):
    cache = KVCache(3, 2, 64, 80, page_size=16, num_pages=20, device="cpu")
    cache.set_page_table(rng.permutation(20)[:15].reshape(3, 5))
    cache.append(*tokens(rng, 3, 2, 50, 64))
    cache.save(path)
    loaded = KVCache.load(path, "cpu")
    assert not np.array_equal(loaded.page_table, cache.page_table)
    for x, y in zip(loaded.gather(), cache.gather(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_nothing_beyond_the_lengths_is_written(rng, path):
    # It may be of another user's sequence.
    cache = filled(rng)
    cache.truncate([17, 0, 3])
    cache.save(path)
    arrays, _ = parts(path)
    assert arrays["units.0"].shape == (2, 2, cache.format.unit_bytes)
    assert arrays["units.1"].shape == (2, 0, cache.format.unit_bytes)
    # Of the second unit one token of 16 remains.
    assert (arrays["units.0"][:, 1] != 0).sum() <= 2 * cache.format.unit_bytes / 16


def change_file(path, change):
    """Change what a file says and holds, so that only the checks of its meaning can notice."""
    arrays, metadata = parts(path)
    geometry = json.loads(metadata["geometry"])
    change(arrays, metadata, geometry)
    if metadata.get("geometry", "")[:1] == "{":
        metadata["geometry"] = json.dumps(geometry)
    metadata["sha256"] = checksum(metadata.get("geometry", ""), arrays)
    numpy.save_file(arrays, path, metadata)


def replace(name, edit):
    def change(arrays, metadata, geometry):
        arrays[name] = np.ascontiguousarray(edit(arrays[name]))

    return change


def set_length(sequence, length):
    def change(arrays, metadata, geometry):
        arrays["lengths"] = arrays["lengths"].copy()
        arrays["lengths"][sequence] = length

    return change


CHANGES = {
    "kind": (lambda a, m, g: m.update(kind="weights"), "version 2"),
    "version": (lambda a, m, g: m.update(version="1"), "version 2"),
    "no geometry": (lambda a, m, g: m.pop("geometry"), "sound cache"),
    "no JSON": (lambda a, m, g: m.update(geometry="batch"), "sound cache"),
    "deep JSON": (lambda a, m, g: m.update(geometry="[" * 200_000), "sound cache"),
    "unknown field": (lambda a, m, g: g.update(color="red"), "with the keys"),
    "type": (lambda a, m, g: g.update(batch="3"), "geometry.batch"),
    "size": (lambda a, m, g: g.update(capacity=-1), "capacity"),
    "format": (lambda a, m, g: g["kv_format"].update(k_bits=5), "k_bits"),
    "capacity": (lambda a, m, g: g.update(capacity=40), "lengths must be from 0 to 40"),
    "other format": (lambda a, m, g: g["kv_format"].update(v_zero=False), r"units\.0"),
    "missing lengths": (lambda a, m, g: a.pop("lengths"), "lengths must be in a file"),
    "missing units": (lambda a, m, g: a.pop("units.2"), r"units\.2 must be in a file"),
    # As many units as for 0 tokens, so that nothing else is wrong.
    "negative": (set_length(1, -1), "lengths must be from 0 to 80"),
    "too long": (set_length(0, 81), "lengths must be from 0 to 80"),
    "length": (set_length(0, 49 + 16), r"units\.0 must be uint8"),
    "type of lengths": (replace("lengths", lambda x: x.astype(np.int64)), "lengths must be int32"),
    "type of units": (replace("units.0", lambda x: x.view(np.int8)), r"units\.0 must be uint8"),
    "shape of units": (replace("units.0", lambda x: x[:, :3]), r"units\.0 must be uint8"),
    "shape of offsets": (replace("k_offset", lambda x: x[:2]), "k_offset must be float32"),
    "too few pages": (lambda a, m, g: g.update(page_size=16, num_pages=5), "within 5 pages"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_and_wrong_files_are_refused(rng, path, name):
    change, message = CHANGES[name]
    filled(rng).save(path)
    change_file(path, change)
    with pytest.raises(ArgumentError, match=r"^path must be") as caught:
        KVCache.load(path, "cpu")
    assert caught.value.argument == "path"
    assert caught.match(message)


def test_a_change_of_nothing_is_no_damage(rng, path):
    cache = filled(rng)
    cache.save(path)
    change_file(path, lambda arrays, metadata, geometry: None)
    assert_same(KVCache.load(path, "cpu"), cache)


def test_every_flipped_byte_is_noticed(rng, path):
    filled(rng).save(path)
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    assert begin < len(content) / 2
    for at in (*range(begin), *range(begin, len(content), 97), len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 1 if at < begin else 16
        path.write_bytes(changed)
        with pytest.raises(ArgumentError, match=r"^path must be"):
            KVCache.load(path, "cpu")


def header(content):
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, -1, 1]},
        {"shape": [-3]},
        {"shape": [2**62, 2**62]},
        {"data_offsets": [-4, 8]},
        {"data_offsets": [0, 2**40]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0, 2**70]},
        {"dtype": "I33"},
    ],
    ids=str,
)
def test_headers_that_lie_are_refused(rng, path, change):
    filled(rng).save(path)
    entries, payload = header(path.read_bytes())
    entries["lengths"] |= change
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    with pytest.raises(ArgumentError, match=r"^path must be the file of a sound cache"):
        KVCache.load(path, "cpu")


def test_what_is_no_file_of_the_format_is_refused(path):
    with pytest.raises(ArgumentError, match="an existing file"):
        KVCache.load(path, "cpu")
    for content in (b"", b"not at all", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match=r"^path must be"):
            KVCache.load(path, "cpu")


def test_cut_files_are_refused(rng, path):
    filled(rng).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ArgumentError, match=r"^path must be"):
        KVCache.load(path, "cpu")


@pytest.mark.parametrize("wrong", [None, 5, "", b"cache"])
def test_what_is_no_path_is_refused(rng, wrong):
    with pytest.raises(ArgumentError, match="path must be that of a file"):
        filled(rng).save(wrong)
    with pytest.raises(ArgumentError, match="path must be that of a file"):
        KVCache.load(wrong, "cpu")


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "missing/cache", ""], ids=ascii)
def test_a_place_that_cannot_be_written_or_read_is_refused(rng, tmp_path, name):
    (tmp_path / "a folder").mkdir()
    path = tmp_path / (name or "a folder")
    with pytest.raises(ArgumentError, match=r"^path must be a file that can be written"):
        filled(rng).save(path)
    with pytest.raises(ArgumentError, match=r"^path must be"):
        KVCache.load(path, "cpu")
    assert [x.name for x in tmp_path.iterdir()] == ["a folder"]


class Fault(Exception):
    """What nobody expects."""


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt(), Fault()])
@pytest.mark.parametrize("step", ["replace", "open", "chmod"])
def test_a_file_is_replaced_whole_or_not_at_all(rng, path, monkeypatch, error, step):
    cache = filled(rng)
    cache.save(path)
    content = path.read_bytes()
    cache.truncate([1, 0, 0])

    def interrupted(self, *args):
        if step == "open":
            self.touch(*args[1:])
            self.write_text("half")
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
    assert_same(KVCache.load(path, "cpu"), cache)
    with pytest.raises(ArgumentError, match="an existing file"):
        KVCache.load(pipe, "cpu")


def test_missing_package_is_named(rng, path, monkeypatch):
    cache = filled(rng)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CuattnError, match="need the package safetensors"):
        cache.save(path)
    with pytest.raises(CuattnError, match="need the package safetensors"):
        KVCache.load(path, "cpu")
