"""Headers of the safetensors format by themselves: what is read, and the words of every refusal."""

import io
import json

import pytest

from cuattn.reference import safetensors_header
from cuattn.reference.safetensors_header import BITS, Tensor, read_header


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def header(entries):
    return entries if isinstance(entries, bytes) else json.dumps(entries).encode()


def read(entries, payload=16, length=None, size=None):
    """Read a header before a number of bytes; the length and the size may be said to be others."""
    text = header(entries)
    length = len(text) if length is None else length
    data = length.to_bytes(8, "little") + text + bytes(payload)
    return read_header(io.BytesIO(data), len(data) if size is None else size)


def test_tensors_are_listed_as_they_lie():
    entries = {
        "__metadata__": {"made": "by hand"},
        "b": entry(offsets=(16, 32)),
        "none": entry(shape=(0, 3), offsets=(16, 16)),
        "a": entry("F16", (2, 4)),
        "é": entry("F4", (2, 3), (32, 35)),
    }
    begun = 8 + len(header(entries))
    found = read(entries, 35)
    assert list(found) == ["a", "none", "b", "é"]
    assert found["a"] == Tensor("F16", (2, 4), begun, begun + 16)
    assert found["none"] == Tensor("F32", (0, 3), begun + 16, begun + 16)
    assert found["é"] == Tensor("F4", (2, 3), begun + 32, begun + 35)


@pytest.mark.parametrize("dtype", BITS)
def test_every_type_has_its_size(dtype):
    nbytes = BITS[dtype]
    tensor = read({"x": entry(dtype, (8,), (0, nbytes))}, nbytes)["x"]
    assert (tensor.dtype, tensor.end - tensor.start) == (dtype, nbytes)


def test_a_scalar_and_a_file_without_tensors():
    assert read({"x": entry(shape=(), offsets=(0, 4))}, 4)["x"].shape == ()
    assert read({}, 0) == {}
    assert read({"__metadata__": {}}, 0) == {}


TOO_LONG = "the header is longer than the file or than the format allows"
NO_SIZES = "tensor 'x' has a shape or offsets that are no sizes"
NO_DTYPE = "tensor 'x' has a dtype that the format does not know"
NO_FIT = "tensor 'x' has offsets that do not fit its shape and dtype"
LACKS = "tensor 'x' lacks a dtype, a shape or two offsets"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (b"[1]", "the header is not an object of JSON"),
        (b"[" * 100_000, "the header is nested too deeply"),
        (b'{"x": 1, "x": 1}', "the header has a name twice"),
        ({"x": 3}, LACKS),
        ({"x": {"dtype": "F32", "shape": [4]}}, LACKS),
        ({"x": entry(offsets=(0, 8, 16))}, LACKS),
        ({"x": {**entry(), "shape": 4}}, NO_SIZES),
        ({"x": entry(shape=(-4,))}, NO_SIZES),
        ({"x": entry(shape=(4.0,))}, NO_SIZES),
        ({"x": entry(shape=(True, 4))}, NO_SIZES),
        ({"x": entry(shape=(0, 2**63), offsets=(0, 0))}, NO_SIZES),
        ({"x": entry(offsets=(-16, 0))}, NO_SIZES),
        ({"x": entry(offsets=(0, "16"))}, NO_SIZES),
        ({"x": entry(dtype="F33")}, NO_DTYPE),
        ({"x": entry(dtype=["F32"])}, NO_DTYPE),
        ({"x": entry(shape=(3,))}, NO_FIT),
        ({"x": entry(offsets=(16, 0))}, NO_FIT),
        ({"x": entry("F4", (3,), (0, 1))}, NO_FIT),
        (
            {"x": entry(offsets=(4, 20))},
            "tensor 'x' does not begin where the one before it ends",
        ),
        (
            {"y": entry(), "x": entry(offsets=(12, 28))},
            "tensor 'x' does not begin where the one before it ends",
        ),
    ],
    ids=lambda given: str(given)[:60],
)
def test_headers_that_lie_say_where(entries, words):
    with pytest.raises(ValueError, match=r"header|tensor") as error:
        read(entries)
    assert str(error.value) == words


def test_sizes_of_63_bits_are_sizes():
    tensor = read({"x": entry(shape=(0, 2**63 - 1), offsets=(0, 0))}, 0)["x"]
    assert tensor.shape == (0, 2**63 - 1)


def test_tensors_fill_the_file():
    good = {"x": entry()}
    size = 8 + len(header(good)) + 16
    for n in (15, 17):
        with pytest.raises(
            ValueError, match=rf"^the tensors end at byte {size} of {size - 16 + n}$"
        ):
            read(good, n)


def test_the_header_lies_in_the_file(monkeypatch):
    text = len(header({}))
    assert read({}, 0) == {}
    for given in ({"length": text + 1}, {"size": 7}, {"size": 8 + text - 1}, {"length": 2**64 - 1}):
        with pytest.raises(ValueError, match=f"^{TOO_LONG}$"):
            read({}, 0, **given)
    monkeypatch.setattr(safetensors_header, "MOST_HEADER_BYTES", text)
    assert read({}, 0) == {}
    monkeypatch.setattr(safetensors_header, "MOST_HEADER_BYTES", text - 1)
    with pytest.raises(ValueError, match=f"^{TOO_LONG}$"):
        read({}, 0)
