"""KV caches saved to a file and loaded from it."""

import json
import sys

import numpy as np
import pytest
from kv_cases import FORMATS, assert_same_contents, filled, tokens

from cuattn import KVCache
from cuattn.errors import ArgumentError, CuattnError
from cuattn.kv.files import checksum

numpy = pytest.importorskip("safetensors.numpy")
safetensors = pytest.importorskip("safetensors")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.safetensors"


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
    assert_same_contents(loaded, cache)
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


@pytest.mark.parametrize("others", [{}, {"page_size": 16, "num_pages": 9}], ids=str)
def test_a_cache_that_is_full_is_loaded(rng, path, others):
    """Every token and every page is in use: what is checked has nothing to spare."""
    cache = KVCache(3, 2, 64, 40, device="cpu", **others)
    cache.append(*tokens(rng, 3, 2, 40, 64), counts=[40, 40, 40])
    cache.save(path)
    loaded = KVCache.load(path, "cpu")
    assert loaded.lengths.tolist() == [40, 40, 40]
    assert_same_contents(loaded, cache)


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
    "kind": (lambda a, m, g: m.update(kind="weights"), "version 4"),
    "version": (lambda a, m, g: m.update(version="1"), "version 4"),
    "no geometry": (lambda a, m, g: m.pop("geometry"), "sound cache"),
    "no JSON": (lambda a, m, g: m.update(geometry="batch"), "sound cache"),
    "deep JSON": (lambda a, m, g: m.update(geometry="[" * 200_000), "sound cache"),
    "unknown field": (lambda a, m, g: g.update(color="red"), "with the keys"),
    "type": (lambda a, m, g: g.update(batch="3"), "geometry.batch"),
    "size": (lambda a, m, g: g.update(capacity=-1), "capacity"),
    "format": (lambda a, m, g: g["kv_format"].update(k_bits=5), "k_bits"),
    "capacity": (
        lambda a, m, g: g.update(capacity=40),
        r"lengths must be from 0 to 40, got \[50, 0, 21\]",
    ),
    "other format": (lambda a, m, g: g["kv_format"].update(v_zero=False), r"units\.0"),
    "missing lengths": (lambda a, m, g: a.pop("lengths"), "lengths must be in a file"),
    "missing units": (lambda a, m, g: a.pop("units.2"), r"units\.2 must be in a file"),
    # As many units as for 0 tokens, so that nothing else is wrong.
    "negative": (set_length(1, -1), r"lengths must be from 0 to 80, got \[50, -1, 21\]"),
    "too long": (set_length(0, 81), "lengths must be from 0 to 80"),
    "length": (set_length(0, 49 + 16), r"units\.0 must be uint8"),
    "type of lengths": (replace("lengths", lambda x: x.astype(np.int64)), "lengths must be int32"),
    "type of units": (replace("units.0", lambda x: x.view(np.int8)), r"units\.0 must be uint8"),
    "shape of units": (replace("units.0", lambda x: x[:, :3]), r"units\.0 must be uint8"),
    "bare tokens": (replace("bare", lambda x: x + 1), "bare must be"),
    "shape of offsets": (replace("k_offset", lambda x: x[:2]), "k_offset must be float32"),
    "too few pages": (
        lambda a, m, g: g.update(page_size=16, num_pages=5),
        r"lengths must be within 5 pages, got \[50, 0, 21\]",
    ),
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


def test_what_is_wrong_with_a_file_is_said(rng, path):
    def said(expected):
        with pytest.raises(ArgumentError) as caught:
            KVCache.load(path, "cpu")
        assert str(caught.value) == str(ArgumentError("path", str(path), expected))

    said("an existing file")
    filled(rng).save(path)
    _, metadata = parts(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    inner = ArgumentError("sha256", metadata["sha256"], "that of the contents")
    said(f"the file of a sound cache ({inner})")
    filled(rng).save(path)
    change_file(path, lambda arrays, metadata, geometry: metadata.update(kind="weights"))
    said("a file of a cuattn KV cache, version 4 (this is ('weights', '4'))")
    filled(rng).save(path)
    change_file(path, lambda arrays, metadata, geometry: arrays.update(lengths=np.zeros(3)))
    inner = ArgumentError("lengths", np.zeros(3), "int32 [3]")
    said(f"the file of a sound cache ({inner})")


def test_a_change_of_nothing_is_no_damage(rng, path):
    cache = filled(rng)
    cache.save(path)
    change_file(path, lambda arrays, metadata, geometry: None)
    assert_same_contents(KVCache.load(path, "cpu"), cache)


def test_every_flipped_byte_is_noticed(rng, path):
    filled(rng).save(path)
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    assert begin < len(content) / 2
    for at in (*range(0, begin, 5), *range(begin, len(content), 197), len(content) - 1):
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


def test_missing_package_is_named(rng, path, monkeypatch):
    cache = filled(rng)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        CuattnError, match=r"^files of caches need the package safetensors; install it$"
    ):
        cache.save(path)
    with pytest.raises(
        CuattnError, match=r"^files of caches need the package safetensors; install it$"
    ):
        KVCache.load(path, "cpu")
