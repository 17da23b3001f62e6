"""What "auto" is in a call, by tables that are made up."""

import math

import pytest

import cuattn
from cuattn.auto import choose as choosing
from cuattn.auto.choose import auto_scheme, choose
from cuattn.auto.table import FORMAT, SpeedRow, SpeedTable
from cuattn.auto.tables import Found, shipped
from cuattn.errors import ArgumentError, NoGPUError
from cuattn.presets import AUTO, PRESETS
from cuattn.records.rows import Shape, shape_of


def shape(batch=4, heads=8, kv_heads=8, queries=1024, keys=1024, head_dim=64, is_causal=False):
    return Shape(
        batch=batch,
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        seqlen_q=queries,
        seqlen_kv=keys,
        head_dim=head_dim,
        is_causal=is_causal,
    )


def row(fp16, int8, block, **sizes):
    us = {"fp16": fp16, "int8": int8, "int8-block": block}
    return SpeedRow(**vars(shape(**sizes)), us=us)


def found(*rows):
    table = SpeedTable(
        format=FORMAT, gpu="a GPU", compute_capability="80", digest="0", rows=[*rows]
    )
    return Found(table, "a table")


def square(n, **sizes):
    return {"queries": n, "keys": n, **sizes}


# Quantizing is worth its time from 2048 tokens on, of blocks sooner.
TABLE = found(
    row(10.0, 15.0, 14.0, **square(512)),
    row(20.0, 22.0, 19.0, **square(1024)),
    row(80.0, 70.0, 60.0, **square(2048)),
    row(100.0, 50.0, 40.0, **square(1024, head_dim=128, is_causal=True)),
)


@pytest.mark.parametrize(
    ("tokens", "auto", "block"),
    [
        (512, "fp16", "fp16"),
        (1024, "fp16", "int8-block"),
        (2048, "int8", "int8-block"),
        # Both neighbours count, and what is larger than the call by more than half a step does not.
        (700, "fp16", "fp16"),
        (1300, "fp16", "fp16"),
        (1500, "fp16", "int8-block"),
        # Longer calls gain only; shorter ones than all that was measured are float16.
        (65536, "fp16", "int8-block"),
        (300, "fp16", "fp16"),
        (1, "fp16", "fp16"),
        (0, "fp16", "fp16"),
    ],
)
def test_the_nearest_measured_shapes_decide(tokens, auto, block):
    call = shape(**square(tokens))
    assert choose(call, "auto", TABLE).scheme == auto
    assert choose(call, "auto-block", TABLE).scheme == block


def test_masks_and_padded_head_dimensions_are_apart():
    causal = {"head_dim": 120, "is_causal": True}
    assert choose(shape(**causal), "auto", TABLE).scheme == "int8"
    for other in ({**causal, "is_causal": False}, {**causal, "head_dim": 136}):
        choice = choose(shape(**other), "auto-block", TABLE)
        assert (choice.scheme, choice.rows) == ("fp16", ())


@pytest.mark.parametrize(
    "smaller", [{"batch": 2}, {"heads": 4, "kv_heads": 4}, {"queries": 64}, {"keys": 64}]
)
def test_a_call_that_is_smaller_in_any_way_is_float16(smaller):
    fast = found(row(100.0, 10.0, 10.0))
    assert choose(shape(), "auto", fast).scheme == "int8"
    assert choose(shape(**smaller), "auto", fast).scheme == "fp16"


def test_shared_heads_of_k_and_v_only_help():
    shared = found(row(100.0, 10.0, 10.0, kv_heads=2))
    assert choose(shape(kv_heads=1), "auto", shared).scheme == "int8"
    assert choose(shape(kv_heads=8), "auto", shared).scheme == "fp16"


def test_a_gain_within_noise_is_none():
    assert choose(shape(), "auto", found(row(100.0, 98.5, 98.5))).scheme == "fp16"
    assert choose(shape(), "auto", found(row(100.0, 97.5, 98.5))).scheme == "int8"


def test_without_a_table_nothing_is_quantized():
    choice = choose(shape(), "auto-block", None)
    assert choice.scheme == "fp16"
    assert "cuattn bench --auto-table" in str(choice)


def test_the_reason_has_the_times():
    choice = choose(shape(**square(2048)), "auto-block", TABLE)
    assert str(choice) == (
        "int8-block: 80 us with 'fp16', 70 us with 'int8', 60 us with 'int8-block' at 4 x 8 heads "
        "over 8, 2048 tokens over 2048, head_dim 64, by a table"
    )
    assert choice.rows == (TABLE.table.rows[2],)


def test_candidates_are_presets_and_the_first_is_float16():
    for candidates in AUTO.values():
        assert candidates[0] == "fp16"
        assert {*candidates} <= {*PRESETS}


@pytest.mark.parametrize("name", AUTO)
def test_at_every_measured_shape_of_the_shipped_tables_nothing_is_slower(name):
    for table in shipped():
        for measured in table.rows:
            choice = choose(measured, name, Found(table, ""))
            fastest = min(measured.us[x] for x in AUTO[name])
            assert measured.us[choice.scheme] <= measured.us["fp16"]
            # What is given away for certainty, at most.
            assert measured.us[choice.scheme] <= fastest / (1 - choosing.MARGIN)


def test_layouts_and_shapes_of_the_public_function():
    (table,) = [x for x in shipped() if x.gpu == "NVIDIA H200"]
    measured = max(table.rows, key=lambda row: math.prod(vars(shape_of(row)).values()))
    q = (measured.batch, measured.num_q_heads, measured.seqlen_q, measured.head_dim)
    k = (measured.batch, measured.num_kv_heads, measured.seqlen_kv, measured.head_dim)
    options = {"is_causal": measured.is_causal, "gpu": table.gpu}
    choice = auto_scheme(q, k, **options)
    assert choice.rows == (measured,)
    swapped = [(x[0], x[2], x[1], x[3]) for x in (q, k)]
    assert auto_scheme(*swapped, layout="NHD", **options) == choice
    assert cuattn.auto_scheme is auto_scheme


H200 = {"gpu": "NVIDIA H200"}


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([(1, 2, 3)], H200, "shape must be four whole numbers"),
        ([(1, 2, 0, 64)], H200, "shape must be four whole numbers"),
        ([(1, 3, 64, 64), (1, 2, 64, 64)], H200, "q.shape must be of a number of heads"),
        ([(1, 2, 64, 64)], {"scheme": "int8"}, "scheme must be one of .'auto', 'auto-block'"),
        ([(1, 2, 64, 64)], {"layout": "DNH"}, "layout must be 'HND' or 'NHD'"),
        ([(1, 2, 64, 64)], {"gpu": "mine"}, "gpu must be one that a table comes with: .*H200"),
        ([(1, 2, 64, 520)], H200, "shape must be four whole numbers .* up to 512"),
        ([(1, 2, 64, 60)], H200, "shape must be four whole numbers"),
        ([(1, 2, True, 64)], H200, "shape must be four whole numbers"),
        ([5], H200, "shape must be four whole numbers"),
        ([(1, 2, 64, 64)], {"scheme": []}, "scheme must be one of"),
        ([(1, 2, 64, 64)], {"layout": None}, "layout must be"),
        ([(1, 2, 64, 64)], {"is_causal": "no"}, "is_causal must be True or False"),
        ([(1, 2, 64, 64)], {"causal": True}, "is_causal"),
    ],
)
def test_wrong_arguments_are_named(shapes, options, message):
    with pytest.raises(ArgumentError, match=message):
        auto_scheme(*shapes, **options)


def test_the_gpu_at_hand_is_the_default(monkeypatch):
    def current_device():
        raise NoGPUError("no usable GPU: hidden by the test")

    monkeypatch.setattr(choosing, "current_device", current_device)
    with pytest.raises(NoGPUError):
        auto_scheme((1, 2, 64, 64))
    monkeypatch.setattr(choosing, "current_device", lambda: "a device")
    monkeypatch.setattr(choosing, "table_for", {"a device": TABLE}.get)
    choice = auto_scheme((4, 8, 2048, 64))
    assert choice == choose(shape(**square(2048)), "auto", TABLE)
