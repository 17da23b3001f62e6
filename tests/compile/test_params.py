"""Argument structs as NumPy records: the offsets that C would choose, confirmed by the compiler."""

import numpy as np
import pytest

from cuattn.compile import params, sources
from cuattn.errors import CompileError

HEADER = """
#pragma once
#include "numeric.cuh"

struct Operand {
  const void* data;  // comment with ; and }
  f32 scale;
  i64 stride;
  i32 rows;
};

struct Small { i32 a; f32 b; u32 c; };

/* struct Gone { i32 a; }; */
struct Nested {
  i32 first;
  Small small;
  Operand q;
  void *o;
  f32 last;
};

struct Mapped {
  i32 first;
  TensorMap q;
  f32 scale;
  Small small;
  TensorMap kv;
  const TensorMap* other;
};
struct Outer { void* o; Mapped mapped; i32 last; };
struct Table { i32 first; Small small[3]; Operand q[2]; i32 last; };

struct Clever { i32 a; int twice() { return 2 * a; } };
struct Wrong { double x; };
struct Odd { i32 a[4]; };
struct Pointers { i32* a[4]; };
"""


@pytest.fixture
def header(monkeypatch):
    text = {**sources.sources(), "test.cuh": HEADER}
    monkeypatch.setattr(params, "sources", lambda: text)
    params.record.cache_clear()
    yield
    params.record.cache_clear()


def offsets(dtype):
    return {name: dtype.fields[name][1] for name in dtype.names}


@pytest.mark.usefixtures("header")
def test_members_are_aligned_as_in_c():
    operand = params.record("Operand", "test.cuh")
    assert offsets(operand) == {"data": 0, "scale": 8, "stride": 16, "rows": 24}
    assert operand.itemsize == 32
    assert [operand.fields[n][0].str for n in operand.names] == ["<u8", "<f4", "<i8", "<i4"]
    small = params.record("Small", "test.cuh")
    assert (offsets(small), small.itemsize) == ({"a": 0, "b": 4, "c": 8}, 12)
    nested = params.record("Nested", "test.cuh")
    assert offsets(nested) == {"first": 0, "small": 4, "q": 16, "o": 48, "last": 56}
    assert nested.itemsize == 64
    assert nested.fields["q"][0] == operand


@pytest.mark.usefixtures("header")
def test_tensor_maps_are_aligned_to_64_bytes():
    mapped = params.record("Mapped", "test.cuh")
    places = {"first": 0, "q": 64, "scale": 192, "small": 196, "kv": 256, "other": 384}
    assert (offsets(mapped), mapped.itemsize) == (places, 448)
    assert mapped.fields["q"][0] == mapped.fields["kv"][0] == params.TENSOR_MAP
    assert mapped.fields["other"][0].str == "<u8"
    outer = params.record("Outer", "test.cuh")
    assert (offsets(outer), outer.itemsize) == ({"o": 0, "mapped": 64, "last": 512}, 576)


@pytest.mark.usefixtures("header")
def test_arrays_of_structs_are_arrays_of_records():
    table = params.record("Table", "test.cuh")
    places = {"first": 0, "small": 4, "q": 40, "last": 104}
    assert (offsets(table), table.itemsize) == (places, 112)
    assert table.fields["small"][0].subdtype == (params.record("Small", "test.cuh"), (3,))
    assert table.fields["q"][0].subdtype == (params.record("Operand", "test.cuh"), (2,))


@pytest.mark.usefixtures("header")
def test_record_is_filled_by_name():
    record = np.zeros(1, params.record("Nested", "test.cuh"))
    record["q"]["scale"] = 0.5
    record["o"] = 2**63 + 5
    assert record.tobytes()[24:28] == np.float32(0.5).tobytes()
    assert record.tobytes()[48:56] == (2**63 + 5).to_bytes(8, "little")


@pytest.mark.usefixtures("header")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Gone", "declares no plain struct Gone"),
        ("Clever", "declares no plain struct Clever"),
        ("Wrong", "declares no plain struct double"),
        ("Odd", r"member of Odd not understood: 'i32 a\[4\]'"),
        ("Pointers", r"member of Pointers not understood: 'i32\* a\[4\]'"),
    ],
)
def test_what_is_not_understood_is_an_error(name, message):
    with pytest.raises(CompileError, match=message):
        params.record(name, "test.cuh")


def test_missing_file_is_an_error():
    with pytest.raises(CompileError, match=r"absent\.cuh declares no plain struct X"):
        params.record("X", "absent.cuh")


def layout_checks(name, dtype):
    """C++ that compiles only if the compiler lays the struct out like the dtype."""
    yield f"static_assert(sizeof({name}) == {dtype.itemsize});"
    for member, offset in offsets(dtype).items():
        size = dtype.fields[member][0].itemsize
        # offsetof, spelt for a compiler that has no stddef.h
        yield f"static_assert(__INTADDR__(&(({name}*)0)->{member}) == {offset});"
        yield f"static_assert(sizeof({name}::{member}) == {size});"


@pytest.mark.usefixtures("header")
def test_compiler_agrees_on_the_test_structs():
    pytest.importorskip("cupy")
    from cuattn.compile.nvrtc import compile_source

    names = ("Operand", "Small", "Nested", "Mapped", "Outer", "Table")
    checks = [c for n in names for c in layout_checks(n, params.record(n, "test.cuh"))]
    compile_source(HEADER + "\n".join(checks), "80")
    with pytest.raises(CompileError, match="static assertion failed"):
        compile_source(HEADER + "static_assert(sizeof(Nested) == 72);", "80")


PARAMS = [
    (match[1], file)
    for file, text in sources.sources().items()
    for match in params._STRUCT.finditer(text)
    if match[1].endswith("Params")
]


@pytest.mark.parametrize(("name", "file"), PARAMS)
def test_compiler_agrees_on_the_kernels_arguments(name, file):
    pytest.importorskip("cupy")
    from cuattn.compile.nvrtc import compile_source

    checks = layout_checks(name, params.record(name, file))
    compile_source(f'#include "{file}"\n' + "\n".join(checks), "80")


def test_kernels_arguments_were_found():
    assert "AttentionParams" in dict(PARAMS)
