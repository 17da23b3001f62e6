"""A run of `cuattn bench`: what it finds and what it leaves out; figures are made up."""

from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from cuattn.bench import grid, results, run
from cuattn.bench.cases import Case
from cuattn.errors import CompileError
from cuattn.records.record import Accuracy, Timing

GRID = grid.make(schemes=("int8", "fp8"), seqlens=(128, 256), head_dims=(64,), caches=((2, 64),))
CEILING = results.Ceiling(what="int8", instruction="mma.sync", rate=100.0, iqr=1.0)
METRICS = {"relative_l1": 0.01}


class Tasks:
    """What is shown of a run: the last figures of each part."""

    def __init__(self):
        self.shown = {}

    def __call__(self, label):
        self.shown[label] = None

        def show(done, total):
            self.shown[label] = done / total

        return show


@pytest.fixture
def parts(monkeypatch):
    """Stand in for a GPU; return what is called for each part, to be replaced."""

    def timing(case, kind, name):
        return Timing(
            **asdict(case), case=kind, implementation=name, scheme="", family="", kernel_ms=1.0
        )

    def accuracy(point, scheme):
        case, name = point
        return Accuracy(
            **asdict(case), scheme=scheme, family="", distribution=name, metrics=METRICS
        )

    def supported(schemes, left_out):
        left_out("fp8", "needs sm_89")
        return [scheme for scheme in schemes if scheme != "fp8"]

    def present(left_out):
        left_out("missing", "does not import")
        return [SimpleNamespace(name="other")]

    @contextmanager
    def room_for(case, needed, left_out):
        assert needed > 0
        yield True

    calls = SimpleNamespace(
        ceilings=lambda rounds: [CEILING],
        present=present,
        room_for=room_for,
        compiled=[],
        check=lambda: None,
        prefill=lambda case, schemes, found, left_out, rounds, show: (
            timing(case, "prefill", name) for name in (*schemes, *(x.name for x in found))
        ),
        decode=lambda case, found, left_out, rounds, show: iter([timing(case, "decode", "cuattn")]),
        of_schemes=lambda point, schemes, found, left_out: (accuracy(point, x) for x in schemes),
        of_caches=lambda point: iter([accuracy(point, "kv-int8")]),
    )

    def precompile(specs, archs, progress):
        calls.compiled += specs
        assert archs == ["80"]

    device = SimpleNamespace(name="a GPU", arch="80")
    monkeypatch.setattr(run, "current_device", lambda: device)
    monkeypatch.setattr(run, "versions", lambda: {"cuattn": "1.0"})
    monkeypatch.setattr(run, "precompile", precompile)
    monkeypatch.setattr(run.ours, "supported_schemes", supported)
    for module, name, call in (
        (run.baselines, "present", "present"),
        (run.ceilings, "measure", "ceilings"),
        (run.prefill, "timings", "prefill"),
        (run.decode, "timings", "decode"),
        (run.errors, "of_schemes", "of_schemes"),
        (run.errors, "of_caches", "of_caches"),
        (run.exact, "check", "check"),
        (run, "room_for", "room_for"),
    ):
        monkeypatch.setattr(module, name, lambda *args, call=call: getattr(calls, call)(*args))
    return calls


@pytest.fixture
def found(parts):
    return run.begun(7)


def measure(found, chosen=GRID, **options):
    """Measure; return what was said and what was shown."""
    said, tasks = [], Tasks()
    run.measure(
        chosen, found, task=tasks, say=lambda what, why: said.append(f"{what}: {why}"), **options
    )
    return said, tasks.shown


def test_a_run_measures_all_parts(parts, found):
    said, shown = measure(found)
    assert found.ceilings == [CEILING]
    assert {t.case for t in found.timings} == {"prefill", "decode"}
    assert {t.implementation for t in found.timings if t.case == "prefill"} == {"int8", "other"}
    assert next(t for t in found.timings if t.case == "decode").seqlen_kv == 64
    assert {(a.scheme, a.distribution) for a in found.accuracy} == {
        (scheme, name) for scheme in ("int8", "kv-int8") for name in ("normal", "outliers")
    }
    assert found.left_out == {"fp8": "needs sm_89", "missing": "does not import"}
    assert said == ["fp8: needs sm_89", "missing: does not import"]
    assert [shown[part] for part in ("prefill", "decode", "errors")] == [1, 1, 1]
    assert (found.gpu, found.rounds) == ("a GPU", 7)


def test_kernels_are_compiled_before_anything_is_measured(parts, found):
    def ceilings(rounds):
        assert parts.compiled
        assert rounds == 7
        return []

    parts.ceilings = ceilings
    _, shown = measure(found)
    assert next(iter(shown)) == f"compiling {len(parts.compiled)} kernels"
    assert all(spec.source.endswith(".cu") for spec in parts.compiled)


def test_a_kernel_that_does_not_compile_ends_the_run(monkeypatch, parts, found):
    def precompile(specs, archs, progress):
        raise CompileError("no compiler")

    monkeypatch.setattr(run, "precompile", precompile)
    with pytest.raises(CompileError, match="no compiler"):
        measure(found)


def test_a_run_without_baselines_does_not_look_for_them(parts, found):
    parts.present = None
    measure(found, with_baselines=False)
    assert {t.implementation for t in found.timings if t.case == "prefill"} == {"int8"}


def test_a_run_of_ceilings_does_not_look_for_baselines(parts, found):
    parts.present = None
    measure(found, grid.make(parts=["ceilings"]))
    assert found.ceilings
    assert not found.timings


def test_what_fails_on_one_shape_is_left_out_of_it(parts, found):
    yields = parts.prefill

    def prefill(case, *args):
        if case.seqlen_q == 128 and case.is_causal:
            raise MemoryError("out of memory\nwith details")
        return yields(case, *args)

    parts.prefill = prefill
    said, shown = measure(found)
    assert found.left_out["N128 D64 causal"] == "out of memory"
    assert "N128 D64 causal: out of memory" in said
    lengths = {(t.seqlen_q, t.is_causal) for t in found.timings if t.case == "prefill"}
    assert lengths == {(128, False), (256, False), (256, True)}
    assert shown["prefill"] == 1


def test_shapes_without_room_are_not_measured(parts, found):
    @contextmanager
    def room_for(case, needed, left_out):
        left_out(str(case), "9.0 GiB needed, 1.0 free")
        yield False

    parts.room_for = room_for
    measure(found)
    assert not found.timings
    assert found.left_out[str(GRID.decode[0])] == "9.0 GiB needed, 1.0 free"


def test_rounds_of_a_shape_are_shown(parts, found):
    def prefill(case, schemes, others, left_out, rounds, show):
        show(5, 10)
        raise KeyboardInterrupt

    parts.prefill = prefill
    tasks = Tasks()
    with pytest.raises(KeyboardInterrupt):
        run.measure(GRID, found, task=tasks, say=lambda what, why: None)
    assert 0 < tasks.shown["prefill"] < 1 / len(GRID.prefill)


@pytest.mark.parametrize("part", ["ceilings", "check"])
def test_a_part_that_fails_leaves_the_others(part, parts, found):
    def fail(*args):
        raise RuntimeError("no cuBLAS")

    setattr(parts, part, fail)
    measure(found)
    assert found.left_out[{"check": "errors"}.get(part, part)] == "no cuBLAS"
    assert found.timings


def test_each_is_said_once(parts, found):
    def prefill(case, schemes, others, left_out, rounds, show):
        left_out("other", "fails")
        return iter(())

    parts.prefill = prefill
    said, _ = measure(found)
    assert said.count("other: fails") == 1


def test_an_interrupted_run_has_what_came_before(parts, found, tmp_path):
    def decode(*args):
        raise KeyboardInterrupt

    parts.decode = decode
    with pytest.raises(KeyboardInterrupt):
        measure(found)
    assert len(found.timings) == 2 * len(GRID.prefill)
    results.save(found, tmp_path / "partial.json")
    assert results.load(tmp_path / "partial.json") == found


def test_labels_of_decoding_tell_shapes_apart():
    cases = grid.make().decode
    assert len({str(case) for case in cases}) == len(cases)
    assert str(Case.square(1, 1, 64, 32, True)) == "N64 D32 causal"
