"""What calls are accepted, and what errors say about the others."""

from dataclasses import replace

import numpy as np
import pytest

from cuattn.arrays.view import Array
from cuattn.errors import ArgumentError
from cuattn.operands.operand import Coded, Operand, compact, operand_of
from cuattn.operands.problem import Options, Problem
from cuattn.presets import PRESETS
from cuattn.scheme import Scheme
from cuattn.specs.attention import Type
from cuattn.specs.coding import coding

GPU = (2, 0)
DEFAULTS = Options(scheme="int8", scale=None, is_causal=False, return_lse=False, layout="HND")


def array(*shape, dtype="float16", **fields):
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Array(**{"shape": shape, "strides": strides, "dtype": dtype, "device": GPU} | fields)


def problem(q=(2, 8, 64, 64), k=(2, 2, 100, 64), v=None, dtype="float16", **options):
    """Check a call; a shape stands for a contiguous array."""
    v = k if v is None else v
    arrays = [x if isinstance(x, (Array, Coded)) else array(*x, dtype=dtype) for x in (q, k, v)]
    return Problem.of(*arrays, DEFAULTS._replace(**options))


def refused(**call):
    with pytest.raises(ArgumentError) as error:
        problem(**call)
    return error.value.argument, str(error.value)


def test_sizes_of_a_call():
    p = problem(is_causal=True, return_lse=True)
    assert (p.q.shape, p.k.shape, p.group) == ((2, 8, 64, 64), (2, 2, 100, 64), 4)
    assert (p.q.heads, p.k.heads, p.k.tokens) == (16, 4, 100)
    assert p.softmax_scale == 64**-0.5
    assert p.scheme is PRESETS["int8"]
    assert (p.is_causal, p.return_lse) == (True, True)


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("bfloat16", 2), ("float32", 4)])
def test_elements_lie_at_multiples_of_their_size(dtype, size):
    """A GPU that reads others loses the context of the whole process."""
    shape, p = (1, 1, 8, 64), problem(q=(1, 1, 8, 64), k=(1, 1, 8, 64), dtype=dtype)
    for name in "qkv":
        x = array(*shape, dtype=dtype, misalignment=size // 2)
        argument, message = refused(**{"q": shape, "k": shape, "v": shape, name: x}, dtype=dtype)
        assert argument == name
        assert f"at a multiple of {size} bytes" in message
    with pytest.raises(ArgumentError, match=rf"^out must be at a multiple of {size} bytes"):
        p.output(array(*shape, dtype=dtype, misalignment=size // 2))
    assert p.output(array(*shape, dtype=dtype, misalignment=size)).shape == shape
    empty = array(1, 1, 0, 64, dtype=dtype, misalignment=1)
    assert problem(q=empty, k=shape, dtype=dtype).q.tokens == 0


def test_layout_nhd_swaps_heads_and_tokens():
    p = problem(q=(2, 64, 8, 64), k=(2, 100, 2, 64), layout="NHD")
    assert p.q.shape == (2, 8, 64, 64)
    assert p.q.strides == (64 * 8 * 64, 64, 8 * 64, 1)
    assert p.output_shape == (2, 64, 8, 64)


@pytest.mark.parametrize("head_dim", [8, 40, 64, 248, 256, 264, 512])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_all_types_and_multiples_of_8(head_dim, dtype):
    assert problem(q=(1, 1, 1, head_dim), k=(1, 1, 1, head_dim), dtype=dtype).q.dtype in Type


@pytest.mark.parametrize("head_dim", [0, 4, 12, 257, 513, 520])
def test_other_head_dims_are_refused(head_dim):
    argument, message = refused(q=(1, 1, 5, head_dim), k=(1, 1, 5, head_dim))
    assert argument == "head_dim"
    assert "a multiple of 8 from 8 to 512" in message
    assert f"got {head_dim}" in message


def test_empty_sizes_are_accepted():
    for q, k in (
        ((0, 8, 64, 64), (0, 2, 64, 64)),
        ((2, 8, 0, 64), (2, 2, 64, 64)),
        ((2, 8, 64, 64), (2, 2, 0, 64)),
        ((2, 0, 64, 64), (2, 2, 64, 64)),
        ((2, 0, 64, 64), (2, 0, 64, 64)),
    ):
        assert problem(q=q, k=k).q.shape == q


@pytest.mark.parametrize(
    ("call", "argument", "words"),
    [
        ({"q": (8, 64, 64)}, "q.shape", "head_dim] for layout 'HND', got (8, 64, 64)"),
        ({"k": (2, 2, 100, 64, 1)}, "k.shape", "[batch, head, token, head_dim]"),
        ({"q": (2, 8, 64), "layout": "NHD"}, "q.shape", "[batch, token, head, head_dim]"),
        ({"k": (3, 2, 100, 64)}, "k.shape", "of batch 2 and head_dim 64, got (3, 2, 100, 64)"),
        ({"k": (2, 2, 100, 72)}, "k.shape", "of batch 2 and head_dim 64"),
        ({"v": (2, 2, 99, 64)}, "v.shape", "(2, 2, 100, 64), the shape of k, but for"),
        ({"v": (2, 1, 100, 64)}, "v.shape", "got (2, 1, 100, 64)"),
        ({"k": (2, 3, 100, 64)}, "num_q_heads", "a multiple of num_kv_heads, which is 3, got 8"),
        ({"k": (2, 0, 100, 64)}, "num_q_heads", "which is 0"),
        ({"k": (2, 16, 100, 64)}, "num_q_heads", "which is 16"),
        ({"dtype": "float64"}, "q.dtype", "one of ['float16', 'bfloat16', 'float32']"),
        ({"dtype": "int8"}, "q.dtype", "got 'int8'"),
        (
            {"v": array(2, 2, 100, 64, dtype="float32")},
            "v.dtype",
            "float16, the dtype of q, got 'float32'",
        ),
        ({"k": array(2, 2, 100, 64, device=(2, 1))}, "k.device", "(2, 0), the device of q"),
        ({"v": array(2, 2, 100, 64, device=(1, 0))}, "v.device", "got (1, 0)"),
        ({"q": array(2, 8, 2**30 + 1, 64)}, "q.shape", "tokens, got (2, 8, 1073741825, 64)"),
        ({"q": array(2, 2**20, 2**12, 64)}, "q.shape", "<= 2147483647, got (2, 1048576, 4096, 64)"),
        (
            {"q": (1, 2**16, 1, 64), "k": (1, 2**16, 1, 64)},
            "k.shape",
            "at most 65535 heads, got (1, 65536, 1, 64)",
        ),
        ({"layout": "BHND"}, "layout", "one of ['HND', 'NHD'], got 'BHND'"),
        ({"layout": None}, "layout", "got None"),
        ({"scheme": "int9"}, "scheme", "got 'int9'"),
        ({"scheme": None}, "scheme", "got None"),
        ({"is_causal": 1}, "is_causal", "True or False, got 1"),
        ({"return_lse": "yes"}, "return_lse", "True or False, got 'yes'"),
        ({"scale": -0.1}, "scale", "at least 0; for a negative one negate q, got -0.1"),
        ({"scale": float("nan")}, "scale", "finite, in float32 too, got nan"),
        ({"scale": float("inf")}, "scale", "finite"),
        ({"scale": 3e38}, "scale", "finite, in float32 too"),
        ({"scale": 10**400}, "scale", "finite, in float32 too"),
        ({"scale": -(10**400)}, "scale", "at least 0"),
        ({"scale": np.float16("inf")}, "scale", "finite, in float32 too, got"),
        ({"scale": np.float32("inf")}, "scale", "finite, in float32 too, got"),
        ({"scale": np.float64("nan")}, "scale", "finite, in float32 too, got"),
        ({"scale": "0.5"}, "scale", "a number or None, got '0.5'"),
        ({"scale": True}, "scale", "a number or None"),
        ({"scale": np.ones(1)}, "scale", "a number or None"),
    ],
)
def test_errors_name_argument_value_and_expectation(call, argument, words):
    found, message = refused(**call)
    assert found == argument
    assert message.startswith(f"{argument} must be ")
    assert words in message


def test_the_largest_numbers_of_tokens_and_heads():
    assert problem(q=array(1, 1, 2**30, 64), k=array(1, 1, 2**30, 64)).q.tokens == 2**30
    assert "at most 1073741824 tokens" in refused(q=array(1, 1, 2**30 + 1, 64))[1]
    heads = 2**16 - 1
    assert problem(q=(1, heads, 1, 64), k=(1, heads, 1, 64)).k.heads == heads


def test_groups_of_channels_are_whole():
    grouped = replace(PRESETS["int8-token"], name="own", q_scope="group", k_scope="group")
    size = grouped.qk_group
    assert (
        problem(q=(1, 1, 5, 2 * size), k=(1, 1, 5, 2 * size), scheme=grouped).q.shape[3] == 2 * size
    )
    expected = f"head_dim must be whole groups of {size} channels, got {size + 8}"
    for name in "qk":
        with pytest.raises(ArgumentError) as error:
            operand_of(name, array(1, 1, 5, size + 8), grouped, "HND")
        assert str(error.value) == expected
    # V has scales of other kinds.
    assert operand_of("v", array(1, 1, 5, size + 8), grouped, "HND").shape[3] == size + 8
    assert operand_of("k", array(1, 1, 5, size + 8), PRESETS["int8"], "HND").shape[3] == size + 8


@pytest.mark.parametrize("heads", [2**23 - 1, 2**23])
def test_rows_of_few_tokens_count_as_many_as_channels(heads):
    # A head with fewer tokens than 256 channels still has a scale, and a sum, for each channel.
    q, k = array(1, heads, 2, 64), array(1, 1, 2, 64)
    if heads * 256 < 2**31:
        assert problem(q=q, k=k).q.heads == heads
        return
    argument, message = refused(q=q, k=k)
    assert argument == "q.shape"
    assert "batch * heads * max(tokens, 256) <= 2147483647" in message


def test_rows_of_many_tokens_are_counted():
    assert problem(q=array(1, 2**15 - 1, 2**16, 64), k=array(1, 1, 2, 64)).q.tokens == 2**16
    assert refused(q=array(1, 2**15, 2**16, 64), k=array(1, 1, 2, 64))[0] == "q.shape"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [0, 1, 0.25, np.float16(0.5), np.float32(0.5), np.int64(2)])
def test_numbers_of_any_kind_are_scales(scale):
    assert problem(scale=scale).softmax_scale == float(scale)


def test_the_largest_scale_is_that_of_float32_in_base_2():
    largest = float(np.finfo(np.float32).max) / np.log2(np.e)
    assert problem(scale=largest).softmax_scale == largest
    assert refused(scale=np.nextafter(largest, np.inf))[0] == "scale"


def quantized(operand="k", shape=(2, 2, 100, 64), scheme="int8", device=GPU, dtype="float16"):
    how = coding(PRESETS[scheme], operand)
    return Coded(shape, dtype, device, operand, scheme, how)


def test_quantized_operands_take_the_place_of_arrays():
    assert problem(k=quantized(), v=quantized("v")).k.coded
    # Q of this scheme is quantized as the default has it; K, which has scales of tokens, and V
    # stay arrays.
    q, kv = quantized("q", (2, 8, 64, 64)), (2, 2, 100, 64)
    assert problem(q=q, k=kv, v=kv, scheme="int8-fp16").q.coded
    # The type of what was quantized decides nothing but the output's.
    q = quantized("q", (2, 8, 64, 64), dtype="float32")
    assert problem(q=q).q.dtype is Type.fp32
    expected = Operand((2, 2, 100, 64), (), Type.fp16, aligned=True, coded=True)
    assert problem(k=quantized(), v=quantized("v")).k == expected
    # Tensors have no layout.
    p = problem(q=(2, 64, 8, 64), k=quantized(), v=(2, 100, 2, 64), layout="NHD")
    assert p.k.shape == (2, 2, 100, 64)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        ({"k": quantized("v")}, "k"),
        ({"k": quantized(), "scheme": "int8-block"}, "k"),
        ({"k": quantized(), "scheme": "int8-token"}, "k"),
        ({"v": quantized("v"), "scheme": "int8-token"}, "v"),
        ({"k": quantized(), "v": (2, 2, 100, 64), "scheme": "int8-fp16"}, "k"),
        ({"k": quantized(), "scheme": "int-flash"}, "k"),
        ({"k": quantized(), "scheme": "fp16"}, "k"),
        ({"v": quantized("v"), "scheme": "int8-fp16"}, "v"),
        ({"v": quantized("v", scheme="int-flash"), "scheme": "int8-block"}, "v"),
        ({"v": quantized("v", shape=(2, 2, 99, 64))}, "v.shape"),
        ({"k": quantized(device=(1, 0)), "v": (2, 2, 100, 64)}, "k.device"),
    ],
)
def test_quantized_operands_must_fit_scheme_and_place(call, argument):
    assert refused(**call)[0] == argument


def test_message_says_how_an_operand_was_quantized():
    _, message = refused(k=quantized(), scheme="int8-block")
    assert (
        message
        == "k must be k as scheme 'int8-block' has it, got \"k quantized for scheme 'int8'\""
    )


def test_aligned_means_rows_at_multiples_of_16_bytes():
    def aligned(**fields):
        return problem(q=array(2, 8, 64, 64)._replace(**fields)).q.aligned

    assert aligned()
    assert not aligned(misalignment=2)
    # Of two batches only the second begins elsewhere.
    assert not aligned(strides=(8 * 64 * 64 + 4, 64 * 64, 64, 1))
    assert not aligned(strides=(8 * 64 * 68, 64 * 68, 68, 1))
    assert aligned(strides=(8 * 64 * 72, 64 * 72, 72, 1))
    # A stride that is never taken does not count.
    assert problem(q=array(1, 8, 64, 64, strides=(3, 4096, 64, 1)), k=(1, 2, 9, 64)).q.aligned


def test_attended_as_it_is_only_with_offsets_of_32_bits():
    def direct(stride):
        x = array(1, 1, 64, 64, strides=(0, 0, stride, 1))
        return problem(q=x, k=(1, 1, 5, 64)).q.direct

    assert direct(64)
    assert direct(2**24)
    assert not direct(2**26)
    assert not direct(-64)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (
            array(2, 8, 64, 32),
            "out.shape must be (2, 8, 64, 64), the shape of q, got (2, 8, 64, 32)",
        ),
        (
            array(2, 64, 8, 64),
            "out.shape must be (2, 8, 64, 64), the shape of q, got (2, 64, 8, 64)",
        ),
        (
            array(2, 8, 64, 64, dtype="float32"),
            "out.dtype must be float16, the dtype of q, got 'float32'",
        ),
        (
            array(2, 8, 64, 64, device=(2, 1)),
            "out.device must be (2, 0), the device of q, got (2, 1)",
        ),
    ],
)
def test_output_must_be_like_q(out, words):
    p = problem()
    assert p.output(array(2, 8, 64, 64)).shape == (2, 8, 64, 64)
    with pytest.raises(ArgumentError) as error:
        p.output(out)
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 8, 64, 64), (8 * 64 * 64, 64 * 64, 0, 1)),
        ((2, 8, 64, 64), (8 * 64 * 64, 64 * 64, 63, 1)),
        ((2, 8, 64, 64), (0, 64 * 64, 64, 1)),
        # Of two heads the second ends where the one of the next batch has begun.
        ((3, 2, 64, 64), (64 * 64, 64 * 64, 64, 1)),
        ((3, 2, 64, 64), (2 * 64 * 64 - 1, 64 * 64, 64, 1)),
    ],
)
def test_elements_of_the_output_are_distinct(shape, strides):
    with pytest.raises(ArgumentError) as error:
        problem(q=shape, k=(shape[0], 1, 9, 64)).output(array(*shape, strides=strides))
    assert str(error.value) == (f"out.strides must be those of distinct elements, got {strides}")


def test_output_may_have_any_distinct_elements():
    p = problem()
    p.output(array(2, 8, 64, 64, strides=(64, 128, 8 * 128, 1)))
    p.output(array(2, 8, 64, 64, strides=(8 * 64 * 64, 64 * 64, -64, -1)))
    # One batch only: its stride is never taken.
    problem(q=(1, 1, 64, 64), k=(1, 1, 9, 64)).output(array(1, 1, 64, 64, strides=(0, 0, 64, 1)))
    huge = array(1, 8, 64, 64, strides=(2**40, 64 * 64, 64, 1))
    problem(q=(1, 8, 64, 64), k=(1, 1, 9, 64)).output(huge)
    # Without elements there is nothing to share.
    nothing = array(2, 8, 0, 64, strides=(0, 0, 0, 0))
    problem(q=(2, 8, 0, 64), k=(2, 2, 9, 64)).output(nothing)


@pytest.mark.parametrize(
    ("strides", "misalignment", "is_own"),
    [
        ((8 * 64 * 64, 64 * 64, 64, 1), 0, True),
        ((8 * 64 * 66, 64 * 66, 66, 1), 4, True),
        ((8 * 64 * 65, 64 * 65, 65, 1), 0, False),
        ((8 * 64 * 65 + 64, 64 * 65 + 1, 64, 1), 0, False),
        ((8 * 64 * 64 + 1, 64 * 64, 64, 1), 0, False),
        ((8 * 64 * 64, 64 * 64, 64, 1), 2, False),
        ((8 * 64 * 64, 64 * 64, 1, 64), 0, False),
    ],
)
def test_kernels_write_pairs_of_channels(strides, misalignment, is_own):
    """Where they cannot, the output is made contiguous first and then copied."""
    contiguous = (8 * 64 * 64, 64 * 64, 64, 1)
    out = array(2, 8, 64, 64, strides=strides)._replace(misalignment=misalignment)
    expected = (strides, True) if is_own else (contiguous, False)
    assert problem().output_strides(out) == expected


def test_strides_of_an_output_that_kernels_make():
    assert problem().output_strides(None) == ((8 * 64 * 64, 64 * 64, 64, 1), True)
    in_nhd = problem(q=(2, 64, 8, 64), k=(2, 100, 2, 64), layout="NHD")
    assert in_nhd.output_strides(None) == ((64 * 8 * 64, 8 * 64, 64, 1), True)
    # A stride that is never taken may be odd, and an output that is not like q is refused here too.
    alone = array(1, 1, 64, 64, strides=(3, 5, 64, 1))
    assert problem(q=(1, 1, 64, 64), k=(1, 1, 9, 64)).output_strides(alone) == ((3, 5, 64, 1), True)
    with pytest.raises(ArgumentError, match=r"^out\.shape"):
        problem().output_strides(array(2, 8, 64, 32))


def test_arrays_of_our_own_are_contiguous_and_aligned():
    assert compact((2, 3, 5, 8), Type.bf16) == Operand(
        (2, 3, 5, 8), (120, 40, 8, 1), Type.bf16, aligned=True, coded=False
    )


def test_coding_tells_what_quantizers_differ_in():
    base = Scheme("base")
    assert coding(base, "k") == coding(replace(base, name="other", smooth_v="mean"), "k")
    assert coding(base, "k") != coding(replace(base, smooth_k="mean"), "k")
    assert coding(base, "v") != coding(replace(base, smooth_v="mean"), "v")
    assert coding(PRESETS["fp16"], "q") is None
    # Blocks of keys matter only to scales of blocks.
    half = Scheme("half", pv="fp16", p_range="row", p_block=64)
    assert coding(base, "k") == coding(half, "k")
    assert coding(replace(base, k_scope="block", v_scope="channel"), "k") != coding(
        replace(half, k_scope="block"), "k"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rotate", True),
        ("rotate", False),
        ("rotate", "yes"),
        ("rotate", None),
        ("name", None),
        ("name", 8),
        ("p_terms", True),
        ("p_terms", 1.0),
        ("p_block", 128.0),
        ("p_split", True),
        ("p_split", 4.0),
        ("qk_group", "64"),
        ("qk", b"int8"),
    ],
)
def test_fields_of_schemes_have_their_types(field, value):
    with pytest.raises(ArgumentError, match=rf"^scheme\.{field} must be "):
        Scheme(**{"name": "own", field: value})


def test_strings_of_other_kinds_are_taken_for_names():
    assert Scheme(np.str_("own"), qk=np.str_("int8")) == Scheme("own")
