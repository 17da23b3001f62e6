"""Latent caches in files: what comes back, and which files are refused."""

import json

import numpy as np
import pytest
from latent_cases import SCALE, cache_of, queries, tokens

from cuattn import KVCache, LatentKVCache
from cuattn.errors import ArgumentError
from cuattn.kv.files import checksum

numpy = pytest.importorskip("safetensors.numpy")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.safetensors"


def filled(rng, **others):
    cache = cache_of(**others)
    cache.append(*tokens(rng, 150), counts=[150, 0, 65])
    return cache


def assert_same_tokens(cache, expected):
    np.testing.assert_array_equal(cache.lengths, expected.lengths)
    for name in ("codes", "scale", "rope"):
        x, y = (getattr(one.codes(), name) for one in (cache, expected))
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("rope_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("others", [{}, {"page_size": 64, "num_pages": 9}, {"page_size": 256}])
def test_what_is_loaded_is_what_was_saved(rng, path, rope_dtype, others):
    cache = filled(rng, rope_dtype=rope_dtype, **others)
    cache.save(path)
    loaded = LatentKVCache.load(path, "cpu")
    assert loaded.nbytes == cache.nbytes
    latent, rope = tokens(rng, 70)
    for one in (cache, loaded):
        one.append(latent, rope, counts=[3, 70, 1])
    assert_same_tokens(loaded, cache)
    q = queries(rng, 4, 2)
    results = [one.attend(q, scale=SCALE) for one in (cache, loaded)]
    np.testing.assert_array_equal(*results)


def test_pages_that_are_shared_or_gone_come_back(rng, path):
    cache = filled(rng, page_size=64, num_pages=5)
    cache.fork(0, 1)
    cache.evict(2, [0])
    cache.save(path)
    loaded = LatentKVCache.load(path, "cpu")
    assert_same_tokens(loaded, cache)
    assert loaded.positions.tolist() == [150, 150, 65]
    table = loaded.page_table
    np.testing.assert_array_equal(table[0], table[1])
    latent, rope = tokens(rng, 1)
    for one in (cache, loaded):
        one.append(latent, rope, counts=[0, 1, 1])
    assert_same_tokens(loaded, cache)


def test_saved_on_the_gpu_and_loaded_in_host_memory(gpu, rng, path):
    cache = filled(rng, device=None, page_size=64)
    cache.save(path)
    on_host = LatentKVCache.load(path, "cpu")
    assert_same_tokens(on_host, cache)
    on_host.save(path)
    assert_same_tokens(LatentKVCache.load(path), cache)


@pytest.mark.parametrize("length", [1, 16, 63, 64, 65])
def test_nothing_beyond_the_lengths_is_written(rng, path, length):
    # It may be of another user's sequence.
    cache, fresh = filled(rng), cache_of()
    latent, rope = tokens(rng, 150)
    for one in (cache, fresh):
        one.truncate([0, 0, 0])
        one.append(latent, rope, counts=[length, 0, 0])
    contents = []
    for one in (cache, fresh):
        one.save(path)
        contents.append(numpy.load_file(path)["units.0"])
    np.testing.assert_array_equal(*contents)
    assert cache._memory.units[0, 0].any(axis=1).sum() > -(-length // 64) * 4
    assert_same_tokens(LatentKVCache.load(path, "cpu"), cache)


def change_file(path, change):
    """Change what a file says and holds, so that only the checks of its meaning can notice."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.offset_keys()}
        metadata = file.metadata()
    geometry = json.loads(metadata["geometry"])
    change(arrays, geometry)
    metadata["geometry"] = json.dumps(geometry)
    metadata["sha256"] = checksum(metadata["geometry"], arrays)
    numpy.save_file(arrays, path, metadata)


CHANGES = {
    "nothing": (lambda a, g: None, None),
    "type of rope": (lambda a, g: g["kv_format"].update(rope_dtype="float32"), "rope_dtype"),
    "channels": (lambda a, g: g["kv_format"].update(head_dim=512), "head_dim must be 576"),
    "bits": (lambda a, g: g["kv_format"].update(k_bits=4), "k_bits must be 8 in a latent cache"),
    "nested": (lambda a, g: g["kv_format"].update(nested=True), "nested must be False"),
    "heads": (lambda a, g: g.update(num_kv_heads=2), "num_kv_heads must be 1"),
    "pages": (lambda a, g: g.update(page_size=16), r"page_size must be one of \(64, 128, 256\)"),
    "window": (lambda a, g: g.update(page_size=64, window=100), "window must be 0"),
    "no format": (lambda a, g: g.pop("kv_format"), "with the keys"),
    "lengths": (lambda a, g: g.update(capacity=100), "lengths must be from 0 to 100"),
    "units": (lambda a, g: a.update({"units.2": a["units.2"][:, :5].copy()}), r"units\.2 must be"),
    "offsets": (
        lambda a, g: a.update(
            k_offset=np.zeros((3, 1, 576), np.float32), bare=np.zeros(3, np.int32)
        ),
        "without a k_offset",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_files_are_refused(rng, path, name):
    change, message = CHANGES[name]
    cache = filled(rng)
    cache.save(path)
    change_file(path, change)
    if message is None:
        assert_same_tokens(LatentKVCache.load(path, "cpu"), cache)
        return
    with pytest.raises(ArgumentError, match=r"^path must be") as caught:
        LatentKVCache.load(path, "cpu")
    assert caught.match(message)


def test_files_of_other_caches_are_told_apart(rng, path):
    filled(rng).save(path)
    with pytest.raises(ArgumentError, match=r"a cuattn KV cache, version 4 \(this is"):
        KVCache.load(path, "cpu")
    KVCache(1, 1, 64, 16, device="cpu").save(path)
    with pytest.raises(ArgumentError, match=r"a cuattn latent KV cache, version 1 \(this is"):
        LatentKVCache.load(path, "cpu")


def test_flipped_bytes_are_noticed(rng, path):
    filled(rng).save(path)
    content = path.read_bytes()
    for at in (9, 300, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ArgumentError, match=r"^path must be"):
            LatentKVCache.load(path, "cpu")
