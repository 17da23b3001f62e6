"""Files that are damaged or lie: one line that names file and member, in bounded memory."""

import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.reference.files import Call, load, read_call

X = np.ones((1, 2, 3, 8), np.float32)


def npy(x):
    stream = io.BytesIO()
    np.save(stream, x)
    return stream.getvalue()


def npz(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def safetensors(path, entries, body=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def refused(path, *words, **options):
    """Fail unless a file is refused by one line; return the line."""
    with pytest.raises(ArgumentError) as error:
        read_call(path, **options)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 600
    for word in words:
        assert word in message
    return message


def entry(dtype="F32", shape=(1, 2, 3, 8), offsets=(0, 192)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# Settings and names.


@pytest.fixture(params=[".npz", ".safetensors"])
def write(request, tmp_path):
    """Return a function that writes arrays and returns the file."""

    def written(**arrays):
        path = tmp_path / f"call{request.param}"
        if request.param == ".npz":
            np.savez(path, **arrays)
        else:
            pytest.importorskip("safetensors.numpy").save_file(arrays, path)
        return path

    return written


@pytest.mark.parametrize(
    ("name", "value", "scale", "is_causal"),
    [
        ("scale", np.float32(0.25), 0.25, None),
        ("softmax_scale", np.float64([0.5]), 0.5, None),
        ("is_causal", np.array(True), None, True),
        ("causal", np.int64([0]), None, False),
    ],
)
def test_settings_of_a_file_are_read(write, name, value, scale, is_causal):
    path = write(q=X, k=X, v=X, **{name: np.asarray(value)})
    call = read_call(path)
    assert isinstance(call, Call)
    assert (call.scale, call.is_causal) == (scale, is_causal)
    if scale or is_causal:
        with pytest.raises(ArgumentError, match=r"path must be without (scale|is_causal)"):
            load(path)
    else:
        assert len(load(path)) == 3


@pytest.mark.parametrize("name", ["attn_mask", "mask", "key_padding_mask", "attn_bias", "softcap"])
def test_what_is_not_carried_out_is_refused_by_name(write, name):
    refused(write(q=X, k=X, v=X, **{name: X}), f"a file without '{name}'")


@pytest.mark.parametrize(
    ("name", "value"), [("scale", np.nan), ("scale", X), ("is_causal", 2.0), ("is_causal", X)]
)
def test_settings_that_are_none_are_refused(write, name, value):
    refused(
        write(q=X, k=X, v=X, **{name: np.asarray(value)}), f"{name} in ", "number" * (value is X)
    )


def test_two_scales_are_refused(write):
    one = np.float32([1])
    refused(write(q=X, k=X, v=X, scale=one, sm_scale=one), "only one of 'scale', 'sm_scale'")


def test_other_names_are_taken_or_listed(write):
    path = write(query=X, key=2 * X, value=3 * X)
    message = refused(path, "a file with an array 'q'")
    assert all(f"'{name}'" in message for name in ("query", "key", "value"))
    call = read_call(path, {"q": "query", "k": "key", "v": "value"})
    assert [x.flat[0] for x in (call.q, call.k, call.v)] == [1, 2, 3]
    refused(path, "an array 'nokey'", keys={"q": "query", "k": "nokey"})
    refused(path, "keys must be names of q, k and v", keys={"x": "query"})


# Archives.


def test_a_single_array_named_npz(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(npy(X))
    refused(path, "a readable .npz file (it is a single .npy array)")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x93NUMPY\x09\x00", b"\x93NUMPY\x01\x00\xff\xff{"]
)
def test_members_that_are_no_arrays(tmp_path, content):
    path = npz(tmp_path / "x.npz", {"q.npy": content, "k.npy": npy(X), "v.npy": npy(X)})
    refused(path, str(path), "'q': ")


@pytest.mark.parametrize(
    "header",
    [
        "(" * 2000,
        "{'descr': '<f4', 'fortran_order': False}",
        "[1]",
        "{[]: 1}",
        "{1: 2, 'descr': '<f4'}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 8)}",
    ],
)
def test_headers_that_are_none(tmp_path, header):
    text = header.encode() + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    refused(npz(tmp_path / "x.npz", {"q.npy": member}), "'q': ")


@pytest.mark.parametrize(
    "shape", ["(10**15,)", "(1000000000000, 8)", "(-1, 8)", "(1, 2, 3, 9)", "(1, 2, 3)"]
)
def test_shapes_that_the_data_do_not_have(tmp_path, shape):
    good = npy(X)
    member = good.replace(b"(1, 2, 3, 8)", shape.encode())
    member = good[:8] + struct.pack("<H", len(member) - 192 - 10) + member[10:]
    tracemalloc.start()
    refused(npz(tmp_path / "x.npz", {"q.npy": member}), "'q': ")
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_endless_axes_without_elements(tmp_path):
    path = npz(tmp_path / "x.npz", {"q.npy": npy(np.zeros((1, 1 << 40, 0, 8)))})
    refused(path, "no elements")


def test_flipped_bytes_of_a_compressed_member(tmp_path):
    data = np.random.default_rng(0).standard_normal((1, 2, 64, 8)).astype(np.float32)
    path = npz(tmp_path / "x.npz", dict.fromkeys(("q.npy", "k.npy", "v.npy"), npy(data)), 8)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for at in rng.integers(60, len(whole) // 3, 40):
        damaged = bytearray(whole)
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        refused(path, "'q': ")


def test_a_flipped_bit_is_refused_or_does_no_harm(tmp_path):
    path = npz(tmp_path / "x.npz", dict.fromkeys(("q.npy", "k.npy", "v.npy"), npy(X)), 8)
    whole = path.read_bytes()
    refusals = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            arrays = load(path)
        except ArgumentError:
            refusals += 1
        else:
            assert all(np.array_equal(x, X) for x in arrays)
    assert refusals > len(whole) // 2


def set_field(path, signature, offset, value):
    """Set two bytes of every local (or central) header of an archive."""
    data = bytearray(path.read_bytes())
    at = data.find(signature)
    while at >= 0:
        data[at + offset : at + offset + 2] = struct.pack("<H", value)
        at = data.find(signature, at + 4)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [(8, 1, "is encrypted"), (10, 99, "is compressed by another method")],
)
def test_encryption_and_unknown_compression(tmp_path, offset, value, words):
    path = npz(tmp_path / "x.npz", dict.fromkeys(("q.npy", "k.npy", "v.npy"), npy(X)))
    set_field(path, b"PK\x01\x02", offset, value)
    refused(path, f"'q': {words}")


def test_sizes_that_no_compression_reaches(tmp_path):
    path = npz(tmp_path / "x.npz", {"q.npy": npy(X)})
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(data)
    refused(path, "'q': says that")


def test_names_that_are_no_names(tmp_path):
    long = "n" * 60_000
    path = npz(tmp_path / "x.npz", {f"{long}.npy": npy(X), "line\nend\x1b[2J.npy": npy(X)})
    message = refused(path, "an array 'q'")
    assert r"line\nend\x1b[2J" in message
    refused(tmp_path / f"{long}.npz", "an existing file")
    refused(tmp_path / "x\0y.npz", "an existing file")


def test_what_is_not_a_file_is_not_opened(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "fifo.npz")
    for name in ("folder.npz", "fifo.npz"):
        refused(tmp_path / name, "an existing file")


# The safetensors format.

HOSTILE = {
    "negative start": {"q": entry(offsets=(-192, 0))},
    "beyond the end": {"q": entry(offsets=(192, 384))},
    "backwards": {"q": entry(offsets=(192, 0))},
    "negative size": {"q": entry(shape=(1, 2, 3, -1))},
    "two negative sizes": {"q": entry(shape=(1, 2, -3, -8))},
    "too large": {"q": entry(shape=(1 << 40, 1 << 40))},
    "of 64 bits": {"q": entry(shape=(1 << 63, 2, 0), offsets=(0, 0))},
    "many axes": {"q": entry(shape=(1 << 62,) * 100_000)},
    "not whole": {"q": entry(shape=(1, 2, 3.0, 8))},
    "true": {"q": entry(shape=(True, 2, 3, 8))},
    "a hole": {
        "q": entry(offsets=(0, 96), shape=(24,)),
        "k": entry(offsets=(100, 192), shape=(23,)),
    },
    "overlap": {"q": entry(), "k": entry(offsets=(96, 192), shape=(24,))},
    "rest": {"q": entry(shape=(24,), offsets=(0, 96))},
    "unknown type": {"q": entry(dtype="F33")},
    "type of another type": {"q": entry(dtype=["F32"])},
    "no type": {"q": {"shape": [48], "data_offsets": [0, 192]}},
    "three offsets": {"q": entry(offsets=(0, 96, 192))},
    "a list": [1, 2],
    "a text": {"q": "F32"},
    "deep": b"[" * 100_000,
    "not UTF-8": b"\xff" * 8,
    "twice": b'{"q":{"dtype":"F32","shape":[48],"data_offsets":[0,192]},'
    b'"q":{"dtype":"F32","shape":[48],"data_offsets":[0,192]}}',
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_headers_that_lie(tmp_path, header):
    refused(safetensors(tmp_path / "x.safetensors", header, bytes(192)), "a readable .safetensors")


@pytest.mark.parametrize("length", [0, 7, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_header_lengths_that_lie(tmp_path, length):
    path = safetensors(tmp_path / "x.safetensors", {"q": entry()}, bytes(192), length)
    refused(path, "a readable .safetensors")


def test_what_the_library_refuses_is_refused(tmp_path):
    """Headers with one thing changed: what its own library does not take, is not taken here."""
    library = pytest.importorskip("safetensors")
    good = {name: entry(offsets=(192 * i, 192 * i + 192)) for i, name in enumerate("qkv")}
    text = json.dumps(good).encode()
    path = tmp_path / "x.safetensors"
    rng = np.random.default_rng(2)
    refusals = 0
    for _ in range(500):
        changed = bytearray(text)
        for at in rng.integers(0, len(text), rng.integers(1, 3)):
            changed[at] = rng.choice(list(b'0123456789-{}[],:"F e'))
        safetensors(path, bytes(changed), bytes(576))
        try:
            library.deserialize(path.read_bytes())
        except library.SafetensorError:
            refusals += 1
            refused(path)
    assert refusals > 150
