"""Tables of options of scores; and that nothing else is made of these rows."""

from dataclasses import asdict, replace
from types import SimpleNamespace

from benchmarks import tables
from benchmarks.feature_cases import CAUSAL, DEEP, LONG, PACKED, SCHEMES, WHOLE
from cuattn.auto.table import SpeedTable
from cuattn.bench.compare import compare
from cuattn.bench.results import Results
from cuattn.cli.bench import speed
from cuattn.records.record import Record
from cuattn.records.rows import Timing
from tools.tables.record_figures import NOTHING, Figures
from tools.tables.sections import SECTIONS


def timings(feature, case, tops=100.0, **ms):
    """Return rows of kernels; names with underscores."""
    for name, x in ms.items():
        name = name.replace("_", "-")
        ours = name in SCHEMES
        yield Timing(
            **asdict(case),
            case="prefill",
            implementation="cuattn" if ours else name,
            scheme=name if ours else "fp16",
            family="any",
            kernel_ms=x,
            end_to_end_ms=x,
            tops=tops,
            feature=feature,
        )


ROWS = [
    *timings("plain", CAUSAL, int8_block=0.9, int8=1.0, fp16=1.5),
    *timings("sinks", CAUSAL, int8_block=0.9, int8=1.25, fp16=1.5),
    *timings("plain", LONG, int8_block=10.0, int8=12.0, pytorch_flash=20.0),
    *timings("window-1023", LONG, int8_block=1.5, int8=3.0, pytorch_flash=3.0),
    *timings("varlen", PACKED, int8_block=10.1, fp16=9.0),
    *timings("varlen-singles", PACKED, int8_block=10.0, fp16=10.0),
    *timings("dv-128", DEEP, int8_block=4.0, fp16=5.0),
    *timings("mask-documents", WHOLE, int8_block=1.0, pytorch_sdpa_mask=40.0),
]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_have_each_option_beside_plain():
    shown = Figures(Record("0", "NVIDIA Test", {}, timings=ROWS))
    _, _, *rows = map(cells, SECTIONS["features"](shown).splitlines())
    assert rows[0] == ["N 4096, causal", "none", "0.90", "1.00", "1.50", ""]
    assert rows[3] == [
        *("N 16384, causal", "`window_size=(1023, 0)`", "1.50", "3.00", "–"),
        "FlashAttention-2 3.00",
    ]
    _, _, *goals = map(cells, SECTIONS["goals-features"](shown).splitlines())
    assert [row[2:] for row in goals] == [
        ["0.25", "**no**"],
        ["–", "–"],
        ["0.80", "**no**"],
        ["–", "–"],
        ["–", "–"],
        ["–", "–"],
        ["1.01", "yes"],
        ["1.25", "**no**"],
        ["2.00", "yes"],
        ["40.00", "yes"],
        ["–", "–"],
    ]
    empty = Figures(Record("0", "NVIDIA Test", {}))
    assert SECTIONS["features"](empty) == NOTHING


def test_what_is_not_about_options_has_no_rows_of_them():
    without = Record("0", "NVIDIA Test", {})
    shown, found = (Figures(replace(without, timings=x)) for x in ([], ROWS))
    for name in ("claims", "speed", "speed-causal", "summary", "ratios", "shares", "origin"):
        assert SECTIONS[name](found) == SECTIONS[name](shown), name
    assert tables.show(replace(without, timings=ROWS)) == tables.show(without)
    about = {"gpu": "NVIDIA Test", "compute_capability": "90", "digest": "0"}
    assert SpeedTable.of(ROWS, **about).rows == []
    assert speed.groups(SimpleNamespace(timings=ROWS)) == {}
    about_run = {
        "digest": "0",
        "gpu": "NVIDIA Test",
        "measured_at": "",
        "rounds": 1,
        "versions": {},
    }
    results = Results(**about_run, timings=ROWS)
    compared = compare(results, replace(results, timings=[]))
    assert (compared.only_old, compared.times) == ([], [])
