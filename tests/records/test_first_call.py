"""What the benchmark of first calls compiles, and what it says of the times."""

from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest

from benchmarks import first_call, first_results
from benchmarks.call_kernels import attention_kernels
from benchmarks.first_call import CallTimes
from cuattn.arrays.device import target
from cuattn.errors import CuattnError
from cuattn.plan.kernels import supported
from cuattn.plan.listing import attention_specs

pytest.importorskip("cupy")


def call(name="int8", times=(0.5, 1.5), cold=None, warm=None):
    kernels = [(f"kernel {i}", seconds) for i, seconds in enumerate(times)]
    return CallTimes(name, "90a", 128, kernels, max(times), cold, warm)


@pytest.mark.parametrize("arch", ["80", "90a"])
def test_kernels_of_a_call_are_among_those_listed(arch):
    facts = target(arch)
    for scheme in supported(facts):
        specs = attention_kernels(scheme.name, 64, arch)
        assert specs[-1].entry == "attention"
        assert set(specs) <= set(attention_specs([scheme], [64], ["float16"], facts)), scheme.name


def test_one_kernel_after_the_other_and_the_longest():
    assert call().alone == 2.0
    assert call().longest == 1.5
    titles, where, row = first_call.table([call(cold=2.25, warm=0.125)]).splitlines()
    assert where == "sm_90a, head_dim 128"
    assert row.split() == ["int8", "2.00", "2.00", "1.50", "1.50", "2.25", "0.125"]
    assert titles.count(" s") == 5


@pytest.mark.parametrize(
    ("measured", "lines"),
    [
        (call(), []),
        (call(times=(3.0, 3.5)), ["int8: cold 6.5 s, more than 5 s"]),
        (call(times=(3.0, 3.5), cold=4.0, warm=0.5), []),
        (
            call(cold=5.5, warm=1.2),
            ["int8: cold 5.5 s, more than 5 s", "int8: warm 1.2 s, more than 1 s"],
        ),
    ],
)
def test_calls_beyond_the_goal_are_named(measured, lines):
    assert first_call.beyond_goal([measured]) == lines


def test_compiles_each_kernel_alone_and_all_together(monkeypatch):
    compiled = []
    monkeypatch.setattr(
        first_call, "compile_cubin", lambda source, spec, arch: compiled.append(source)
    )
    found = first_call.measure("fp16", 64, "80", on_gpu=False)
    assert [entry for entry, _ in found.kernels] == ["attention"]
    assert compiled == 2 * ["attention_sm80.cu"]
    assert found.cold is None


def test_a_call_begins_with_an_empty_cache_and_finds_its_kernels_there_again(monkeypatch):
    caches = []

    def run(command, env, **_):
        assert command[-2:] == ["int8", "128"]
        assert env["CUDA_CACHE_DISABLE"] == "1"
        folder = Path(env["CUATTN_CACHE_DIR"])
        caches.append((folder, [*folder.iterdir()]))
        (folder / "kernel").touch()
        return CompletedProcess(command, 0, f"{2.5 - len(caches)}\n", "")

    monkeypatch.setattr(first_results.subprocess, "run", run)
    assert first_results.cold_and_warm("int8", 128) == (1.5, 0.5)
    folder = caches[0][0]
    assert caches == [(folder, []), (folder, [folder / "kernel"])]
    assert not folder.exists()


def test_a_call_that_fails_says_why(monkeypatch):
    failed = CompletedProcess([], 1, "", "no GPU\n")
    monkeypatch.setattr(first_results.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CuattnError, match="first call of int8 failed:\nno GPU"):
        first_results.cold_and_warm("int8", 128)


@pytest.mark.parametrize(("arch", "schemes"), [("80", 4), ("90a", 5)])
def test_the_record_has_the_calls_that_a_gpu_can_do(monkeypatch, arch, schemes):
    monkeypatch.setattr(first_results, "current_device", lambda: SimpleNamespace(arch=arch))
    monkeypatch.setattr(first_results, "cold_and_warm", lambda call, head_dim: (2.0, 0.25))
    found = list(first_results.first_calls())
    assert len(found) == schemes + 2
    assert ("fp8" in [x.call for x in found]) == (arch == "90a")
    assert {x.call: x.kernels for x in found}["fp16"] == 1
    assert {(x.cold_s, x.warm_s) for x in found} == {(2.0, 0.25)}
