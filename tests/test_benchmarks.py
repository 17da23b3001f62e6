"""What the benchmarks do where something is missing: a scheme, a baseline, a GPU of the kind."""

import sys
from types import SimpleNamespace

import pytest

from benchmarks import baselines, ours, real_model
from benchmarks.baselines import Baseline
from benchmarks.cases import HOST, PREFILL, SCHEMES, Case
from cuattn.device import TARGETS
from cuattn.errors import UnsupportedError
from cuattn.plan import supported


@pytest.fixture
def torch(monkeypatch):
    """Stand in for PyTorch with a GPU."""
    cuda = SimpleNamespace(is_available=lambda: True, synchronize=lambda: None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, from_dlpack=lambda x: x))


def baseline(prepare=None, module="json"):
    return Baseline("other", "fp8", module, False, prepare)


def test_a_baseline_that_raises_anything_is_left_out(torch, capsys):
    class NotSupportedError(Exception):
        pass

    def prepare(q, k, v, case):
        raise NotSupportedError("no engine\nand more")

    assert baselines.bound(baseline(prepare), 0, 0, 0, HOST) is None
    assert capsys.readouterr().out == f"baseline other, {HOST}: NotSupportedError: no engine\n"


def test_a_baseline_that_fails_in_its_first_call_is_left_out(torch, capsys):
    def attend():
        raise RuntimeError("out of memory")

    run = ours.Run(kernel=None, end_to_end=attend)
    assert baselines.bound(baseline(lambda *_: run), 0, 0, 0, HOST) is None
    assert "out of memory" in capsys.readouterr().out


def test_a_baseline_without_a_causal_mask_is_not_asked_for_it(torch):
    causal = Case.square(1, 1, 64, 64, True)
    assert baselines.bound(baseline(), 0, 0, 0, causal) is None


def test_a_baseline_that_does_not_import_says_why(torch, monkeypatch):
    assert baseline().unavailable() is None
    assert "no_such_module" in baseline(module="no_such_module").unavailable()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "json does not import" in baseline().unavailable()


def test_schemes_that_the_gpu_does_not_support_are_left_out(monkeypatch, capsys):
    def family(scheme, case):
        if scheme == "fp8":
            raise UnsupportedError("needs sm_89")

    monkeypatch.setattr(ours, "family", family)
    assert ours.supported_schemes(SCHEMES) == [scheme for scheme in SCHEMES if scheme != "fp8"]
    assert capsys.readouterr().out == "scheme fp8 left out: needs sm_89\n"


@pytest.mark.parametrize("arch", TARGETS)
def test_schemes_that_a_gpu_has_kernels_of_are_measured(arch, monkeypatch, capsys):
    monkeypatch.setattr(ours, "current_device", lambda: SimpleNamespace(arch=arch))
    able = {scheme.name for scheme in supported(TARGETS[arch])}
    assert ours.supported_schemes(SCHEMES) == [scheme for scheme in SCHEMES if scheme in able]
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told] == [name for name in SCHEMES if name not in able]
    assert all(f"sm_{arch}" in line for line in told)


@pytest.mark.parametrize("case", [*PREFILL, Case.square(1, real_model.HEADS, 510, 32, False)])
def test_rows_say_which_kernels_served_them(case, monkeypatch):
    for arch, family in (("80", "attention_mma"), ("90a", "attention_wgmma")):
        monkeypatch.setattr(ours, "current_device", lambda arch=arch: SimpleNamespace(arch=arch))
        assert ours.family("int8", case) == family
        assert ours.family("int8", case, real_model.DTYPE) == family
