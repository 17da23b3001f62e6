"""Files of caches whose sequences share pages, or have lost some."""

import numpy as np
import pytest
from kv_cases import FORMATS, assert_same_contents, tokens
from kv_moves_cases import PAGED, filled, free_pages, shared_with

from cuattn import ArgumentError, KVCache


@pytest.mark.parametrize("kv_format", [FORMATS["8"], FORMATS["nested"]], ids=["8", "nested"])
def test_a_file_knows_what_is_shared_and_what_is_gone(device, rng, tmp_path, kv_format):
    pytest.importorskip("safetensors")
    others = {"first": 16, "recent": 16} if kv_format.nested else {}
    cache = filled(rng, device, kv_format, (70, 0, 0), page_size=16, num_pages=7, **others)
    cache.fork(0, 1)
    cache.evict(1, [2])
    cache.fork(0, 2)
    cache.save(tmp_path / "cache.safetensors")
    loaded = KVCache.load(tmp_path / "cache.safetensors", device)
    for one in (cache, loaded):
        one.append(*tokens(np.random.default_rng(5), 3, 2, 5, 64), counts=[0, 5, 5])
    assert_same_contents(loaded, cache)
    assert loaded.positions.tolist() == cache.positions.tolist() == [70, 75, 75]
    assert free_pages(loaded) == free_pages(cache) == 0
    for b in (1, 2):
        assert shared_with(loaded, b) == shared_with(cache, b)


def test_a_file_has_all_tokens_of_a_page_that_one_shares_in_part(rng, tmp_path):
    pytest.importorskip("safetensors")
    cache = filled(rng, counts=(40, 0, 0), **PAGED)
    cache.reorder([0, 0, 0])
    for lengths in ([40, 35, 20], [40, 35, 10]):
        cache.truncate(lengths)
        cache.save(tmp_path / "cache.safetensors")
        assert_same_contents(KVCache.load(tmp_path / "cache.safetensors", "cpu"), cache)
    cache.reorder([2, 1, 0])
    cache.save(tmp_path / "cache.safetensors")
    assert_same_contents(KVCache.load(tmp_path / "cache.safetensors", "cpu"), cache)


def test_a_cache_emptied_after_an_eviction_is_saved(rng, tmp_path):
    pytest.importorskip("safetensors")
    cache = KVCache(1, 2, 64, 80, page_size=16, device="cpu")
    # Few tokens first: then the first 128 keys have no offset.
    for count in (1, 40):
        cache.append(*tokens(rng, 1, 2, count, 64))
    cache.evict(0, [0])
    cache.reset()
    cache.save(tmp_path / "cache.safetensors")
    assert KVCache.load(tmp_path / "cache.safetensors", "cpu").positions.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pages", lambda x: np.where(x == 1, 9, x)),
        ("pages", lambda x: np.where(x == 1, 0, x)),
        ("pages", lambda x: np.maximum(x, 0)),
        ("evicted", lambda x: x + 100),
        ("evicted", lambda x: x - 1),
    ],
)
def test_files_with_other_pages_are_refused(rng, tmp_path, name, change):
    library = pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    from cuattn.kv.files import checksum

    path = tmp_path / "cache.safetensors"
    cache = filled(rng, counts=(40, 0, 0), **PAGED)
    cache.fork(0, 1)
    cache.evict(1, [1])
    cache.save(path)
    with library.safe_open(path, "numpy") as file:
        metadata = file.metadata()
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    arrays[name] = change(arrays[name]).astype(arrays[name].dtype)
    metadata["sha256"] = checksum(metadata["geometry"], arrays)
    save_file(arrays, path, metadata)
    with pytest.raises(ArgumentError, match=rf"the file of a sound cache \({name} must be"):
        KVCache.load(path, "cpu")
