"""The programs that the GPU check runs: pytest in parallel, and compute-sanitizer, stood in for."""

import sys
from collections import Counter
from dataclasses import asdict

import pytest

from benchmarks import commands, measurements, sanitizer_grid, sanitizer_latent
from benchmarks.mma_family import mma_family
from benchmarks.sanitizer_caches import CACHES
from cuattn.arrays.device import TARGETS
from cuattn.errors import CuattnError
from cuattn.plan.kernels import attention_spec
from cuattn.presets import PRESETS, resolve
from cuattn.records.record import Counts, Sanitizer
from cuattn.specs.attention import AttentionSpec, Type

TOOL = """#!{python}
import sys
tool = sys.argv[sys.argv.index("--tool") + 1]
module, *share = sys.argv[sys.argv.index("-m") + 1 :]
assert module == "benchmarks.sanitizer_grid", sys.argv
found = {found}
print("========= ERROR SUMMARY:" if tool != "racecheck" else "========= RACECHECK SUMMARY:", found)
print(*share, "calls done" if {done} else "")
"""


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Return what puts a program called compute-sanitizer on the path."""

    def make(found=0, done=True):
        path = tmp_path / "compute-sanitizer"
        path.write_text(TOOL.format(python=sys.executable, found=found, done=done))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return make


def test_parts_take_turns_with_the_tools(tool):
    tool(found=2)
    found = [asdict(commands.sanitizer(part)) for part in range(commands.SANITIZER_PARTS)]
    of_tools = {tool: [x[tool] for x in found].count(2) for tool in asdict(Sanitizer())}
    assert of_tools == {"memcheck": 4, "racecheck": 4, "synccheck": 2, "initcheck": 2}
    assert all([*x.values()].count(None) == 3 for x in found)


def test_a_tool_that_does_not_come_to_the_end_found_nothing_out(tool):
    tool(done=False)
    with pytest.raises(CuattnError, match="memcheck gave no answer"):
        commands.sanitizer(0)


def test_without_a_tool_there_is_no_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "_toolkit_path", lambda: str(tmp_path))
    assert commands.sanitizer(0) is None


@pytest.fixture
def grid(monkeypatch):
    """Return the calls of the sanitizer's grid, which an H200 would be asked for."""
    monkeypatch.setattr(sanitizer_grid, "supported_schemes", lambda schemes, told: [*schemes])
    monkeypatch.setattr(sanitizer_grid, "current_device", lambda: None)
    monkeypatch.setattr(sanitizer_grid, "rate_calls", lambda *args: [])
    return sanitizer_grid.calls()


def test_the_grid_has_every_scheme_and_cache(grid):
    of_schemes = Counter(call.args[0] for call in grid if call.func is sanitizer_grid.run)
    assert {*PRESETS} <= of_schemes.keys()
    assert {*sanitizer_grid.COMPOSED} <= of_schemes.keys()
    caches = [call.args[0] for call in grid if call.func is sanitizer_grid.sanitizer_caches.run]
    assert caches == CACHES
    latent = [call.args[0] for call in grid if call.func is sanitizer_latent.run]
    assert latent == sanitizer_latent.CACHES
    by_mma = [call.args[0] for call in grid if call.func is sanitizer_grid.run_by_mma]
    # Sorted keys without a mask, too, where no token of a place is looked up.
    assert by_mma == [*sanitizer_grid.OF_MMA, "int8"]
    # Every type and layout occurs with each shape.
    kinds = {call.args[1:] for call in grid if call.func is sanitizer_grid.run}
    for shape in sanitizer_grid.SHAPES:
        assert {x for s, *some in kinds if s == shape for x in some} == {
            *("float16", "float32", "HND", "NHD")
        }


def test_the_kernels_of_mma_can_be_watched_on_a_gpu_with_others():
    def spec():
        return attention_spec(resolve("int8"), 64, Type.fp16, True, TARGETS["90a"])

    others = spec()
    with mma_family():
        assert isinstance(spec(), AttentionSpec)
    assert spec() == others
    assert not isinstance(others, AttentionSpec)


def test_parts_of_the_accuracy_are_all_of_it(monkeypatch):
    points = {(f"case {i}", "normal"): ["int8"] for i in range(7)}
    monkeypatch.setattr(measurements.exact, "check", lambda: None)
    monkeypatch.setattr(measurements, "accuracy_points", lambda: points)
    monkeypatch.setattr(measurements.baselines, "present", lambda told: [])
    monkeypatch.setattr(measurements.ours, "supported_schemes", lambda some, told: [*some])
    monkeypatch.setattr(
        measurements.errors, "of_schemes", lambda point, schemes, present, told: iter([point])
    )
    parts = [list(measurements.accuracy(part, 3)) for part in range(3)]
    assert sorted(point for part in parts for point in part) == sorted(points)
    assert [len(part) for part in parts] == [3, 2, 2]


# One of each kind of end, and a file that cannot be imported.
TESTS = """
import pytest

def test_passes(): pass
def test_passes_too(): pass
def test_fails(): assert False
def test_is_skipped(): pytest.skip("not here")
@pytest.fixture
def broken(): raise ValueError
def test_has_an_error(broken): pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_tests_are_counted(tmp_path, workers):
    pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    (tmp_path / "conftest.py").write_text("")
    options = f"--rootdir={tmp_path} -c /dev/null {tmp_path}"
    assert commands._pytest("not other", workers, options) == Counts(2, 3, 1)


def test_no_tests_are_no_failure(tmp_path):
    options = f"--rootdir={tmp_path} -c /dev/null {tmp_path}"
    assert commands._pytest("other", 0, options) == Counts(0, 0, 0)


def test_trouble_of_pytest_itself_is_an_error():
    with pytest.raises(CuattnError, match="pytest ended with 4"):
        commands._pytest("gpu", 0, "--no-such-option")


def test_tests_that_are_not_to_share_the_gpu_follow_the_others(monkeypatch):
    ran = []

    def run(marks, workers, options):
        ran.append((marks, workers))
        return Counts(3, 1, 0)

    monkeypatch.setattr(commands, "_pytest", run)
    monkeypatch.setattr(commands, "find_spec", lambda name: name)
    monkeypatch.setattr(commands.os, "cpu_count", lambda: 16)
    assert commands.tests("") == Counts(6, 2, 0)
    assert ran == [(commands.TOGETHER, 14), (commands.ALONE, 1)]
    ran.clear()
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    commands.tests("")
    assert ran == [(commands.TOGETHER, 0), (commands.ALONE, 0)]
