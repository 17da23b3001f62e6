"""Tables as files: those of the package, the user's own, and what cannot be one."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from cuattn.auto import tables
from cuattn.auto.table import CANDIDATES, KIND, SpeedTable, load, save
from cuattn.bench.cases import Case
from cuattn.errors import ArgumentError
from cuattn.records import record
from cuattn.records.digest import ATTENTION, digest
from tools import figures
from tools.auto_table import TABLE, made

CASE = Case.square(2, 4, 1024, 64, False)
NOW = digest(ATTENTION)


def timings(case=CASE, kind=KIND, **ms):
    for scheme in CANDIDATES:
        yield record.Timing(
            **asdict(case),
            case=kind,
            implementation="cuattn",
            scheme=scheme,
            family="any",
            end_to_end_ms=ms.get(scheme.replace("-", "_"), 1.0),
        )


def table(rows=None, gpu="NVIDIA Test 24GB", digest=NOW):
    rows = timings() if rows is None else rows
    return SpeedTable.of(rows, gpu=gpu, compute_capability="80", digest=digest)


@pytest.fixture
def device(monkeypatch, tmp_path):
    """Stand in for a GPU of another kind than those of the tables that are shipped."""
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path))
    tables._table_for.cache_clear()
    return SimpleNamespace(name="NVIDIA Test 24GB", compute_capability="80")


def write(file, table):
    file.parent.mkdir(exist_ok=True)
    save(table, file)


def test_the_shipped_table_is_that_of_the_record():
    committed = record.load(figures.RECORD)
    shipped = load(TABLE)
    assert shipped == made(committed), "run: python -m tools.figures"
    assert shipped.rows
    digests = {run.digest for run in committed.phases.values()}
    assert shipped.digest in digests
    assert shipped.gpu == committed.gpu
    # As the record is, so is the table: of this code, or both are of older code.
    is_current = {"prefill", "auto"}.isdisjoint(committed.outdated(record.phase_digests()))
    assert (shipped.digest == NOW) == is_current or committed.stale


def test_a_table_is_made_of_phases_of_the_same_kernels():
    rows = [
        *timings(),
        *timings(replace(CASE, seqlen_q=2048), "prefill"),
        *timings(replace(CASE, seqlen_q=4096), "model"),
    ]
    phases = {
        name: record.PhaseRun(digest, 1.0)
        for name, digest in (("auto", "new"), ("prefill", "old"), ("models", "new"))
    }
    found = made(record.Record("0", "NVIDIA H200", {}, timings=rows, phases=phases))
    assert found.digest == "new"
    assert [row.seqlen_q for row in found.rows] == [1024, 4096]
    phases["auto"] = record.PhaseRun("newer", 1.0, failed="took longer than 1 s")
    found = made(record.Record("0", "NVIDIA H200", {}, timings=rows, phases=phases))
    assert (found.digest, [row.seqlen_q for row in found.rows]) == ("old", [2048])


def test_rows_are_cold_calls_of_ours_with_all_candidates():
    (of_table,) = table(
        [*timings(kind="prefill", int8=3.0), *timings(int8=2.0, int8_block=0.5)]
    ).rows
    assert of_table.us == {"fp16": 1000.0, "int8": 2000.0, "int8-block": 500.0}
    first, *others = timings()
    assert table(others).rows == []
    for change in (
        {"state": "sustained"},
        {"implementation": "other"},
        {"end_to_end_ms": None},
        {"case": "host"},
        {"case": "mma-sync"},
    ):
        assert table([replace(first, **change), *others]).rows == [], change
    assert table(timings(replace(CASE, head_dim=72))).rows == []


def test_a_gpu_without_a_table_has_none(device):
    assert tables.table_for(device) is None


def test_the_users_own_table_is_found_and_comes_first(device, tmp_path):
    file = tables.own_file(device.name)
    assert file == tmp_path / "auto" / "nvidia-test-24gb.json"
    write(file, table())
    found = tables.table_for(device)
    assert (found.table, found.origin) == (table(), str(file))
    h200 = SimpleNamespace(name="NVIDIA H200", compute_capability="90")
    assert tables.table_for(h200).table == load(TABLE)
    own = table(gpu=h200.name)
    write(tables.own_file(h200.name), own)
    tables._table_for.cache_clear()
    assert tables.table_for(h200).table == own


def test_a_sibling_goes_by_the_table_of_its_compute_capability(device):
    h100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", compute_capability="90")
    found = tables.table_for(h100)
    assert found.table == load(TABLE)
    assert found.origin == "the table of NVIDIA H200 that comes with cuattn"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (table(digest="0"), "kernels have changed since"),
        (table(gpu="NVIDIA Other"), "it is of NVIDIA Other"),
        ("{", "must be a table of cuattn bench --auto-table"),
        ("[]", "must be a table of cuattn bench --auto-table"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_of_once(device, wrong, message):
    file = tables.own_file(device.name)
    if isinstance(wrong, str):
        file.parent.mkdir()
        file.write_text(wrong)
    else:
        write(file, wrong)
    with pytest.warns(RuntimeWarning, match=f"{message}.*; make it anew: cuattn bench --auto"):
        assert tables.table_for(device) is None
    assert tables.table_for(device) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 2, "format must be 1, that of this version, got 2"),
        ("gpu", None, "gpu must be of type str"),
        ("rows", [{}], r"rows\[0\] must be an object with the keys"),
        (("head_dim",), 72, r"rows\[0\]: head_dim must be one of"),
        (("batch",), 0, r"rows\[0\]: batch must be from 1 to"),
        (("batch",), 10**400, r"rows\[0\]: batch must be from 1 to"),
        (("num_q_heads",), 7, r"rows\[0\]: num_q_heads must be a multiple of num_kv_heads"),
        (("us",), {"fp16": 1.0}, r"rows\[0\]: us must be a positive number for each of"),
        (("us",), dict.fromkeys(CANDIDATES, 0.0), r"rows\[0\]: us must be a positive"),
    ],
)
def test_what_no_table_has_is_refused_by_name(tmp_path, field, value, message):
    data = asdict(table())
    if isinstance(field, tuple):
        data["rows"][0][field[0]] = value
    else:
        data[field] = value
    file = tmp_path / "table.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ArgumentError, match=message):
        load(file)
