"""Sizes of a KV cache: which are taken, what errors say of the others, and the bytes of it all."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.kv.geometry import KVGeometry
from cuattn.kv.options import check_choices, geometry_of
from cuattn.kv_format import KVFormat

FORMAT = KVFormat(64, 8, 8, 0, False)
SIZES = {"batch": 3, "num_kv_heads": 2, "head_dim": 64, "capacity": 100}


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 2**16 - 1, "num_kv_heads": 1},
        {"batch": 1, "num_kv_heads": 2**16 - 1},
        {"batch": 2**4, "num_kv_heads": 2**16 - 2**12},
        {"batch": 2**10, "num_kv_heads": 2**10},
        {"capacity": 2**30},
        {"capacity": 1, "batch": 1, "num_kv_heads": 1},
        *({"page_size": n} for n in (16, 32, 64, 128, 256)),
        {"page_size": 16, "num_pages": 1},
        {"page_size": 16, "num_pages": 2**31 - 1},
    ],
    ids=str,
)
def test_sizes_that_kernels_take(sizes):
    geometry = geometry_of(**{**SIZES, **sizes})
    assert all(getattr(geometry, name) == value for name, value in sizes.items())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch": 0}, "batch must be a whole number from 1 to 65535, got 0"),
        ({"batch": 2**16}, "batch must be a whole number from 1 to 65535, got 65536"),
        ({"batch": 3.0}, "batch must be a whole number from 1 to 65535, got 3.0"),
        ({"batch": "3"}, "batch must be a whole number from 1 to 65535, got '3'"),
        ({"num_kv_heads": 0}, "num_kv_heads must be a whole number from 1 to 65535, got 0"),
        ({"num_kv_heads": True}, "num_kv_heads must be a whole number from 1 to 65535, got True"),
        ({"num_kv_heads": 2**16}, "num_kv_heads must be a whole number from 1 to 65535, got 65536"),
        ({"capacity": 0}, "capacity must be a whole number from 1 to 1073741824, got 0"),
        (
            {"capacity": 2**30 + 1},
            "capacity must be a whole number from 1 to 1073741824, got 1073741825",
        ),
        (
            {"batch": 2**10, "num_kv_heads": 2**10 + 1},
            "batch must be at most 1048576 heads, not 1049600, got 1024",
        ),
        *(
            (
                {"page_size": n},
                f"page_size must be one of (16, 32, 64, 128, 256), or 0 for no pages, got {n}",
            )
            for n in (8, 17, 512, -16, 16.0, False)
        ),
        ({"window": 64}, "window must be None without pages, as page_size is 0, got 64"),
        ({"window": 0}, "window must be a whole number from 1 on, or None, got 0"),
        (
            {"sink_tokens": 16},
            "sink_tokens must be 0 without a window, beside which they are kept, got 16",
        ),
        ({"num_pages": 3}, "num_pages must be None, unless there is a page_size, got 3"),
        (
            {"page_size": 16, "num_pages": 0},
            "num_pages must be a whole number from 1 to 2147483647, got 0",
        ),
        (
            {"page_size": 16, "num_pages": 2**31},
            "num_pages must be a whole number from 1 to 2147483647, got 2147483648",
        ),
        (
            {"page_size": 16, "num_pages": 8.0},
            "num_pages must be a whole number from 1 to 2147483647, got 8.0",
        ),
        ({"bits": 5}, "bits must be one of (8, 4), got 5"),
        ({"bits": 8.0}, "bits must be one of (8, 4), got 8.0"),
    ],
    ids=str,
)
def test_other_sizes_are_refused(sizes, message):
    with pytest.raises(ArgumentError) as error:
        geometry_of(**{**SIZES, **sizes})
    assert str(error.value) == message


def test_what_is_in_one_piece_has_a_piece_for_each_sequence():
    with pytest.raises(ArgumentError, match="num_pages must be a whole number from 3 to"):
        KVGeometry(FORMAT, 3, 2, 100, 0, 2)
    assert geometry_of(**SIZES).num_pages == 3


def test_pages_suffice_for_all_unless_a_number_is_given():
    assert geometry_of(**SIZES, page_size=16).num_pages == 3 * 7
    assert geometry_of(**SIZES, page_size=16, num_pages=5).num_pages == 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (8, 8, 0, False, True)),
        ({"rotate": False}, (8, 8, 0, False)),
        ({"bits": 4}, (4, 4, 64, False, True, True)),
        ({"bits": 4, "nested": False}, (4, 4, 0, False, True)),
        ({"bits": 4, "group": 32}, (4, 4, 32, False, True, True)),
        ({"k_bits": 4, "v_bits": 4}, (4, 4, 0, False, True)),
        ({"k_bits": 4, "v_bits": 4, "nested": True}, (4, 4, 64, False, True, True)),
        ({"k_bits": 4}, (4, 8, 0, False, True)),
        ({"v_bits": 4}, (8, 4, 0, False, True)),
        ({"bits": 4, "k_bits": 8, "v_zero": True}, (8, 4, 0, True, True)),
        ({"bits": 4, "group": 32, "v_zero": True}, (4, 4, 32, True, True)),
    ],
    ids=str,
)
def test_bits_are_those_of_keys_and_values_unless_they_have_their_own(options, expected):
    assert geometry_of(**SIZES, **options).kv_format == KVFormat(64, *expected)


@pytest.mark.parametrize(
    ("page_size", "pages", "units"), [(0, 1, 7), (16, 7, 1), (32, 4, 2), (64, 2, 4)]
)
def test_memory_is_pages_of_heads_of_units(page_size, pages, units):
    """100 tokens are 7 units of 16; a unit's bytes are the format's."""
    geometry = geometry_of(**SIZES, page_size=page_size)
    unit = geometry.kv_format.unit_bytes
    assert (geometry.pages_per_sequence, geometry.page_units) == (pages, units)
    assert geometry.units_shape == (3 * pages, 2, units, unit)
    assert (geometry.head_stride, geometry.page_stride) == (units * unit, 2 * units * unit)
    assert geometry.units_bytes == np.prod(geometry.units_shape)
    assert geometry.bytes_per_token == 2 * unit // 16
    words = 2 * 3 + (3 * pages if page_size else 0)
    assert geometry.nbytes(smooth_k=False) == geometry.units_bytes + 4 * words
    words += 3 * (2 * 64 + 1) + (3 if page_size else 0)
    assert geometry.nbytes(smooth_k=True) == geometry.units_bytes + 4 * words


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("smooth_k", [True, False])
def test_choices_are_taken(smooth_k, device):
    check_choices(smooth_k, device)


@pytest.mark.parametrize(
    ("smooth_k", "device", "message"),
    [
        (1, None, "smooth_k must be True or False, got 1"),
        (None, "cpu", "smooth_k must be True or False, got None"),
        (True, "gpu", "device must be None, for CuPy's current GPU, or 'cpu', got 'gpu'"),
        (True, 0, "device must be None, for CuPy's current GPU, or 'cpu', got 0"),
    ],
)
def test_other_choices_are_refused(smooth_k, device, message):
    with pytest.raises(ArgumentError) as error:
        check_choices(smooth_k, device)
    assert str(error.value) == message
