"""What is left of the options of `KVCache.attend`, which kernel they take, which are refused."""

import re
from dataclasses import fields
from itertools import product

import numpy as np
import pytest
from helpers.spec_structs import members, named

from cuattn.arrays.device import target
from cuattn.arrays.view import Array
from cuattn.compile.params import record
from cuattn.compile.sources import sources
from cuattn.errors import ArgumentError
from cuattn.kv.listing import kv_specs
from cuattn.kv.options import geometry_of
from cuattn.kv.query import Query, QueryOptions
from cuattn.kv.scores import PLAIN, SCORE_AXES, Extra, Features, ScoreArrays
from cuattn.kv.spec import DecodeSpec, decode_spec
from cuattn.kv_format import KVFormat
from cuattn.operands.scores import checked_window
from cuattn.reference.arrays import Shape
from cuattn.reference.masking import Mask
from cuattn.specs.attention import Type
from cuattn.specs.mods import ModSource

GPU = (2, 0)
CAPACITY = 100
BATCH, HEADS, QUERIES = 3, 8, 5


def array(*shape, dtype="float32", **others):
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Array(**{"shape": shape, "strides": strides, "dtype": dtype, "device": GPU} | others)


def query(queries=QUERIES, capacity=CAPACITY, is_causal=True, arrays=None, scale=None, **options):
    geometry = geometry_of(BATCH, 2, 64, capacity)
    q = array(BATCH, HEADS, queries, 64, dtype="float16")
    given = QueryOptions(scale, is_causal, False, "HND", **options)
    return Query.of(geometry, q, given, ScoreArrays(**(arrays or {})))


def features(**options):
    return query(**options).scores.features


# ---- kernels


def test_a_causal_mask_is_in_every_kernel():
    assert features() == features(is_causal=False) == PLAIN
    assert features(is_causal=False, window_size=(-1, 0)) == PLAIN
    for options in ({}, {"is_causal": False, "window_size": (-1, 0)}):
        assert query(**options).score_values()["is_causal"] == 1
    assert query(is_causal=False).score_values()["is_causal"] == 0


def test_what_hides_or_changes_nothing_takes_no_other_kernel():
    assert features(window_size=(CAPACITY - 1, -1)) == PLAIN
    assert features(window_size=(2**40, 7), is_causal=False) == PLAIN
    assert features(window_size=(-1, QUERIES - 1), is_causal=False) == PLAIN
    assert features(softcap=0) == PLAIN
    assert features(arrays={"attn_mask": array(QUERIES, 0, dtype="bool")}) == PLAIN


def test_every_option_has_a_feature():
    assert features(window_size=(CAPACITY - 2, 0)) == Features(window=True)
    assert features(window_size=(-1, 1), is_causal=False) == Features(window=True)
    assert features(softcap=50) == Features(softcap=True)
    for name in ("sinks", "alibi_slopes"):
        for dtype, kind in (("float16", "fp16"), ("bfloat16", "bf16"), ("float32", "fp32")):
            found = features(arrays={name: array(HEADS, dtype=dtype)})
            assert found == Features(**{name: Extra(kind)})
    for dtype, kind in (("bool", "boolean"), ("bfloat16", "bf16"), ("float32", "fp32")):
        found = features(arrays={"attn_mask": array(7, dtype=dtype)})
        assert found == Features(attn_mask=Extra(kind))


SIDES = range(-1, 9)


@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize("capacity", [1, 4, 7])
def test_kernels_hide_what_the_window_does_at_every_length(queries, capacity):
    def visible(length, is_causal, window_size):
        shape = Shape(1, 1, 1, queries, length, 64)
        return [x.tolist() for x in Mask(shape, is_causal, window_size).bounds(range(queries))]

    for left, right, is_causal in product(SIDES, SIDES, (False, True)):
        options = {"is_causal": is_causal, "window_size": (left, right)}
        found = query(queries, capacity, **options)
        values = found.score_values()
        of_kernel = bool(values["is_causal"]), (-1, -1)
        if found.scores.features.window:
            of_kernel = False, (values["window_left"], values["window_right"])
            assert values["window_left"] <= capacity
            assert values["window_right"] < queries
        for length in range(capacity + 1):
            assert visible(length, *of_kernel) == visible(length, **options)


def test_strides_are_those_of_one_element_for_all():
    def strides(name, x):
        found = query(arrays={name: x})
        values = found.score_values()
        return [values[f"{name}_stride_{axis}"] for axis in SCORE_AXES[name]]

    assert strides("sinks", array(HEADS, strides=(3,))) == [3]
    assert strides("alibi_slopes", array(HEADS)) == [0, 1]
    assert strides("alibi_slopes", array(BATCH, HEADS)) == [8, 1]
    assert strides("attn_mask", array(9, dtype="bool")) == [0, 0, 0, 1]
    assert strides("attn_mask", array(QUERIES, 9)) == [0, 0, 9, 1]
    assert strides("attn_mask", array(BATCH, 1, QUERIES, 9)) == [45, 0, 9, 1]
    assert strides("attn_mask", array(1, HEADS, 1, 9, strides=(7, -2, 5, 0))) == [0, -2, 0, 0]
    assert query(arrays={"attn_mask": array(QUERIES, 9)}).scores.mask_columns == 9


# ---- the spec and its struct


def test_the_literal_names_every_member_in_order():
    every = Features(True, True, Extra.fp32, Extra.fp16, Extra.boolean)
    spec = decode_spec(KVFormat(64), Type.fp16, 1, target("90a"), every)
    assert named(spec.cxx()) == members("DecodeSpec", "kv/kv_spec.cuh")
    assert ".attn_mask = Extra::boolean" in spec.cxx()
    derived = {"num_threads", "smem_bytes"}
    assert {f.name for f in fields(spec)} | derived == set(named(spec.cxx()))


def test_kinds_of_elements_are_those_of_the_header():
    found = re.search(r"enum class Extra { (.*?) };", sources()["kv/kv_spec.cuh"])[1]
    assert found.split(", ") == [member.value for member in Extra]


def test_params_have_all_values():
    known = set(record("DecodeParams", "kv/kv_params.cuh").names)
    assert set(query().score_values()) <= known
    assert set(SCORE_AXES) <= known


def test_kernels_with_features_are_not_among_those_that_are_listed():
    specs = kv_specs([64], ["float16"], [8], target("90a"))
    decoding = [spec for spec in specs if isinstance(spec, DecodeSpec)]
    assert decoding
    for spec in decoding:
        assert Features(*[getattr(spec, name) for name in Features._fields]) == PLAIN


def test_rows_of_a_mask_take_shared_memory():
    def smem_bytes(**how):
        spec = decode_spec(KVFormat(64), Type.fp16, 9, target("90a"), Features(**how))
        return spec.smem_bytes

    for how in ({"window": True}, {"softcap": True}, {"sinks": Extra.fp32}):
        assert smem_bytes(**how) == smem_bytes()
    # Of 16 rows.
    assert smem_bytes(attn_mask=Extra.boolean) == smem_bytes() + 128
    assert smem_bytes(attn_mask=Extra.fp32, alibi_slopes=Extra.bf16) == smem_bytes() + 256
    of_one = ModSource("mask_mod", "kv > q")
    assert smem_bytes(mask_mod=of_one) == smem_bytes() + 128


# ---- what is refused


@pytest.mark.parametrize(
    "window", [5, None, (5,), (5, 0, 0), (True, 0), (5, None), (-2, 0), (0, -2), (1.0, 0), "50"]
)
def test_other_windows_are_refused(window):
    with pytest.raises(ArgumentError, match=r"^window_size must be \(left, right\)"):
        checked_window(window)


def test_windows_are_two_integers_of_python():
    for given in ([3, 0], (np.int32(3), np.int64(0)), (3, 0)):
        found = checked_window(given)
        assert found == (3, 0)
        assert {type(side) for side in found} == {int}


@pytest.mark.parametrize(
    ("softcap", "words"),
    [
        (-1.0, "at least 0, which is none, and finite in float32, got -1.0"),
        (float("nan"), "got nan"),
        (float("inf"), "got inf"),
        (3e38, "finite in float32"),
        (10**400, "finite in float32"),
        (True, "a number, 0 for none, got True"),
        (None, "a number, 0 for none, got None"),
        ("50", "a number, 0 for none, got '50'"),
        (1e-40, "0 for none, or such that scale / softcap is finite; scale is 0.125, got 1e-40"),
    ],
)
def test_other_caps_are_refused(softcap, words):
    with pytest.raises(ArgumentError, match=r"^softcap must be ") as error:
        query(softcap=softcap)
    assert words in str(error.value)


def test_a_cap_that_float32_has_not_is_refused_with_any_scale():
    with pytest.raises(ArgumentError, match=r"^softcap must be 0 for none"):
        query(softcap=1e-50, scale=0.0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sinks": array(HEADS, dtype="float64")}, r"sinks.dtype must be one of \['float16'"),
        ({"sinks": array(2)}, r"sinks.shape must be \(8,\), one for each query head, got \(2,\)"),
        ({"sinks": array(1, HEADS)}, "sinks.shape"),
        ({"sinks": array(HEADS, dtype="bool")}, "sinks.dtype"),
        ({"sinks": array(HEADS, misalignment=2)}, "sinks must be at a multiple of 4 bytes"),
        ({"alibi_slopes": array(BATCH)}, r"alibi_slopes.shape must be \(8,\) or \(3, 8\)"),
        ({"alibi_slopes": array(1, HEADS)}, "alibi_slopes.shape"),
        ({"alibi_slopes": array(HEADS, dtype="int32")}, "alibi_slopes.dtype"),
        ({"attn_mask": array()}, "attn_mask.shape"),
        ({"attn_mask": array(2, QUERIES, 9)}, r"that broadcasts to \(3, 8, 5, n\), which is"),
        ({"attn_mask": array(4, 9)}, "attn_mask.shape"),
        ({"attn_mask": array(2, HEADS, QUERIES, 9)}, "attn_mask.shape"),
        ({"attn_mask": array(1, 1, 1, 1, 9)}, "attn_mask.shape"),
        ({"attn_mask": array(CAPACITY + 1, dtype="bool")}, "n is at most 100, the capacity"),
        ({"attn_mask": array(9, dtype="uint8")}, r"attn_mask.dtype must be one of .*'bool'\]"),
        ({"attn_mask": array(9, dtype="float64")}, "attn_mask.dtype"),
        ({"attn_mask": array(9, dtype="float16", misalignment=1)}, "attn_mask must be at a mult"),
    ],
)
def test_other_arrays_are_refused(arrays, message):
    with pytest.raises(ArgumentError, match=message):
        query(arrays=arrays)
