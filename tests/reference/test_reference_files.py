"""Q, K and V from files, and what is said about files that will not do."""

import json

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.reference.distributions import load

RNG = np.random.default_rng(0)
Q = RNG.standard_normal((2, 4, 5, 8))
K = RNG.standard_normal((2, 2, 9, 8))
V = RNG.standard_normal((2, 2, 9, 8))


def write_safetensors(path, arrays, names=None):
    """Write the format from its description: header length, JSON header, data."""
    names = names or {}
    header, body = {"__metadata__": {"made": "by hand"}}, b""
    kinds = {"float16": "F16", "float32": "F32", "float64": "F64", "uint16": "BF16", "int8": "I8"}
    for name, x in arrays.items():
        data = x.tobytes()
        header[name] = {
            "dtype": kinds[x.dtype.name],
            "shape": x.shape,
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def write(path, **arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        write_safetensors(path, arrays)


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path):
    return tmp_path / f"qkv{request.param}"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_load_reads_what_was_written(path, dtype):
    write(path, q=Q.astype(dtype), k=K.astype(dtype), v=V.astype(dtype), more=Q)
    expected = np.float16 if dtype == np.float16 else np.float32
    for x, original in zip(load(path), (Q, K, V), strict=True):
        assert x.dtype == expected
        np.testing.assert_array_equal(x, original.astype(dtype).astype(expected))
    assert load(str(path))[0].shape == Q.shape


def test_load_adds_the_batch_axis(path):
    write(path, q=Q[0], k=K[0], v=V[0])
    q, k, v = load(path)
    assert q.shape == (1, *Q.shape[1:])
    assert k.shape == v.shape == (1, *K.shape[1:])


def test_load_reads_what_the_library_wrote(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "library.safetensors"
    numpy.save_file({"q": Q.astype(np.float32), "k": K, "v": V.astype(np.float16)}, path)
    q, k, v = load(path)
    np.testing.assert_array_equal(q, Q.astype(np.float32))
    np.testing.assert_array_equal(k, K.astype(np.float32))
    np.testing.assert_array_equal(v, V.astype(np.float16))


def test_load_widens_bfloat16(tmp_path):
    path = tmp_path / "bf16.safetensors"
    bits = {
        name: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        for name, x in (("q", Q), ("k", K), ("v", V))
    }
    write_safetensors(path, bits)
    q, _, _ = load(path)
    np.testing.assert_array_equal(q.view(np.uint32) >> 16, bits["q"])
    assert not np.any(q.view(np.uint32) & 0xFFFF)


def refuses(path, *words):
    with pytest.raises(ArgumentError) as error:
        load(path)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_load_names_what_is_missing(path):
    refuses(path, "path must be an existing file", str(path))
    write(path, q=Q, k=K)
    refuses(path, "path must be a file with an array 'v'", "it has 'q', 'k';")


def test_load_refuses_other_kinds_of_file(tmp_path):
    refuses(tmp_path / "qkv.pt", "path must be a .npz or .safetensors file", "qkv.pt")


def test_load_refuses_damaged_files(path):
    for content in (b"", b"PK\x03\x04broken", b"\xff" * 20, b"\x03\0\0\0\0\0\0\0[7]"):
        path.write_bytes(content)
        refuses(path, f"path must be a readable {path.suffix} file")
    write(path, q=Q, k=K, v=V)
    path.write_bytes(path.read_bytes()[:-200])
    refuses(path, f"path must be a readable {path.suffix} file")


def test_load_refuses_arrays_that_do_not_fit(path):
    write(path, q=Q, k=K, v=V[:, :, :5])
    refuses(path, "v.shape must be")
    write(path, q=Q[0, 0], k=K, v=V)
    refuses(path, "q.shape must be", "(5, 8)")
    write(path, q=Q.astype(np.int8), k=K, v=V)
    refuses(path, "q.dtype must be")


def test_load_never_unpickles(tmp_path):
    path = tmp_path / "object.npz"
    np.savez(path, q=np.array([{}], dtype=object), k=K, v=V)
    refuses(path, "path must be a readable .npz file")
