"""What the benchmarks do where something is missing: a scheme, a baseline, a GPU of the kind."""

import inspect
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from benchmarks import measurements, real_model
from cuattn.arrays.device import TARGETS
from cuattn.bench import ours
from cuattn.bench.baselines import registry as baselines
from cuattn.bench.baselines.registry import Baseline
from cuattn.bench.cases import CORE, EVERY_SCHEME, HOST, PREFILL, SCHEMES, Case
from cuattn.choice.timing import ROUNDS, WARMUP
from cuattn.errors import UnsupportedError
from cuattn.plan.kernels import supported


@pytest.fixture
def torch(monkeypatch):
    """Stand in for PyTorch with a GPU."""
    cuda = SimpleNamespace(is_available=lambda: True, synchronize=lambda: None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, from_dlpack=lambda x: x))


def baseline(prepare=None, module="json"):
    return Baseline("other", "fp8", module, False, prepare)


@pytest.fixture
def told():
    """Collect what is left out."""
    return {}


def test_a_baseline_that_raises_anything_is_left_out(torch, told):
    class NotSupportedError(Exception):
        pass

    def prepare(q, k, v, case):
        raise NotSupportedError("no engine\nand more")

    assert baselines.bound(baseline(prepare), 0, 0, 0, HOST, told.__setitem__) is None
    assert told == {f"other, {HOST}": "NotSupportedError: no engine"}


@pytest.mark.parametrize(("kernel", "call"), [(True, False), (False, True)])
def test_a_baseline_that_fails_in_its_first_call_is_left_out(torch, told, kernel, call):
    def fail():
        raise RuntimeError("out of memory")

    run = ours.Run(*(fail if fails else int for fails in (kernel, call)))
    assert baselines.bound(baseline(lambda *_: run), 0, 0, 0, HOST, told.__setitem__) is None
    assert told == {f"other, {HOST}": "out of memory"}


def test_a_baseline_without_a_causal_mask_is_not_asked_for_it(torch, told):
    causal = Case.square(1, 1, 64, 64, True)
    assert baselines.bound(baseline(), 0, 0, 0, causal, told.__setitem__) is None
    assert told == {"other, causal": "has no causal mask"}


def test_a_baseline_that_does_not_import_says_why(torch, monkeypatch):
    assert baseline().unavailable() is None
    assert "no_such_module" in baseline(module="no_such_module").unavailable()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "json does not import" in baseline().unavailable()


def test_schemes_that_the_gpu_does_not_support_are_left_out(monkeypatch, told):
    def family(scheme, case):
        if scheme == "fp8":
            raise UnsupportedError("needs sm_89")

    monkeypatch.setattr(ours, "family", family)
    able = ours.supported_schemes(SCHEMES, told.__setitem__)
    assert able == [scheme for scheme in SCHEMES if scheme != "fp8"]
    assert told == {"fp8": "needs sm_89"}


@pytest.mark.parametrize("arch", TARGETS)
def test_schemes_that_a_gpu_has_kernels_of_are_measured(arch, monkeypatch, told):
    monkeypatch.setattr(ours, "current_device", lambda: SimpleNamespace(arch=arch))
    able = {scheme.name for scheme in supported(TARGETS[arch])}
    found = ours.supported_schemes(SCHEMES, told.__setitem__)
    assert found == [scheme for scheme in SCHEMES if scheme in able]
    assert [*told] == [name for name in SCHEMES if name not in able]
    assert all(f"sm_{arch}" in reason for reason in told.values())


@pytest.mark.parametrize("case", [*PREFILL, Case.square(1, real_model.HEADS, 510, 32, False)])
def test_rows_say_which_kernels_served_them(case, monkeypatch):
    for arch, family in (("80", "attention_mma"), ("90a", "attention_wgmma")):
        monkeypatch.setattr(ours, "current_device", lambda arch=arch: SimpleNamespace(arch=arch))
        assert ours.family("int8", case) == family
        assert ours.family("int8", case, real_model.DTYPE) == family


def test_long_cases_have_fewer_rounds_and_schemes_are_those_of_the_case(monkeypatch):
    timed = {}

    wanted = inspect.signature(measurements.prefill.timings)

    def timings(case, schemes, present, left_out, rounds, *, warmup, rest, kind):
        wanted.bind(case, schemes, present, left_out, rounds, warmup=warmup, rest=rest, kind=kind)
        assert kind == "prefill"
        timed[case] = (schemes, rounds, warmup, rest)
        return iter([])

    monkeypatch.setattr(measurements.prefill, "timings", timings)
    monkeypatch.setattr(measurements.ours, "supported_schemes", lambda some, told: [*some])
    monkeypatch.setattr(measurements.baselines, "present", lambda told: [])
    monkeypatch.setattr(measurements, "room_for", lambda *args: nullcontext(True))
    for name in ("_host", "_quantizers"):
        monkeypatch.setattr(measurements, name, lambda *args: iter([]))
    assert list(measurements.prefill_timings()) == []
    assert [*timed] == PREFILL
    for case, (schemes, *rounds) in timed.items():
        assert schemes == list(SCHEMES if case in EVERY_SCHEME else CORE)
        short = (ROUNDS, WARMUP, measurements.prefill.REST)
        assert tuple(rounds) == (measurements.OF_LONG if case.seqlen_kv == 16384 else short)


def test_the_kernels_of_mma_are_timed_beside_flash_attention(monkeypatch):
    timed = {}

    def timings(case, schemes, present, left_out, rounds, **options):
        timed[case] = (schemes, [x.name for x in present], options["kind"])
        assert ours.family("int8", case) == "attention_mma"
        return iter([])

    device = SimpleNamespace(arch="90a")
    monkeypatch.setattr(ours, "current_device", lambda: device)
    monkeypatch.setattr(measurements.prefill, "timings", timings)
    monkeypatch.setattr(measurements.baselines, "present", lambda told: baselines.BASELINES)
    monkeypatch.setattr(measurements, "room_for", lambda *args: nullcontext(True))
    assert list(measurements.mma_timings()) == []
    assert [*timed] == [case for case in PREFILL if not case.is_causal]
    wanted = (["int8", "int8-block", "fp16"], ["pytorch-flash"], "mma-sync")
    assert all(found == wanted for found in timed.values())
    assert ours.family("int8", PREFILL[0]) == "attention_wgmma"
