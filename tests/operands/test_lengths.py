"""What a call says of lengths: checked, and what the host makes of it."""

import numpy as np
import pytest

from cuattn.arrays.view import Array
from cuattn.errors import ArgumentError
from cuattn.operands.lengths import LengthArrays, Lengths
from cuattn.operands.masks import MaskBlocks
from cuattn.operands.mods import ModKey, Mods
from cuattn.operands.operand import Coded
from cuattn.operands.problem import Options, Problem
from cuattn.operands.score_arrays import ScoreArrays
from cuattn.presets import PRESETS
from cuattn.specs.coding import coding
from cuattn.specs.mods import ModSource

GPU = (2, 0)
DEFAULTS = Options(scheme="int8", scale=None, is_causal=False, return_lse=False, layout="HND")


def array(*shape, dtype="float16", **fields):
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Array(**{"shape": shape, "strides": strides, "dtype": dtype, "device": GPU} | fields)


def bounds(batch, **fields):
    return array(batch + 1, **{"dtype": "int32"} | fields)


PACKED = {"cu_seqlens_q": bounds(3), "cu_seqlens_k": bounds(3)}


def problem(lengths, scores=None, *, q=(100, 8, 64), k=(200, 2, 64), **options):
    arrays = array(*q), array(*k), array(*k)
    scores = scores or ScoreArrays()
    return Problem.of(*arrays, DEFAULTS._replace(**options), scores, LengthArrays(**lengths))


def test_sequences_that_lie_end_to_end():
    found = problem(PACKED, max_seqlen_q=60)
    assert found.lengths == Lengths(3, True, False, 60, 200, 200)
    assert found.lengths.key_pitch == (1 + 3) * 128
    assert (found.q.shape, found.k.shape) == ((1, 8, 100, 64), (1, 2, 200, 64))
    assert (found.output_shape, found.lse_shape) == ((100, 8, 64), (8, 100))
    assert (found.batch, found.seqlen_q, found.seqlen_kv, found.group) == (3, 60, 200, 4)
    assert found.by_axes((512, 64, 1)) == (0, 64, 512, 1)


def test_layout_of_arrays_with_three_axes_is_one():
    assert problem(PACKED, layout="NHD").q == problem(PACKED).q


def test_sequences_in_slots():
    used = {"seqused_k": array(2, dtype="int32")}
    found = problem(used, q=(2, 8, 100, 64), k=(2, 2, 200, 64))
    assert found.lengths == Lengths(2, False, True, 100, 200, 200)
    assert found.lengths.key_pitch == 200
    assert found.output_shape == (2, 8, 100, 64)


def test_limits_beyond_all_tokens_are_these():
    found = problem(PACKED, max_seqlen_q=1000, max_seqlen_k=1000)
    assert (found.seqlen_q, found.seqlen_kv) == (100, 200)


def test_window_is_that_of_the_longest():
    found = problem(PACKED, window_size=(50, 150), max_seqlen_k=60, max_seqlen_q=20)
    assert found.scores.window_size == (50, -1)


@pytest.mark.parametrize(
    ("lengths", "name"),
    [
        ({"cu_seqlens_q": bounds(3)}, "cu_seqlens_k"),
        ({"cu_seqlens_k": bounds(3)}, "cu_seqlens_q"),
        ({**PACKED, "cu_seqlens_k": bounds(2)}, "cu_seqlens_k.shape"),
        ({**PACKED, "cu_seqlens_q": array(2, 2, dtype="int32")}, "cu_seqlens_q.shape"),
        ({"cu_seqlens_q": bounds(-1), "cu_seqlens_k": bounds(-1)}, "cu_seqlens_q.shape"),
        ({**PACKED, "cu_seqlens_q": bounds(3, dtype="int64")}, "cu_seqlens_q.dtype"),
        ({**PACKED, "cu_seqlens_k": bounds(3, device=(1, 0))}, "cu_seqlens_k.device"),
        ({**PACKED, "cu_seqlens_k": bounds(3, strides=(2,))}, "cu_seqlens_k.strides"),
        ({**PACKED, "cu_seqlens_k": bounds(3, misalignment=2)}, "cu_seqlens_k"),
        ({**PACKED, "seqused_k": array(4, dtype="int32")}, "seqused_k.shape"),
    ],
)
def test_wrong_arrays_are_named(lengths, name):
    with pytest.raises(ArgumentError) as caught:
        problem(lengths)
    assert str(caught.value).startswith(f"{name} ")


@pytest.mark.parametrize("value", [-1, 1.5, True, "100"])
@pytest.mark.parametrize("name", ["max_seqlen_q", "max_seqlen_k"])
def test_wrong_limits_are_named(name, value):
    with pytest.raises(ArgumentError, match=name):
        problem(PACKED, **{name: value})


def test_limits_are_for_sequences_that_lie_end_to_end():
    with pytest.raises(ArgumentError, match="max_seqlen_q"):
        problem({}, q=(2, 8, 100, 64), k=(2, 2, 200, 64), max_seqlen_q=100)


def test_arrays_of_four_axes_are_refused():
    with pytest.raises(ArgumentError, match=r"q\.shape"):
        problem(PACKED, q=(1, 8, 100, 64))


def test_a_mask_is_refused():
    with pytest.raises(ArgumentError, match="attn_mask"):
        problem(PACKED, ScoreArrays(attn_mask=array(100, 200, dtype="bool")))


def test_a_mask_with_a_map_is_refused():
    blocks = MaskBlocks((1, 1, 100, 200), (20000, 20000, 200, 1), "bool", GPU)
    with pytest.raises(ArgumentError, match="attn_mask must be None"):
        problem(PACKED, ScoreArrays(attn_mask=blocks))


@pytest.mark.parametrize("name", ["score_mod", "mask_mod"])
@pytest.mark.parametrize("lengths", [PACKED, {"seqused_k": array(2, dtype="int32")}], ids=len)
def test_expressions_are_as_without_lengths(lengths, name):
    shapes = {} if lengths is PACKED else {"q": (2, 8, 100, 64), "k": (2, 2, 200, 64)}
    mods = Mods(**{name: ModKey(name, "q < kv", (), ())})
    found = problem(lengths, mods=mods, **shapes)
    assert getattr(found.scores, name) == ModSource(name, "q < kv")
    assert (found.scores.first_sequence, found.scores.first_head) == (0, 0)


def test_v_may_have_another_head_dim():
    q, k, v = array(100, 8, 64), array(200, 2, 64), array(200, 2, 96)
    found = Problem.of(q, k, v, DEFAULTS, ScoreArrays(), LengthArrays(**PACKED))
    assert found.output_shape == (100, 8, 96)


@pytest.mark.parametrize("is_packed", [True, False])
def test_quantized_operands_are_refused(is_packed):
    scheme = PRESETS["int8"]
    shape = (100, 8, 64) if is_packed else (3, 8, 100, 64)
    k = Coded((3, 8, 100, 64), "float16", GPU, "k", "int8", coding(scheme, "k"))
    lengths = LengthArrays(**PACKED) if is_packed else LengthArrays(None, None, bounds(2))
    with pytest.raises(ArgumentError, match="k must be"):
        Problem.of(array(*shape), k, array(*shape), DEFAULTS, ScoreArrays(), lengths)


def test_too_many_tiles_are_refused():
    many = {"cu_seqlens_q": bounds(2**20), "cu_seqlens_k": bounds(2**20)}
    with pytest.raises(ArgumentError, match="max_seqlen_q"):
        problem(many, q=(2**20, 8, 64), k=(200, 2, 64))
    assert problem(many, q=(2**20, 8, 64), k=(200, 2, 64), max_seqlen_q=16).seqlen_q == 16
