import dataclasses
import json
from pathlib import Path

import pytest

from cuattn.errors import ArgumentError
from cuattn.records import digest as code_digest
from cuattn.records import record

# What a launch does not pass through: storing and describing, never computing.
SHAPE = {
    "batch": 1,
    "num_q_heads": 4,
    "num_kv_heads": 4,
    "seqlen_q": 1024,
    "seqlen_kv": 1024,
    "head_dim": 128,
    "is_causal": False,
}


def phases(**digests):
    """Return a run of each phase with the code at hand, or that of another digest."""
    now = record.phase_digests() | digests
    return {name: record.PhaseRun(digest=now[name], seconds=1.0) for name in now}


def sound():
    """Return a record with nothing to object to."""
    about = {**SHAPE, "scheme": "int8", "family": "attention_mma"}
    timing = record.Timing(**about, case="prefill", implementation="cuattn", kernel_ms=1.5)
    accuracy = record.Accuracy(**about, distribution="normal", metrics={"relative_l1": 0.013})
    ceiling = record.Ceiling(what="int8", instruction="mma", rate=1500.0, iqr=2.0)
    first_call = record.FirstCall(call="int8", head_dim=128, kernels=4, cold_s=2.0, warm_s=0.25)
    judged = record.LanguageModelRow(
        model="SmolLM2",
        text="usage.md",
        tokens=2048,
        scheme="exact",
        cache="int8",
        perplexity=12.5,
        delta_nll=0.001,
        kl=4e-4,
        same_top1=0.99,
        where="gpu",
    )
    return record.Record(
        digest=record.digest(),
        gpu="NVIDIA Test",
        phases=phases(),
        versions={"cupy": "14.2.0"},
        tests=record.Counts(passed=10, failed=0, skipped=1),
        sanitizer=record.Sanitizer(0, 0, 0, 0),
        accuracy=[accuracy],
        timings=[timing],
        ceilings=[ceiling],
        first_calls=[first_call],
        language_model=[judged],
    )


def test_committed_records_are_there_and_of_this_code():
    assert record.records(), "benchmarks/records/ holds no record: run make gpu-check on a GPU"
    found = {path.name: record.problems(record.load(path)) for path in record.records()}
    assert found == {name: [] for name in found}


def test_digest_sees_contents_and_names(monkeypatch):
    seen = {record.digest()}
    kernels = dict(code_digest.sources())
    name = sorted(kernels)[0]
    edited = {**kernels, name: kernels[name] + " "}
    renamed = {**kernels, "renamed.cuh": kernels[name]}
    del renamed[name]
    for variant in (edited, renamed):
        monkeypatch.setattr(code_digest, "sources", lambda variant=variant: variant)
        seen.add(record.digest())
    monkeypatch.undo()
    without = dataclasses.replace(code_digest.WHOLE, code=code_digest.LAUNCH_CODE[1:])
    seen.add(record.digest(without))
    assert len(seen) == 4


OF_PREFILL = ("comparison", "features", "models", "mma_sync", "auto", "chunk", "ring")

# An edit of a file, and phases that it outdates besides those that depend on everything.
EDITS = {
    "decode.cu": {"cache_accuracy", "decode", "language_model", "chunk"},
    "cache_operands.cu": {"chunk"},
    "cache_queries.cu": {"chunk"},
    "kv/unit.cuh": {"cache_accuracy", "decode", "language_model", "chunk"},
    "quantize.cu": {"accuracy", "real_model", "language_model", "prefill", *OF_PREFILL},
    "sm90/producer.cuh": {"accuracy", "real_model", "language_model", "prefill", *OF_PREFILL},
    "memory_rate.cu": {"ceilings"},
    "merge_states.cu": {"ring"},
    "ptx/mma.cuh": {*record.phase_digests()},
}
OF_ALL = {"tests", "sanitizer", "first_calls"}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_outdates_the_phases_that_depend_on_it(monkeypatch, name):
    edited = dict(code_digest.sources())
    edited[name] += "// edited"
    whole = sound()
    monkeypatch.setattr(code_digest, "sources", lambda: edited)
    assert {*whole.outdated(record.phase_digests())} == EDITS[name] | OF_ALL


def test_every_kernel_belongs_to_a_phase_that_has_not_all_or_is_only_tested():
    kernels = {name for name in code_digest.sources() if name.endswith(".cu")}
    parts = [part.kernels for part in code_digest.PHASES.values() if part.kernels]
    parts.append(code_digest.TESTED_ONLY)
    assert {name for part in parts for name in part if name.endswith(".cu")} == kernels
    headers = {x for part in parts for x in code_digest.with_includes(part)}
    assert headers == {*code_digest.sources()}


def test_code_of_every_phase_is_there():
    package = Path(code_digest.__file__).parents[1]
    for part in code_digest.PHASES.values():
        for name in part.code:
            path = package / name
            assert path.is_file() if path.suffix else [*path.glob("*.py")], name


def test_record_comes_back_as_saved(tmp_path):
    path = tmp_path / "gpu.json"
    record.save(sound(), path)
    assert record.load(path) == sound()
    assert [entry.name for entry in tmp_path.iterdir()] == ["gpu.json"]


def test_saved_record_has_the_published_keys(tmp_path):
    path = tmp_path / "gpu.json"
    record.save(sound(), path)
    data = json.loads(path.read_text())
    assert set(data) == {
        "digest",
        "stale",
        "failures",
        "gpu",
        "versions",
        "tests",
        "sanitizer",
        "accuracy",
        "timings",
        "ceilings",
        "first_calls",
        "phases",
        "method",
        "language_model",
    }
    assert set(data["tests"]) == {"passed", "failed", "skipped"}
    assert set(data["sanitizer"]) == {"memcheck", "racecheck", "synccheck", "initcheck"}
    assert set(data["accuracy"][0]) == {*SHAPE, "scheme", "family", "distribution", "metrics"}
    assert set(data["timings"][0]) == {
        *SHAPE,
        *("case", "implementation", "scheme", "family", "state", "model", "feature"),
        *("ranks", "placement", "wire", "bytes_sent", "hidden"),
        *("kernel_ms", "kernel_iqr_ms", "end_to_end_ms", "end_to_end_iqr_ms", "tops", "gbps"),
    }
    assert set(data["ceilings"][0]) == {"what", "instruction", "rate", "iqr"}
    assert set(data["first_calls"][0]) == {"call", "head_dim", "kernels", "cold_s", "warm_s"}
    assert set(data["language_model"][0]) == {
        *("model", "text", "tokens", "scheme", "cache"),
        *("perplexity", "delta_nll", "kl", "same_top1", "where"),
    }


def test_a_record_from_before_phases_is_read_and_outdated(tmp_path):
    path = tmp_path / "gpu.json"
    record.save(sound(), path)
    data = json.loads(path.read_text())
    del data["phases"], data["method"], data["language_model"]
    del data["timings"][0]["state"], data["timings"][0]["model"]
    path.write_text(json.dumps(data))
    old = record.load(path)
    now = record.phase_digests()
    assert old.state(now) == "outdated"
    assert old.outdated(now) == list(now)
    assert [(t.state, t.model) for t in old.timings] == [("cold", None)]
    (problem,) = record.problems(old)
    assert "outdated" in problem
    assert "prefill" in problem
    assert dataclasses.replace(old, stale="no such GPU since May").state(now) == "stale"


def test_a_phase_that_failed_is_outdated():
    whole = sound()
    now = record.phase_digests()
    whole.phases["decode"] = dataclasses.replace(whole.phases["decode"], failed="took too long")
    assert whole.outdated(now) == ["decode"]
    whole.phases["decode"] = dataclasses.replace(whole.phases["decode"], failed=None)
    assert whole.outdated(now) == []


def test_figures_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "gpu.json"
    accuracy = dataclasses.replace(
        sound().accuracy[0], metrics={"snr_db": float("inf"), "cosine": float("nan"), "rmse": 0.5}
    )
    record.save(dataclasses.replace(sound(), accuracy=[accuracy]), path)
    metrics = record.load(path).accuracy[0].metrics
    assert metrics == {"snr_db": None, "cosine": None, "rmse": 0.5}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.pop("stale"), "gpu.json"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.update(gpu=None), "gpu.json.gpu"),
        (lambda data: data["tests"].update(passed=True), "gpu.json.tests.passed"),
        (lambda data: data["versions"].update(cupy=14), "gpu.json.versions.cupy"),
        (lambda data: data["timings"][0].update(kernel_ms="1"), "gpu.json.timings[0].kernel_ms"),
        (lambda data: data["accuracy"][0].update(batch=1.5), "gpu.json.accuracy[0].batch"),
        (lambda data: data.update(accuracy={}), "gpu.json.accuracy"),
        (lambda data: data["ceilings"][0].update(what="int7"), "gpu.json.ceilings[0].what"),
        (lambda data: data["language_model"][0].pop("kl"), "gpu.json.language_model[0]"),
    ],
    ids=[
        "missing",
        "unknown",
        "null",
        "bool",
        "number",
        "text",
        "fraction",
        "object",
        "other",
        "row",
    ],
)
def test_load_names_the_field_that_is_wrong(tmp_path, change, named):
    path = tmp_path / "gpu.json"
    record.save(sound(), path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ArgumentError) as caught:
        record.load(path)
    assert named in str(caught.value)


def test_load_refuses_what_is_not_json(tmp_path):
    path = tmp_path / "gpu.json"
    path.write_text('{"digest":')
    with pytest.raises(ArgumentError, match=r"gpu\.json must be a JSON file"):
        record.load(path)


def test_load_refuses_what_is_not_there(tmp_path):
    with pytest.raises(ArgumentError, match=r"gpu\.json"):
        record.load(tmp_path / "gpu.json")


def test_a_sound_record_has_no_problems():
    assert record.problems(sound()) == []


def test_a_record_of_other_code_is_a_problem_unless_it_says_why():
    old = dataclasses.replace(sound(), phases=phases(decode="0" * 64))
    (problem,) = record.problems(old)
    assert "make gpu-check" in problem
    assert "launch code: decode;" in problem
    assert record.problems(dataclasses.replace(old, stale=" ")) == [problem]
    assert record.problems(dataclasses.replace(old, stale="no such GPU since May")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tests": None}, "tests have not run"),
        ({"tests": record.Counts(9, 1, 0)}, "1 tests failed"),
        ({"tests": record.Counts(0, 0, 9)}, "0 passed"),
        ({"sanitizer": record.Sanitizer(0, 2, 0, 0)}, "racecheck: 2 findings"),
        ({"sanitizer": record.Sanitizer(None, 0, 0, 0)}, "memcheck: not run"),
        ({"accuracy": []}, "no accuracy"),
        ({"timings": []}, "no timings"),
        ({"ceilings": []}, "no ceilings"),
        ({"first_calls": []}, "no first calls"),
    ],
)
def test_an_incomplete_or_failed_run_is_a_problem(change, said):
    (problem,) = record.problems(dataclasses.replace(sound(), **change))
    assert said in problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "of this very code"),
        ({"phases": {}, "stale": "no such GPU since May"}, "no such GPU since May"),
        ({"phases": {}}, "no reason given"),
    ],
)
def test_status_says_what_the_record_is_worth(tmp_path, monkeypatch, change, said):
    record.save(dataclasses.replace(sound(), **change), tmp_path / "gpu.json")
    monkeypatch.setattr(record, "records", lambda: [tmp_path / "gpu.json"])
    (status,) = record.status()
    assert "NVIDIA Test" in str(status)
    assert "10 tests passed, 0 failed" in str(status)
    assert said in str(status)
