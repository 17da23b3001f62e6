"""Figures in the documents are those of the committed record, which its own test keeps current."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import real_model
from cuattn.bench.cases import DECODE
from cuattn.errors import ArgumentError, CuattnError
from cuattn.records.record import (
    Accuracy,
    Ceiling,
    Counts,
    FirstCall,
    LanguageModelRow,
    PhaseRun,
    Record,
    Sanitizer,
    Shape,
    Timing,
    load,
)
from tools import figures
from tools.picture import LABELLED, LENGTHS, Point, front, picture, points
from tools.tables import names
from tools.tables.names import ABOUT
from tools.tables.record_figures import MISSED, STATE, Figures, pair, percent, show, table
from tools.tables.sections import SECTIONS

SQUARE = asdict(
    Shape(
        batch=4,
        num_q_heads=32,
        num_kv_heads=32,
        seqlen_q=4096,
        seqlen_kv=4096,
        head_dim=128,
        is_causal=False,
    )
)


def prefill(implementation, scheme, kernel_ms, end_to_end_ms, **shape):
    return Timing(
        **{**SQUARE, **shape},
        case="prefill",
        implementation=implementation,
        scheme=scheme,
        family="any",
        kernel_ms=kernel_ms,
        end_to_end_ms=end_to_end_ms,
        tops=1000 / kernel_ms,
    )


def error(scheme, distribution, shape=(), **metrics):
    about = {"scheme": scheme, "family": "any", "distribution": distribution}
    return Accuracy(**{**SQUARE, **dict(shape)}, **about, metrics=metrics)


RECORD = Record(
    digest="0123456789abcdef",
    gpu="NVIDIA Test",
    versions={"nvrtc": "13.0"},
    stale="no such GPU since May",
    tests=Counts(10, 0, 0),
    sanitizer=Sanitizer(0, 0),
    accuracy=[
        error("int8", "normal", relative_l1=0.0131),
        error("int8", "minilm-embedding", cosine=0.99998),
    ],
    timings=[prefill("cuattn", "int8", 2.0, 2.5), prefill("pytorch-flash", "fp16", 4.0, 4.0)],
    ceilings=[
        Ceiling(what="copy", instruction="cudaMemcpyAsync", rate=4000.4, iqr=12.25),
        Ceiling(what="int8", instruction="mma", rate=700.0, iqr=1.0),
        Ceiling(what="int8", instruction="wgmma", rate=1000.0, iqr=1.0),
        Ceiling(what="fp16", instruction="wgmma", rate=500.0, iqr=1.0),
    ],
    first_calls=[
        FirstCall(call="int8", head_dim=128, kernels=3, cold_s=1.5, warm_s=0.31),
        FirstCall(call="KVCache, 4 bits", head_dim=128, kernels=3, cold_s=1.0, warm_s=1.25),
    ],
)


@pytest.mark.parametrize("name", figures.DOCUMENTS)
def test_documents_have_the_figures_of_the_record(name):
    text = (figures.ROOT / name).read_text(encoding="utf-8")
    assert text == figures.filled(text, load(figures.RECORD)), "run: python -m tools.figures"


def test_the_picture_is_that_of_the_record():
    found = Figures(load(figures.RECORD))
    drawn = picture(found)
    assert figures.PICTURE.read_text(encoding="utf-8") == drawn, "run: python -m tools.figures"
    others = [names.SHORT[p.name] for n in LENGTHS for p in points(found, n) if not p.ours]
    assert names.SHORT["pytorch-cudnn"] in others
    for name in (*LABELLED, *others):
        assert f">{name}</text>" in drawn


def test_every_baseline_has_a_short_name():
    assert set(names.SHORT) == set(names.BASELINES)


def test_the_front_is_what_nothing_beats_in_both():
    panel = [
        Point("int8-fast", 900, 3.0),
        Point("cudnn-fp8", 950, 6.0),
        Point("int8-block", 800, 3.0),  # slower, and no better
        Point("int8", 700, 1.3),
        Point("comfy-kitchen", 500, 1.3),
        Point("fp16", 650, 0.03),
    ]
    assert [p.name for p in front(panel)] == ["cudnn-fp8", "int8-fast", "int8", "fp16"]


def test_claims_are_ranges_over_all_shapes():
    timings = [
        *(prefill("cuattn", "int8-fast", 1.0, 2.0, **shape) for shape in ({}, LONG, CAUSAL)),
        *(
            prefill("cudnn-fp8", "fp8", ms, 4.0, **shape)
            for ms, shape in ((0.9, {}), (1.5, LONG), (1.2, CAUSAL))
        ),
    ]
    said = SECTIONS["claims"](Figures(Record("0", "NVIDIA Test", {}, timings=timings)))
    assert "0.90 to 1.50 times as fast as its FP8 kernel" in said.replace("\n ", "")
    assert STATE in said.replace("\n ", "")


def in_both_states(case, implementation, scheme, cold_ms, sustained_ms, model=None):
    row = asdict(prefill(implementation, scheme, cold_ms, cold_ms))
    for state, ms in (("cold", cold_ms), ("sustained", sustained_ms)):
        about = {"case": case, "kernel_ms": ms, "end_to_end_ms": ms, "tops": 1000 / ms}
        yield Timing(**{**row, **about, "state": state, "model": model})


def test_cold_and_sustained_times_are_apart():
    timings = [
        *in_both_states("comparison", "cuattn", "int8-fast", 1.0, 1.25),
        *in_both_states("comparison", "cudnn-fp8", "fp8", 1.0, 2.5),
        *in_both_states("comparison", "pytorch-cudnn", "fp16", 2.0, 2.0),
    ]
    figures = Figures(Record("0", "NVIDIA Test", {}, timings=timings))
    header, _, *rows = map(cells, SECTIONS["comparison"](figures).splitlines())
    assert header[1:] == ["4 × 32, N 4096, D 128"]
    assert {row[0]: row[1] for row in rows} == {
        "`int8-fast`": "1000 / 800",
        "cuDNN, FP8 in and out": "1000 / 400",
        "PyTorch, cuDNN, float16": "500",
    }
    said = SECTIONS["claims"](figures).replace("\n ", "")
    assert "it is 1.60 and 2.00 times" in said
    assert "sustained" not in SECTIONS["claims"](Figures(RECORD))


def test_nothing_is_said_of_what_was_not_measured():
    timings = [prefill("cuattn", "int8-fast", 1.0, 2.0), prefill("pytorch-cudnn", "fp16", 1.5, 1.5)]
    phases = {"real_model": PhaseRun("0", 1.0, left_out="no weights")}
    record = Record("0", "NVIDIA Test", {}, timings=timings, phases=phases)
    claims = SECTIONS["claims"](Figures(record)).replace("\n ", "")
    assert "1.50 times as fast as cuDNN's FP16 kernel, by" in claims
    assert "FP8" not in claims
    assert "cuDNN FP8" not in SECTIONS["summary"](Figures(record))
    assert "no such figures" in SECTIONS["minilm"](Figures(record))
    origin = SECTIONS["origin"](Figures(record)).replace("\n", " ")
    assert origin.endswith(
        "Without figures in this run: PyTorch, FlashAttention-2, float16; cuDNN, FP8 in and out; "
        "SageAttention 1, INT8 Q Kᵀ; comfy-kitchen, full INT8; real_model (no weights)."
    )


def test_kernels_of_mma_are_beside_flash_attention():
    rows = [prefill("cuattn", "int8", 2.0, 2.5), prefill("pytorch-flash", "fp16", 4.0, 4.0)]
    timings = [replace(row, case="mma-sync") for row in rows]
    # What the GPU's own kernels take is no row of these.
    timings.append(prefill("cuattn", "int8-block", 1.0, 1.0))
    figures = Figures(Record("0", "NVIDIA Test", {}, timings=timings))
    header, _, *found = map(cells, SECTIONS["mma-sync"](figures).splitlines())
    column = header.index("D 128, N 4096")
    assert {row[0]: row[column] for row in found} == {"`int8`": "500 / 400", FLASH: "250"}
    assert "no such figures" in SECTIONS["mma-sync"](Figures(RECORD))


def test_models_have_the_best_of_other_libraries_beside_ours():
    timings = [
        cold
        for name, scheme, ms in (
            ("cuattn", "int8-fast", 1.0),
            ("pytorch-flash", "fp16", 4.0),
            ("pytorch-cudnn", "fp16", 2.0),
        )
        for cold, _ in [in_both_states("model", name, scheme, ms, ms, "Llama")]
    ]
    figures = Figures(Record("0", "NVIDIA Test", {}, timings=timings))
    (row,) = map(cells, SECTIONS["models"](figures).splitlines()[2:])
    shape = "4 × 32, N 4096, D 128"
    assert row == ["Llama", shape, "–", "–", "–", "1.00", "2.00", "cuDNN FP16"]


def test_caches_have_bits_errors_and_times_beside_what_others_publish():
    case = asdict(DECODE[0])
    timings = [
        Timing(
            **case, case="decode", implementation=name, scheme=scheme, family="any", kernel_ms=ms
        )
        for name, scheme, ms in (
            ("cuattn", "kv-int8", 0.07),
            ("pytorch-flash", "fp16", 0.2),
            ("pytorch-cudnn", "fp16", 0.15),
        )
    ]
    judged = [
        LanguageModelRow(
            model="m",
            text=text,
            tokens=2048,
            scheme="exact",
            cache="int8",
            perplexity=12.0,
            delta_nll=0.0,
            kl=kl,
            same_top1=0.99,
            where="gpu",
        )
        for text, kl in (("a", 2e-4), ("b", 4e-4))
    ]
    found = Figures(Record("0", "NVIDIA Test", {}, timings=timings, language_model=judged))
    rows = [cells(x) for x in SECTIONS["caches"](found).splitlines()[2:]]
    of_names = {row[0]: row[1:] for row in rows}
    assert of_names["float16, the fastest kernel"] == ["16", "–", "–", "150"]
    assert of_names["`bits=8`"] == ["8.50 / 8.25", "KL 3.0e-04", "–", "70"]
    assert of_names["`bits=4`"] == ["4.66 / 4.66", "–", "–", "–"]
    for row in rows[4:]:
        assert "https://" in row[0] or row[0] in rows[rows.index(row) - 1][0]
        assert row[3:] == ["–", "–"]


def test_missed_goals_are_those_of_all_tables():
    tables = [name for name in SECTIONS if name.startswith("goals") and name != "goals-missed"]
    found = Figures(load(figures.RECORD))
    missed = [
        cells(row)[:3]
        for name in tables
        for row in SECTIONS[name](found).splitlines()
        if cells(row)[-1] == MISSED
    ]
    shown = [cells(row) for row in SECTIONS["goals-missed"](found).splitlines()[2:]]
    assert sorted(shown) == sorted(missed)
    assert len(tables) == 8


def test_status_names_what_has_not_run():
    said = SECTIONS["status"](Figures(RECORD)).replace("\n", " ")
    assert "NVIDIA Test, where 10 tests passed and 0 failed" in said
    assert "sm_80, sm_86, sm_89, sm_90, sm_100 and sm_120 kernels are compiled, not run" in said


def test_every_section_is_in_a_document():
    texts = [(figures.ROOT / name).read_text(encoding="utf-8") for name in figures.DOCUMENTS]
    shown = {name for text in texts for _, name, _ in figures.BLOCK.findall(text)}
    assert shown == set(SECTIONS)


def test_figures_are_found_by_what_they_are_about():
    found = Figures(RECORD)
    assert found.tops("int8", 128) == (500.0, 400.0)
    assert found.faster("int8", "pytorch-flash", 128) == (2.0, 1.6)
    assert found.error("int8", "normal") == 0.0131
    assert found.embedding("int8") == pytest.approx(2e-5)
    assert found.tops("fp16", 128) == (None, None)  # the baseline's time is not the scheme's
    assert found.faster("int8", "comfy-kitchen", 128) == (None, None)
    assert found.error("int8", "peaked") is None


def test_a_document_is_filled_between_its_marks():
    text = "before\n<!-- figures: origin -->\nold\n<!-- end -->\nafter\n"
    new = figures.filled(text, RECORD)
    assert new.startswith("before\n<!-- figures: origin -->\nOne NVIDIA Test; NVRTC 13.0.")
    assert new.endswith("\n<!-- end -->\nafter\n")
    assert "old\n" not in new
    assert "no such GPU since May" in new.replace("\n", " ")
    assert figures.filled(new, RECORD) == new


@pytest.mark.parametrize(
    "text",
    [
        "<!-- figures: origin -->\n",
        "<!-- figures: unheard-of -->\n<!-- end -->",
        "<!-- figures: host -->\n<!-- figures: origin -->\n<!-- end -->",
    ],
)
def test_marks_that_are_wrong_are_an_error(text):
    with pytest.raises(ArgumentError):
        figures.filled(text, RECORD)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_can_be_made_of_an_incomplete_record(name):
    assert SECTIONS[name](Figures(RECORD))
    assert SECTIONS[name](Figures(Record(digest="0", gpu="NVIDIA Test", versions={})))


def test_goals_say_what_was_missed():
    rows = SECTIONS["goals"](Figures(RECORD)).splitlines()
    (reached,) = [row for row in rows if row.startswith("| `int8` over FlashAttention-2")]
    assert reached.split("|")[2:5] == [" ≥ 1.40 ", "     2.00 ", "     yes "]
    (unknown,) = [row for row in rows if "peaked" in row]
    assert unknown.rstrip("| ").endswith("–")


FLASH = "PyTorch, FlashAttention-2, float16"
LONG = {"seqlen_q": 16384, "seqlen_kv": 16384}
SHORT = {"seqlen_q": 1024, "seqlen_kv": 1024}
CAUSAL = {"is_causal": True}


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_goals_on_hopper_are_measured_where_they_are_set():
    timings = [
        prefill("cuattn", "int8-fast", 0.8, 1.0, **LONG),
        prefill("cuattn", "int8-block", 1.25, 2.0, **LONG),
        prefill("cuattn", "int8", 1.6, 1.7, **SHORT),
        prefill("cuattn", "int8-block", 1.25, 2.0, **SHORT),
        # Others' times are no scheme's, and a causal one is another goal.
        prefill("cudnn-fp8", "int8-fast", 0.1, 0.1),
        prefill("cuattn", "int8-fast", 1.25, 1.25, **LONG, is_causal=True),
    ]
    accuracy = [
        *(
            error("int8-block", "normal", x, relative_l1=e)
            for x, e in ((SHORT, 0.015), (LONG, 0.019))
        ),
        error("int8-block", "sharp", LONG, relative_l1=0.0036),
        error("int8-fast", "sharp", relative_l1=0.001),
        error("int8-fast", "minilm-embedding", cosine=0.9997),
    ]
    record = Record("0", "NVIDIA Test", {}, accuracy=accuracy, timings=timings)
    rows = {
        row[0]: row[1:]
        for row in map(cells, SECTIONS["goals-hopper"](Figures(record)).splitlines())
    }
    assert rows["`int8-fast`, TOPS, kernel, N 16384"] == ["≥ 1080", "1250", "yes"]
    assert rows["`int8-fast`, TOPS, kernel, N 4096"] == ["≥ 970", "–", "–"]
    assert rows["`int8-fast`, TOPS, kernel, causal, N 16384"] == ["≥ 980", "800", "**no**"]
    assert rows["`int8-block`, TOPS, kernel, N 16384"] == ["≥ 940", "800", "**no**"]
    assert rows["`int8-block`, TOPS, end to end, N 16384"] == ["≥ 880", "500", "**no**"]
    assert rows["`int8`, TOPS, kernel, D 64, N 16384"] == ["≥ 500", "–", "–"]
    assert rows["the fastest full INT8, TOPS, kernel, N 1024"] == ["≥ 700", "800", "yes"]
    assert rows["`int8-block`, error in %, normal, N 1024 to 16384"] == ["≤ 1.80", "1.90", "**no**"]
    assert rows["`int8-block`, error in %, sharp, N 16384"] == ["≤ 0.40", "0.36", "yes"]
    assert rows["`int8-fast`, error in %, sharp, N 16384"] == ["≤ 0.60", "–", "–"]
    assert rows["`int8-fast`, 1 − cosine of MiniLM's embedding, 10⁻⁵"] == ["≤ 40.0", "30.0", "yes"]


def test_what_is_slower_and_less_accurate_is_off_the_front():
    # milliseconds, error on normal and on sharp inputs
    points = {
        "int8": (2.0, 0.013, 0.003),
        "int8-block": (1.0, 0.016, 0.004),
        "cudnn-fp8": (1.25, 0.059, 0.041),
        "comfy-kitchen": (2.5, 0.016, 0.003),
        "pytorch-flash": (4.0, 0.0003, 0.0002),
        "pytorch-cudnn": (5.0, 0.0002999, 0.0002),
        "sageattention-1": (1.0, 0.013, None),
    }
    timings, accuracy = [], []
    for name, (ms, *errors) in points.items():
        ours = name.startswith("int8")
        timings.append(prefill("cuattn" if ours else name, name if ours else "any", ms, ms))
        for distribution, e in zip(("normal", "sharp"), errors, strict=True):
            accuracy.append(error(name, distribution, relative_l1=e))
    record = Record("0", "NVIDIA Test", {}, accuracy=accuracy, timings=timings)
    long, short = SECTIONS["pareto"](Figures(record)).split("\n\n")
    assert len(long.splitlines()) == 2
    assert [cells(row) for row in short.splitlines()[2:]] == [
        ["`int8-block`", "on the front", "1000", "1.60", "0.40"],
        ["cuDNN, FP8 in and out", "beaten by `int8-block`", "800", "5.90", "4.10"],
        ["`int8`", "on the front", "500", "1.30", "0.30"],
        ["comfy-kitchen, full INT8", "beaten by `int8`", "400", "1.60", "0.30"],
        [FLASH, "on the front", "250", "0.030", "0.020"],
        ["PyTorch, cuDNN, float16", f"beaten by {FLASH}", "200", "0.030", "0.020"],
    ]


def test_speeds_have_the_short_case_where_it_is_measured():
    timings = [
        prefill("cuattn", "int8", 2.0, 2.5, **SHORT),
        prefill("cudnn-fp8", "fp8", 1.0, 4.0, **SHORT),
    ]
    figures = Figures(Record("0", "NVIDIA Test", {}, timings=timings))
    header, _, *rows = map(cells, SECTIONS["speed"](figures).splitlines())
    column = header.index("D 128, N 1024")
    assert {row[0]: row[column] for row in rows} == {
        "`int8`": "500 / 400",
        "cuDNN, FP8 in and out": "1000 / 250",
    }
    assert "1024" not in SECTIONS["speed-causal"](figures)
    (ratio,) = SECTIONS["ratios"](figures).splitlines()[2:]
    assert cells(ratio)[column] == "0.50 / 1.60"


def test_kernels_are_held_against_the_best_rate_of_their_types():
    header, _, *rows = map(cells, SECTIONS["shares"](Figures(RECORD)).splitlines())
    column = header.index("D 128, N 4096")
    # int8 has 500 of 1000 TOPS, FlashAttention-2 250 of 500.
    assert {row[0]: (row[1], row[column]) for row in rows} == {
        "`int8`": ("1000", "50"),
        FLASH: ("500", "50"),
    }
    without = Figures(Record("0", "NVIDIA Test", {}, timings=RECORD.timings))
    assert len(SECTIONS["shares"](without).splitlines()) == 2


def test_ceilings_have_their_units():
    rows = SECTIONS["ceilings"](Figures(RECORD)).splitlines()[2:]
    assert cells(rows[0]) == ["copying memory", "cudaMemcpyAsync", "4000 GB/s", "12.2"]
    assert cells(rows[2]) == ["INT8 products", "wgmma", "1000 TOPS", "1.0"]


def test_first_calls_are_as_slow_as_the_slowest():
    found = Figures(RECORD)
    rows = [cells(row) for row in SECTIONS["first-calls"](found).splitlines()[2:]]
    assert rows == [["`int8`", "3", "1.50", "0.31"], ["KVCache, 4 bits", "3", "1.00", "1.25"]]
    goals = [cells(row) for row in SECTIONS["goals-first-calls"](found).splitlines()[2:]]
    assert [row[1:] for row in goals] == [["≤ 5.00", "1.50", "yes"], ["≤ 1.00", "1.25", "**no**"]]
    sentence = SECTIONS["first-call"](found).replace("\n ", "")
    assert "takes up to 1.50 s" in sentence
    assert sentence.endswith("up to 1.25 s.")


def test_results_say_from_which_length_on_quantizing_is_worth_its_time():
    timings = [
        prefill("cuattn", name, ms, ms, **shape)
        for name, *times in (("int8", 3.0, 2.0), ("int8-block", 1.0, 1.0), ("fp16", 2.0, 2.5))
        for shape, ms in zip(({}, LONG), times, strict=True)
    ]
    narrow = {"head_dim": 64}
    timings += [prefill("cuattn", name, 2.0, 2.0, **narrow) for name in ("int8", "fp16")]
    said = SECTIONS["worth"](Figures(Record("0", "NVIDIA Test", {}, timings=timings)))
    wide, narrow = said.replace("\n ", "").splitlines()[-2:]
    assert wide == (
        "- D = 128: `int8` from 16384 tokens on (500 against 400), not at 4096 (333 against 500); "
        "`int8-block` from 4096 tokens on (1000 against 500)."
    )
    assert narrow == "- D = 64: `int8` not even at 4096 (500 against 500)."


def test_presets_stand_above_the_baselines_that_were_there():
    rows = [cells(row) for row in SECTIONS["presets"](Figures(RECORD)).splitlines()[2:]]
    assert [row[0] for row in rows] == [*(f"`{name}`" for name in ABOUT), "PyTorch"]
    assert rows[0][2:] == ["1.31", "–", "–", "500 / 400"]
    assert rows[-1] == ["PyTorch", "FlashAttention-2, float16", "–", "–", "–", "250"]


def test_cells():
    assert (show(None), show(0.25, ".1f", 100)) == ("–", "25.0")
    assert [percent(x) for x in (0.0131, 0.00034, None)] == ["1.31", "0.034", "–"]
    assert (pair((500.2, 400.0)), pair((500.2, 500.1)), pair((None, None))) == (
        "500 / 400",
        "500",
        "–",
    )
    assert table(["a", "b"], [["one", "2"]]) == "| a   |   b |\n| --- | --: |\n| one |   2 |"


METRICS = {"relative_l1": 0.01, "cosine": 0.9999}


def run_example(command, **changes):
    """Stand in for examples/real_model.py on a GPU."""
    results = {"scheme": "int8", "layers": [METRICS] * 6, "embedding": METRICS}
    document = {"tokens": 510, "on_gpu": True, "schemes": [results], **changes}
    Path(command[command.index("--json") + 1]).write_text(json.dumps(document), encoding="utf-8")
    return 0


def family(scheme, case, dtype):
    """Stand in for `cuattn.bench.ours.family`."""
    return f"{scheme} {case.head_dim} {dtype}"


def test_real_model_becomes_rows_of_the_record():
    rows = list(real_model.accuracy(run_example, family))
    layers = [f"minilm-layer-{i}" for i in range(6)]
    assert [row.distribution for row in rows] == [*layers, "minilm-embedding"]
    assert {(row.seqlen_kv, row.family) for row in rows} == {(510, "int8 32 float32")}
    found = Figures(Record(digest="0", gpu="NVIDIA Test", versions={}, accuracy=rows))
    assert found.layer("int8", 5) == 0.01
    assert found.embedding("int8") == pytest.approx(1e-4)


def test_a_real_model_that_failed_or_had_no_gpu_is_an_error():
    with pytest.raises(CuattnError, match="failed"):
        list(real_model.accuracy(lambda command: 1, family))
    with pytest.raises(CuattnError, match="no GPU"):
        list(real_model.accuracy(lambda command: run_example(command, on_gpu=False), family))
