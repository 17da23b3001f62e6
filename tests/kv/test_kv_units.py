"""The bytes of a unit are those that kernels_cu/kv/unit.cuh describes."""

import numpy as np
import pytest
from kv_cases import FORMATS

from cuattn.kv.units import Tokens, pack_units, unpack_units
from cuattn.kv_format import UNIT_TOKENS
from cuattn.reference.layout import TOKEN_OF_SLOT

SLOT_OF_TOKEN = np.argsort(TOKEN_OF_SLOT)


@pytest.fixture(params=FORMATS)
def kv_format(request):
    return FORMATS[request.param]


def operand(rng, kv_format, bits, groups, zero, units=3):
    shape = (2, 2, units * UNIT_TOKENS)
    most = 127 if bits == 8 else 7
    codes = rng.integers(-most, most + 1, (*shape, kv_format.padded)).astype(np.int8)
    scale = rng.standard_normal((*shape, groups)).astype(np.float32)
    return Tokens(codes, scale, scale[::-1] * np.float32(3) if zero else None)


def both(rng, kv_format, units=3):
    k = operand(rng, kv_format, kv_format.k_bits, kv_format.k_groups, False, units)
    v = operand(rng, kv_format, kv_format.v_bits, kv_format.v_groups, kv_format.v_zero, units)
    return k, v


def key_at(kv_format, token, channel):
    """Byte of a code of K, and the bits before it."""
    if kv_format.k_bits == 8:
        return (channel // 16 * 16 + token) * 16 + channel % 16, 0
    return (channel // 32 * 16 + token) * 16 + channel % 16, 4 * (channel % 32 // 16)


def value_at(kv_format, token, channel):
    slot = SLOT_OF_TOKEN[token]
    if kv_format.v_bits == 8:
        return kv_format.v_at + channel * 16 + slot, 0
    row = channel // 16 * 8 + channel % 8
    return kv_format.v_at + row * 16 + slot, 4 * (channel % 16 // 8)


def code_at(unit, byte, shift, bits):
    code = int(unit[byte]) >> shift & (1 << bits) - 1
    return code - (1 << bits) if code >> bits - 1 else code


def test_codes_lie_where_the_header_says(rng, kv_format):
    k, v = both(rng, kv_format)
    units = pack_units(k, v, kv_format)
    assert units.shape == (2, 2, 3, kv_format.unit_bytes)
    for unit, token in ((0, 0), (1, 5), (2, 11), (2, 15)):
        of_unit, n = units[1, 0, unit], unit * UNIT_TOKENS + token
        for channel in range(kv_format.padded):
            at = *key_at(kv_format, token, channel), kv_format.k_bits
            assert code_at(of_unit, *at) == k.codes[1, 0, n, channel]
            at = *value_at(kv_format, token, channel), kv_format.v_bits
            assert code_at(of_unit, *at) == v.codes[1, 0, n, channel]


def test_scales_lie_by_groups_in_slots(rng, kv_format):
    k, v = both(rng, kv_format)
    units = pack_units(k, v, kv_format)
    parts = [(kv_format.k_scale_at, k.scale), (kv_format.v_scale_at, v.scale)]
    if kv_format.v_zero:
        parts.append((kv_format.v_zero_at, v.zero))
    for begin, numbers in parts:
        groups = numbers.shape[3]
        words = units[..., begin : begin + 64 * groups].copy().view(np.float32)
        of_unit = words.reshape(2, 2, 3, groups, UNIT_TOKENS)
        for token in range(UNIT_TOKENS):
            expected = numbers[:, :, UNIT_TOKENS + token]
            np.testing.assert_array_equal(of_unit[:, :, 1, :, SLOT_OF_TOKEN[token]], expected)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_unpacking_undoes_packing(rng, kv_format, count):
    given = both(rng, kv_format, count)
    for x, back in zip(given, unpack_units(pack_units(*given, kv_format), kv_format), strict=True):
        for before, after in zip(x, back, strict=True):
            if before is None:
                assert after is None
            else:
                assert after.dtype == before.dtype
                np.testing.assert_array_equal(after, before)


def test_every_byte_belongs_to_one_token(rng, kv_format):
    # What is appended must not touch the bytes of its neighbours, which others may be reading.
    k, v = both(rng, kv_format, 1)
    before = pack_units(k, v, kv_format)
    changed = np.zeros(before.shape, int)
    for token in range(UNIT_TOKENS):
        there = [x._replace(codes=x.codes.copy(), scale=x.scale.copy()) for x in (k, v)]
        for x in there:
            x.codes[:, :, token] ^= -1
            x.scale.view(np.uint32)[:, :, token] ^= 0xFFFFFFFF
        if kv_format.v_zero:
            there[1] = there[1]._replace(zero=v.zero.copy())
            there[1].zero.view(np.uint32)[:, :, token] ^= 0xFFFFFFFF
        changed += pack_units(*there, kv_format) != before
    used = kv_format.used_bytes
    assert (changed[..., :used] == 1).all()
    assert (before[..., used:] == 0).all()
    assert (changed[..., used:] == 0).all()


def test_units_begin_at_lines_of_memory(kv_format):
    assert kv_format.unit_bytes % 128 == 0
    assert 0 <= kv_format.unit_bytes - kv_format.used_bytes < 128


def test_values_of_groups_and_zero_points():
    codes = np.array([1, -2, 3, 4], np.int8).reshape(1, 1, 1, 4)
    scale = np.array([2.0, 0.5], np.float32).reshape(1, 1, 1, 2)
    zero = np.array([10.0, -1.0], np.float32).reshape(1, 1, 1, 2)
    assert Tokens(codes, scale).values().ravel().tolist() == [2, -4, 1.5, 2]
    assert Tokens(codes, scale, zero).values().ravel().tolist() == [12, 6, 0.5, 1]
