"""KV caches saved to a file and loaded from it."""

import json
import sys

import numpy as np
import pytest
from kv_cases import FORMATS, options, tokens

from cuattn import KVCache
from cuattn.errors import ArgumentError, CuattnError

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
    np.testing.assert_array_equal(loaded.lengths, cache.lengths)
    for x, y in zip(loaded.codes(), cache.codes(), strict=True):
        for part in ("codes", "scale", "zero", "vector"):
            np.testing.assert_array_equal(getattr(x, part), getattr(y, part))
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


def damaged(arrays, metadata, change):
    geometry = json.loads(metadata["geometry"])
    change(arrays, metadata, geometry)
    if metadata.get("geometry", "")[:1] == "{":
        metadata["geometry"] = json.dumps(geometry)


def replace(name, edit):
    def change(arrays, metadata, geometry):
        arrays[name] = np.ascontiguousarray(edit(arrays[name]))

    return change


CHANGES = {
    "kind": lambda a, m, g: m.update(kind="weights"),
    "version": lambda a, m, g: m.update(version="2"),
    "no geometry": lambda a, m, g: m.pop("geometry"),
    "no JSON": lambda a, m, g: m.update(geometry="batch"),
    "unknown field": lambda a, m, g: g.update(color="red"),
    "type": lambda a, m, g: g.update(batch="3"),
    "size": lambda a, m, g: g.update(capacity=-1),
    "format": lambda a, m, g: g["kv_format"].update(k_bits=5),
    "capacity": lambda a, m, g: g.update(capacity=40),
    "other format": lambda a, m, g: g["kv_format"].update(v_zero=False),
    "missing lengths": lambda a, m, g: a.pop("lengths"),
    "missing units": lambda a, m, g: a.pop("units.2"),
    "negative": replace("lengths", lambda x: x - 30),
    "length": replace("lengths", lambda x: x + 16),
    "type of lengths": replace("lengths", lambda x: x.astype(np.int64)),
    "type of units": replace("units.0", lambda x: x.view(np.int8)),
    "shape of units": replace("units.0", lambda x: x[:, :3]),
    "shape of offsets": replace("k_offset", lambda x: x[:2]),
    "too few pages": lambda a, m, g: g.update(page_size=16, num_pages=5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_and_damaged_files_are_refused(rng, path, name):
    filled(rng).save(path)
    arrays, metadata = parts(path)
    damaged(arrays, metadata, CHANGES[name])
    numpy.save_file(arrays, path, metadata)
    with pytest.raises(ArgumentError, match=r"^path must be") as caught:
        KVCache.load(path, "cpu")
    assert caught.value.argument == "path"


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


def test_a_file_is_replaced_whole_or_not_at_all(rng, path, monkeypatch):
    cache = filled(rng)
    cache.save(path)
    content = path.read_bytes()

    def interrupted(arrays, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(numpy, "save_file", interrupted)
    with pytest.raises(ArgumentError, match="no space left"):
        cache.save(path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused(rng, tmp_path):
    with pytest.raises(ArgumentError, match="a file that can be written"):
        filled(rng).save(tmp_path / "missing" / "cache.safetensors")


def test_missing_package_is_named(rng, path, monkeypatch):
    cache = filled(rng)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CuattnError, match="need the package safetensors"):
        cache.save(path)
    with pytest.raises(CuattnError, match="need the package safetensors"):
        KVCache.load(path, "cpu")
