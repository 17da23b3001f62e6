"""Index arithmetic of kernels at the largest sizes that the checks allow.

The compiler evaluates it: overflow of a signed integer in a constant expression is an error.
"""

import pytest

from cuattn.arrays.device import target
from cuattn.plan.kernels import attention_spec
from cuattn.scheme import Scheme
from cuattn.specs.attention import Type

TOKENS = 2**30  # the most of one head


def compiles(text):
    pytest.importorskip("cupy")
    from cuattn.compile.nvrtc import compile_source

    compile_source(text, "80")


def test_keys_that_a_row_sees():
    compiles(
        f"""
        #include "attn/mask.cuh"
        static_assert(seen_keys({TOKENS - 1}, {TOKENS}, {TOKENS}) == {TOKENS});
        static_assert(seen_keys(0, {TOKENS}, {TOKENS}) == 1);
        static_assert(seen_keys({TOKENS + 255}, {TOKENS}, {TOKENS}) == {TOKENS + 256});
        static_assert(seen_keys(0, {TOKENS}, 1) == {2 - TOKENS});
        static_assert(seen_keys(0, 1, {TOKENS}) == {TOKENS});
        """
    )


def test_groups_of_tokens():
    compiles(
        f"""
        #include "quant/group_means.cuh"
        static_assert(group_start(15, {TOKENS - 1}) == {(15 * (TOKENS - 1)) // 16});
        static_assert(group_start(16, {TOKENS - 1}) == {TOKENS - 1});
        static_assert(group_rows(15, {TOKENS - 1}) == {TOKENS // 16});
        """
    )


def test_scales_of_values():
    scheme = Scheme("tokens", k_scope="token", v_scope="token")
    spec = attention_spec(scheme, 64, Type.fp16, False, target("80"))
    last = TOKENS // spec.block_kv - 1
    compiles(
        f"""
        #include "attn/key_scale_loader.cuh"
        constexpr auto S = {spec.cxx()};
        using Loader = KeyScaleLoader<S>;
        static_assert(Loader::log2_v(0) == S.block_kv);
        static_assert(Loader::log2_v({last}) == {3 * TOKENS - 2 * spec.block_kv}u);
        """
    )


def test_entries_of_the_page_table():
    sequences, pages = 2**16 - 1, TOKENS // 16
    last = sequences * pages - 1
    compiles(
        f"""
        #include "kv/unit.cuh"
        static_assert(page_entry({sequences - 1}, {pages}, {pages - 1}) == {last}ll);
        static_assert(page_entry(3, 7, 2) == 23);
        """
    )


def test_tokens_before_a_window():
    most = f"static_cast<u32>({TOKENS}) + {TOKENS}"  # rows, and what each sees before its own
    compiles(
        f"""
        #include "kv/decode_shape.cuh"
        static_assert(hidden_tokens({TOKENS}, {most}) == 0);
        static_assert(hidden_tokens({TOKENS}, {TOKENS} - 1) == 1);
        static_assert(hidden_tokens({TOKENS}, 1) == {TOKENS - 1});
        static_assert(hidden_tokens(0, 1) == 0);
        static_assert(hidden_tokens(130, 2 + 127) == 1);
        """
    )
