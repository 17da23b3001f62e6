"""JSON files: how they are written, and what is said of those that are none."""

import io
import os
from dataclasses import dataclass

import pytest

from cuattn.common import typed_json
from cuattn.common.text import listed, printable
from cuattn.errors import ArgumentError


@dataclass
class Kind:
    x: float


def refused(path, words):
    with pytest.raises(ArgumentError) as error:
        typed_json.read(path, Kind)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 400
    assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must be a JSON file"),
        (b"\xff\xfe", "must be a JSON file"),
        (b"[" * 300_000, "nested too deeply"),
        (b'{"x": NaN}', "NaN is not JSON"),
        (b'{"x": -Infinity}', "-Infinity is not JSON"),
        (b'{"x": 1e999}', "x must be a finite number"),
        (b'{"x": ' + b"9" * 400 + b"}", "x must be a finite number"),
        (b'{"x": ' + b"9" * 5000 + b"}", "must be a JSON file"),
        (b'{"x": true}', "x must be of type float"),
    ],
)
def test_what_is_not_json_is_refused(tmp_path, content, words):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    refused(path, words)


def test_what_is_not_a_file_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.json")
    refused(tmp_path / "fifo.json", "not a regular file")
    refused(tmp_path, "not a regular file")
    refused(tmp_path / ("n" * 3000), "File name too long")
    refused(tmp_path / "a\0b", "null")
    refused(tmp_path / "gone\nline", "No such file")
    monkeypatch.setattr(typed_json, "MOST_BYTES", 5)
    (tmp_path / "large.json").write_text('{"x": 1}')
    refused(tmp_path / "large.json", "more than 5 bytes")


def test_a_stream_is_written_as_a_file_is(tmp_path):
    stream = io.StringIO()
    for target in (stream, tmp_path / "x.json"):
        typed_json.write({"x": [1.5, float("nan")]}, target)
    assert (
        stream.getvalue()
        == (tmp_path / "x.json").read_text()
        == '{\n "x": [\n  1.5,\n  null\n ]\n}\n'
    )


def test_words_are_brought_to_a_line():
    assert printable("é\n\x1b[2J\udcff") == r"é\n\x1b[2J\udcff"
    assert printable("x" * 500, 10) == "xxxxxxx..."
    assert listed([]) == "nothing"
    assert listed(str(i) for i in range(20)).endswith("'11', 8 more")


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\udcff": 1}', '{"a": "\\udc00\\ud800"}'])
def test_text_that_is_no_unicode_is_refused(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ArgumentError, match="surrogates not allowed"):
        typed_json.read(file, dict)
    file.write_text('{"a": "\\ud83d\\ude00"}')
    assert typed_json.read(file, dict) == {"a": "\U0001f600"}
