"""The tables of docs/papers.md and docs/schemes.md, from a record that the emulation makes."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks import measurements, papers
from cuattn.bench.cases import ACCURACY
from cuattn.presets import PRESETS
from cuattn.records.record import Accuracy, Record
from cuattn.reference import distributions, exact
from cuattn.reference.emulate import attention
from cuattn.reference.metrics import metrics
from tools.tables import schemes as scheme_tables
from tools.tables.record_figures import Figures
from tools.tables.sections import SECTIONS

PAPERS = [name for name in SECTIONS if name.startswith("paper-") or name == "rotation"]
# Tokens of the emulated inputs, whatever the case has: enough for what the documents say.
TOKENS = 512


def emulated(point, schemes):
    """Yield the rows of one input, as the GPU check does."""
    case, distribution = point
    sizes = asdict(replace(case, num_q_heads=1, num_kv_heads=1, seqlen_q=TOKENS, seqlen_kv=TOKENS))
    del sizes["is_causal"]
    q, k, v = (x.astype(np.float16) for x in distributions.make(distribution, **sizes))
    wanted, _ = exact.attention(q, k, v)
    for scheme in schemes:
        o, _ = attention(q, k, v, scheme=scheme)
        about = {"scheme": scheme.name, "family": "emulated", "distribution": distribution}
        yield Accuracy(**asdict(case), **about, metrics=metrics(o, wanted))


@pytest.fixture(scope="module")
def figures():
    points = papers.points()
    rows = [row for point, schemes in points.items() for row in emulated(point, schemes)]
    return Figures(Record("0", "emulated", {}, accuracy=rows))


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_name_stands_for_one_scheme():
    schemes = [scheme for table in papers.TABLES for scheme in table.rows.values()]
    named = {scheme.name: scheme for scheme in schemes}
    assert all(named[scheme.name] == scheme for scheme in schemes)
    assert all(named[name] == PRESETS[name] for name in named.keys() & PRESETS.keys())


def test_everything_is_measured_once():
    points = measurements.accuracy_points()
    for schemes in points.values():
        assert len({scheme.name for scheme in schemes}) == len(schemes)
    for point, schemes in papers.points().items():
        assert set(schemes) <= set(points[point])
    usual = [point for point in points if point[0] in ACCURACY and point[0].seqlen_kv <= 4096]
    assert {name for _, name in usual} == set(distributions.DISTRIBUTIONS)
    assert all(set(PRESETS.values()) <= set(points[point]) for point in usual)


@pytest.mark.parametrize("name", PAPERS)
def test_every_cell_comes_from_the_record(figures, name):
    empty = SECTIONS[name](Figures(Record("0", "emulated", {})))
    filled = SECTIONS[name](figures)
    assert len(filled.splitlines()) == len(empty.splitlines())
    for row in map(cells, filled.splitlines()):
        # What neither the papers nor the emulation have.
        if row[0].startswith("its release"):
            continue
        assert "–" not in (row[2:] if "published" in empty else row[1:])


def test_published_figures_stand_beside_ours(figures):
    rows = {
        row[0]: row[1:] for row in map(cells, SECTIONS["paper-smoothing"](figures).splitlines())
    }
    published, common_mean, *_ = rows["Q + K"]
    assert published == "99.46 / .0648 / .0334"
    cosine, l1, rmse = (float(x) for x in common_mean.split(" / "))
    about = ("int4-fp16", "common-mean", 128, 4096)
    assert cosine == pytest.approx(100 * figures.metric("cosine", *about), abs=5e-4)
    assert l1 == pytest.approx(figures.metric("relative_l1", *about), abs=5e-5)
    assert rmse == pytest.approx(figures.metric("rmse", *about), rel=0.05)


def test_int_flash_has_one_table_for_each_input(figures):
    normal, uniform = SECTIONS["paper-int-flash"](figures).split("\n\n")
    for name, text in (("normal", normal), ("uniform", uniform)):
        header, _, *rows = map(cells, text.splitlines())
        assert header[0].startswith(f"{name}:")
        assert header[1:] == [f"N {n}" for n in (1024, 2048, 4096, 8192, 16384)]
        fp8, flash = (figures.error(x, name, 64, 1024) for x in ("fp8", "int-flash"))
        assert rows[-1][1] == f"{100 * (1 - flash / fp8):.0f}"


def test_what_the_documents_say_of_the_tables_holds(figures):
    def errors(table, distribution):
        (case,) = table.cases
        return {
            title: figures.error(scheme.name, distribution, case.head_dim, case.seqlen_kv)
            for title, scheme in table.rows.items()
        }

    for name in papers.GRANULARITY.distributions:
        e = errors(papers.GRANULARITY, name)
        assert e["32 channels of a token"] < e["token"] < e["thread"] < e["block"] < e["tensor"]
    mean = errors(papers.SMOOTHING, "common-mean")
    assert mean["Q + K"] < min(mean["Q"], mean["K"]) <= max(mean["Q"], mean["K"]) < mean["none"]
    assert mean["Hadamard"] > 0.9 * mean["none"]
    normal = errors(papers.SMOOTHING, "normal")
    assert max(normal.values()) < 1.05 * min(normal.values())
    for name in ("channel-outliers", "outliers"):
        e = errors(papers.SMOOTHING, name)
        assert e["Hadamard"] < 0.6 * e["none"] < 0.7 * e["Q + K"]
        e = errors(papers.ROTATION, name)
        for preset in ("`int8`", "`int4`"):
            assert e[f"{preset}, Q and K"] < 0.8 * e[f"{preset}, nothing"]
        for preset in ("`int8-token`", "`int4`"):
            assert e[f"{preset}, V too"] < 1.05 * e[f"{preset}, Q and K"]
    uniform = errors(papers.ROTATION, "uniform")
    assert uniform["`int8-token`, V too"] > 1.2 * uniform["`int8-token`, Q and K"]
    assert uniform["`int4`, Q and K"] > 1.2 * uniform["`int4`, nothing"]
    for shape in ((64, 1024), (128, 1024)):
        for name, published in (("sage-t", 0.019), ("sage-b", 0.021), ("sage-vb", 0.138)):
            assert figures.error(name, "normal", *shape) < published


def test_every_preset_is_described():
    assert set(scheme_tables.ABOUT) == set(PRESETS)
    assert {about.paper for about in scheme_tables.ABOUT.values()} <= {"", *scheme_tables.PAPERS}


def test_formulas_and_costs_are_those_of_the_scheme(figures):
    rows = {row[0]: row[1:] for row in map(cells, SECTIONS["schemes"](figures).splitlines())}
    assert rows["`sage2-4`"][:3] == [
        "INT4 per thread, Q − block mean, K − mean",
        "e4m3 of 448 p",
        "e4m3 per channel, V − mean",
    ]
    assert rows["`int-flash-rotated`"][2] == "INT8 per block, rotated"
    assert rows["`twin`"][1] == "127 steps below 2^-4 and 127 above"
    assert rows["`int8-two-term`"][1] == "u16, 65535 steps of the block's maximum"
    assert "[PTQ4ViT](https://arxiv.org/abs/2111.12293), equation 5" in rows["`twin`"]
    rows = {row[0]: row[1:] for row in map(cells, SECTIONS["scheme-costs"](figures).splitlines())}
    assert rows["`int4`"][:3] == [
        "512 tokens of K; all of V; means of 128 rows of Q",
        "4 / 8 / 8",
        "2",
    ]
    assert rows["`int8-two-term`"][:3] == ["512 tokens of K, V", "8 / 8 / 16", "3"]
    assert rows["`int-flash-rotated`"][0] == "V rotated"
    assert rows["`fp8`"][0] == "all of Q, K, V"
    assert rows["`fp16`"][:3] == ["nothing", "16 / 16 / 16", "2"]


def test_errors_are_of_all_presets_that_were_measured(figures):
    _, _, *rows = map(cells, SECTIONS["scheme-errors"](figures).splitlines())
    # At 4096 tokens of 128 channels the papers' tables have these presets.
    assert [row[0] for row in rows] == [
        f"`{name}`"
        for name in PRESETS
        if any(figures.error(name, x) for x in distributions.DISTRIBUTIONS)
    ]
    assert "`sage-t`" in {row[0] for row in rows}
