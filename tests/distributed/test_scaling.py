"""Predictions: that they follow from rates and bytes, and what they say of known cases."""

import pytest

from cuattn.cli import main
from cuattn.distributed import NVLINK, Link, nvlink, plan_parallel
from cuattn.errors import ArgumentError
from cuattn.records.record import Record, Timing, load, records

SHAPE = 1, 32, 65536, 128


def found(gpus, link=NVLINK, **options):
    plan = plan_parallel(SHAPE, gpus, link, **options)
    return plan, {x.engine: x for x in plan.predictions}


def test_one_gpu_is_what_it_is():
    _, by_engine = found(1)
    for prediction in by_engine.values():
        assert prediction.efficiency == pytest.approx(1.0, abs=1e-6)
        assert prediction.exposed == 0
        assert prediction.bytes_sent == 0
    record = load(records()[0])
    rates = [
        row.tops
        for row in record.timings
        if row.is_plain("prefill") and row.scheme == "int8-block" and row.head_dim == 128
    ]
    rate = 4 * 32 * 65536**2 * 128 / by_engine["ring"].seconds * 1e-12
    assert 0.95 * max(rates) < rate <= max(rates)


def test_a_ring_hides_what_it_sends_until_links_are_slow():
    _, fast = found(8)
    assert fast["ring"].exposed == 0
    assert fast["all-gather"].exposed > 0
    _, slow = found(8, Link(1e9))
    assert slow["ring"].exposed > 0
    sent = slow["ring"].bytes_sent
    assert slow["ring"].seconds > sent / 1e9
    assert sent == pytest.approx(7 / 8 * 65536 * 32 * 256, rel=0.01)


def test_the_plan_takes_the_fastest():
    plan, by_engine = found(8)
    assert plan.engine == min(by_engine, key=lambda name: by_engine[name].seconds)
    assert "predicted for 8 GPUs" in str(plan)
    assert "ulysses" not in found(64)[1]
    four, _ = found(8, Link(1e9), wire="int4")
    eight, _ = found(8, Link(1e9))
    assert four.predictions[0].bytes_sent < eight.predictions[0].bytes_sent


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((SHAPE, 0), {}, "gpus must be a whole number"),
        ((SHAPE, 2, -1.0), {}, "bandwidth must be bytes a second"),
        (
            (SHAPE, 2, "fast"),
            {},
            "bandwidth must be bytes a second, above 0, or a Link, got 'fast'",
        ),
        ((SHAPE[1:], 2), {}, r"shape must be \(batch, num_q_heads, tokens, head_dim\), whole"),
        (
            (SHAPE, 2),
            {"num_kv_heads": 7},
            "num_kv_heads must be .* divides the 32 heads of Q, got 7",
        ),
        ((SHAPE, 2), {"scheme": "int9"}, "scheme must be"),
        (((1, 32, 4096, 72), 2), {}, "scheme must be one that the record has times of"),
    ],
)
def test_mistakes_are_named(arguments, options, message):
    with pytest.raises(ArgumentError, match=message):
        plan_parallel(*arguments, **options)


def test_the_command_refuses_heads_that_no_call_could_have(capsys):
    assert main(["scale", "--kv-heads", "7"]) == 2
    message = "num_kv_heads must be a whole number that divides the 32 heads of Q, got 7"
    assert message in capsys.readouterr().err


def test_the_command_says_that_it_predicts(capsys):
    assert main(["scale", "--causal", "--kv-heads", "8", "--gpus", "2,16"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("PREDICTED from rates of one NVIDIA H200: int8-block, 16384 tokens")
    assert [line.split()[:2] for line in out.splitlines() if "GPUs" in line[:12]] == [
        ["2", "GPUs"],
        ["16", "GPUs"],
    ] * 2
    assert main(["scale", "--gpus", "2,x"]) == 2
    assert "whole numbers with commas" in capsys.readouterr().err


def test_a_link_is_what_messages_have_been_seen_to_take():
    def row(size, ms, implementation="NCCLGroup"):
        shape = dict.fromkeys(("batch", "num_q_heads", "num_kv_heads", "seqlen_q", "seqlen_kv"), 1)
        about = {"case": "link", "implementation": implementation, "scheme": "", "family": "-"}
        times = {"end_to_end_ms": ms, "bytes_sent": size}
        return Timing(**shape, head_dim=1, is_causal=False, **about, **times)

    rows = [row(10**5, 0.0305), row(10**8, 0.53), row(10**9, 9.0, "MPIGroup"), row(10**6, 0.04)]
    link = Link.seen(Record(digest="", gpu="", versions={}, timings=rows))
    assert link.bandwidth == pytest.approx(2e11)
    assert link.latency == pytest.approx(30e-6)
    assert Link.seen(Record(digest="", gpu="", versions={}, timings=rows[:1])) is None
    assert nvlink().bandwidth > 1e11
