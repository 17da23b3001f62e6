"""The page of `cuattn bench --html`: complete, sound, and also of a run that was cut short."""

import re
from dataclasses import replace

import pytest
from helpers.bench_results import HEAD_DIMS, IQR, LENGTHS, changed, nothing, results
from html_pages import BROWSER, Page, has_its_own_colors, is_shown_as_it_should_be, is_sound

from cuattn.bench.ceilings import intensity, share
from cuattn.bench.compare import compare
from cuattn.bench.series import Series, end_to_end_tops
from cuattn.bench.tradeoff import tradeoffs
from cuattn.cli.bench import page as bench_page
from cuattn.cli.bench import speed as bench_speed
from cuattn.cli.bench.findings import findings
from cuattn.cli.bench.look import look
from cuattn.cli.label_points import LINE, WIDTH, beside
from cuattn.cli.labels import spread
from cuattn.cli.table import number
from cuattn.presets import PRESETS

SECTIONS = ("changes", "ceilings", "speed", "errors", "roofline", "decode", "figures", "left-out")


def written(folder, *given):
    file = folder / "bench.html"
    bench_page.write(file, *given)
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run():
    return results(schemes=tuple(PRESETS))


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A page with all that there can be, and its file."""
    folder = tmp_path_factory.mktemp("page")
    old = changed(run, factors={"int8-fast": 1.2}, errors={"fp8": 1.5})
    return written(folder, run, compare(old, run)), folder / "bench.html"


def test_page_is_sound_and_refers_to_nothing_outside(whole):
    page = is_sound(whole[0])
    assert set(SECTIONS) <= set(page.names)


def test_pictures_have_the_colours_of_the_page(whole):
    has_its_own_colors(whole[0])


def test_page_has_every_picture_with_title_and_words(whole):
    page = Page(whole[0])
    speed, errors, roofs, decoding = 2 * 2 * len(HEAD_DIMS), 2 * len(HEAD_DIMS), 2, 4
    pictures = speed + errors + roofs + decoding
    assert page.tags.count("svg") == page.tags.count("figcaption") == pictures
    for title in ("D 128, 32 heads, causal: kernel only", "outliers, D 64", "Bandwidth by shape"):
        assert f">{title}<" in whole[0]


def test_names_of_all_series_stand_beside_the_lines(run, whole):
    pictures = re.findall(r"<h3>D \d+, .*?: end to end</h3>.*?</figure>", whole[0], re.DOTALL)
    assert len(pictures) == 2 * len(HEAD_DIMS)
    for picture in pictures:
        for series in {Series.of(t) for t in run.timings if t.case == "prefill"}:
            assert f">{series.name}</text>" in picture


def test_tables_have_every_figure_with_spread_and_share(run, whole):
    cells = Page(whole[0]).cells
    for t in run.timings:
        of_ceiling = share(run.ceilings, t)
        shown = [t.kernel_ms, t.end_to_end_ms, end_to_end_tops(t), t.tops, t.gbps, 100 * IQR]
        shown += [of_ceiling and 100 * of_ceiling]
        if t.case in ("prefill", "decode"):
            assert {number(x) for x in shown if x is not None} <= set(cells)
    for ceiling in run.ceilings:
        assert {number(ceiling.rate), number(100 * ceiling.iqr / ceiling.rate)} <= set(cells)
    for a in run.accuracy:
        assert number(100 * a.metrics["relative_l1"]) in cells


def test_head_says_what_ran_and_where(whole):
    head = whole[0].partition("</header>")[0]
    for words in ("NVIDIA H200", "2026-11-20 12:34 UTC", "8e3adcb4b666", "30 rounds", "torch 2.11"):
        assert words in head


def test_findings_are_those_of_the_data(run):
    fastest, accurate, choices, decoding = findings(run)
    at = [t for t in run.timings if (t.case, t.seqlen_kv, t.head_dim) == ("prefill", 16384, 128)]
    speeds = {Series.of(t): end_to_end_tops(t) for t in at if not t.is_causal}
    best = max((series for series in speeds if series.is_ours), key=speeds.get)
    assert fastest.startswith(f"Of cuattn's schemes {best.name} is the fastest")
    assert f"{number(speeds[best])} TOPS" in fastest
    other = max((series for series in speeds if not series.is_ours), key=speeds.get)
    assert f"{number(speeds[best] / speeds[other])} times the speed of {other.name}" in fastest
    assert "is int8-fp16, with a relative L1 error of 0.900 %" in accurate
    assert "where fp16 has 0.0300 %" in accurate
    (tradeoff, *_) = (x for x in tradeoffs(run) if x.errors_on.head_dim == 128)
    for name in re.search(r"accurate, (.*);", choices)[1].replace(" and ", ", ").split(", "):
        point = next(p for p in tradeoff.points.values() if p.name == name)
        assert not any(
            p.speed > point.speed and p.error < point.error for p in tradeoff.points.values()
        )
    assert "kv-int4" in decoding


def test_errors_are_held_against_the_nearest_shape(run):
    found = list(tradeoffs(run))
    assert len(found) == 2 * len(HEAD_DIMS)
    assert {x.timed_on.seqlen_kv for x in found} == {4096}
    other = replace(run, timings=[t for t in run.timings if t.seqlen_kv != 4096])
    assert {x.timed_on.seqlen_kv for x in tradeoffs(other)} <= {1024, 16384}


def test_intensity_counts_what_has_to_move(run):
    n, d = 4096, 128
    found = {
        t.scheme: intensity(t)
        for t in run.timings
        if (t.case, t.seqlen_kv, t.head_dim, t.is_causal) == ("prefill", n, d, False)
    }
    # 4 n operations a row and channel; of each token and channel Q, K, V and two bytes of O.
    assert found["int8"] == pytest.approx(4 * n / 5)
    assert found["fp16"] == pytest.approx(4 * n / 8)
    assert found["int8-fp16"] == pytest.approx(4 * n / 6)
    assert found["int4"] == pytest.approx(4 * n / 4)
    (row,) = [t for t in run.timings if t.scheme == "kv-int8" and t.batch == 1]
    assert intensity(row) == pytest.approx(4 * 32 / 8 / (2 * 1.04))
    assert intensity(replace(row, gbps=None)) is None


def test_left_out_and_changes_are_said(whole):
    assert "flash_attn does not import: &lt;no such module&gt;" in whole[0]
    assert re.search(r"\d+ faster, 0 slower, \d+ within noise; 4 of \d+ errors changed", whole[0])


def test_page_without_comparison_has_none(run, tmp_path):
    text = written(tmp_path, results(lengths=(4096,), head_dims=(64,)), None)
    assert 'id="changes"' not in text
    is_sound(text)


@pytest.mark.parametrize("part", ["nothing", "ceilings", "decode", "prefill", "accuracy", "single"])
def test_page_of_a_part(tmp_path, part):
    """A run that is cut short, or of a GPU that lacks something, has a page, too."""
    small = results(schemes=("int8", "fp16"), lengths=(1024, 4096), head_dims=(64,))
    of_case = {case: [t for t in small.timings if t.case == case] for case in ("prefill", "decode")}
    given = {
        "nothing": {},
        "ceilings": {"ceilings": small.ceilings},
        "decode": {"timings": of_case["decode"]},
        "prefill": {"timings": of_case["prefill"], "ceilings": small.ceilings[2:]},
        "accuracy": {"accuracy": [replace(a, metrics={}) for a in small.accuracy]},
        "single": {**vars(small), "timings": [of_case["prefill"][0], of_case["decode"][0]]},
    }
    page = is_sound(written(tmp_path, nothing(**given[part]), None))
    pictures = {"decode": 4, "prefill": 4, "single": 7}
    assert page.tags.count("svg") == pictures.get(part, 0)


def test_a_single_length_has_a_mark_of_every_series(run):
    for series in {Series.of(t) for t in run.timings}:
        assert look(series).marker


def test_batches_that_differ_are_said_and_one_has_the_line():
    run = results(schemes=("int8",), lengths=LENGTHS, head_dims=(64,))
    short = [t for t in run.timings if t.case == "prefill" and t.seqlen_kv == 1024]
    more = [replace(t, batch=16) for t in short]
    cards = list(bench_speed.draw(replace(run, timings=more + run.timings), "x"))
    assert "Batch 16 at 1024, 4 at 4096, 4 at 16384." in cards[0].text


def test_names_at_ends_keep_apart_and_in_order():
    places = spread([0.5, 0.5, 0.5, 0.9], 0.1)
    assert places == pytest.approx([0.4, 0.5, 0.6, 0.9])
    crowded = spread([0.95, 0.96, 0.97], 0.1)
    assert crowded == pytest.approx([0.8, 0.9, 1.0])
    assert spread([0.0, 0.01], 0.1) == pytest.approx([0.0, 0.1])
    assert spread([], 0.1) == []


def test_names_of_points_do_not_overlap():
    at = [(50.0 + 2 * i, 60.0 + 3 * i) for i in range(8)]
    names = ["int8-block"] * 8
    places = beside(names, at, (0, 0, 200, 160))
    boxes = [
        (x + p.x, y + p.y - LINE / 2, x + p.x + 10 * WIDTH, y + p.y + LINE / 2)
        for (x, y), p in zip(at, places, strict=True)
        if p is not None
    ]
    assert len(boxes) >= 5
    for i, a in enumerate(boxes):
        assert min(a[:2]) >= 0
        assert a[2] <= 200
        assert a[3] <= 160
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert beside(["x" * 99], [(5.0, 5.0)], (0, 0, 50, 50)) == [None]


if BROWSER:

    def test_browser_shows_the_page(whole, tmp_path):
        is_shown_as_it_should_be(tmp_path, whole[1])
