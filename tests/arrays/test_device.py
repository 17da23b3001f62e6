"""Facts of targets and GPUs, with CuPy's run-time replaced by a description of a GPU."""

import importlib.abc
import sys
from types import SimpleNamespace

import pytest

from cuattn.arrays import device
from cuattn.errors import ArgumentError, NoGPUError, UnsupportedError


class NoDeviceError(RuntimeError):
    pass


def fake_runtime(monkeypatch, *gpus):
    """Let `current_device` see these (major, minor) GPUs; the first is current."""
    asked = []

    def properties(ordinal):
        asked.append(ordinal)
        major, minor = gpus[ordinal]
        return {
            "name": b"NVIDIA Test",
            "major": major,
            "minor": minor,
            "multiProcessorCount": 132,
            "sharedMemPerBlockOptin": 232448,
            "sharedMemPerMultiprocessor": 233472,
        }

    def current():
        if not gpus:
            raise NoDeviceError("cudaErrorNoDevice")
        return runtime.current

    runtime = SimpleNamespace(
        getDevice=current,
        getDeviceProperties=properties,
        CUDARuntimeError=NoDeviceError,
        current=0,
    )
    monkeypatch.setattr(device, "_runtime", lambda: runtime)
    monkeypatch.setattr(device, "_devices", {})
    return runtime, asked


def test_device_is_described_once_per_ordinal(monkeypatch):
    runtime, asked = fake_runtime(monkeypatch, (9, 0), (8, 6))
    first = device.current_device()
    assert first == device.Device(0, "NVIDIA Test", "90", "90a", 132, 232448, 233472)
    assert device.current_device() is first
    runtime.current = 1
    assert device.current_device().arch == "86"
    assert asked == [0, 1]


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((8, 0), "80"), ((8, 9), "89"), ((10, 0), "100a"), ((10, 3), "103a"), ((12, 1), "121a")],
)
def test_arch_is_the_one_with_the_gpus_own_instructions(monkeypatch, capability, arch):
    fake_runtime(monkeypatch, capability)
    assert device.current_device().arch == arch
    assert device.target(arch).arch == arch


@pytest.mark.parametrize("capability", [(7, 5), (15, 0)])
def test_gpu_without_kernels_is_refused(monkeypatch, capability):
    fake_runtime(monkeypatch, capability)
    with pytest.raises(UnsupportedError, match=r"compute capability \d+\.\d"):
        device.current_device()


def test_no_gpu_says_why(monkeypatch):
    fake_runtime(monkeypatch)
    with pytest.raises(NoGPUError, match="cudaErrorNoDevice"):
        device.current_device()


@pytest.fixture
def uncached_runtime():
    device._runtime.cache_clear()
    yield
    device._runtime.cache_clear()


@pytest.mark.usefixtures("uncached_runtime")
def test_no_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    state, detail = device.gpu_status()
    assert state == "no-cupy"
    assert "pip install cuattn[cuda12]" in detail
    with pytest.raises(NoGPUError, match=r"pip install cuattn\[cuda12\]"):
        device.current_device()


@pytest.mark.usefixtures("uncached_runtime")
def test_cupy_that_cannot_make_its_folder_is_reported(monkeypatch):
    class ReadOnlyHome(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "cupy":
                raise PermissionError("~/.cupy")

    for name in [n for n in sys.modules if n.partition(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [ReadOnlyHome(), *sys.meta_path])
    assert device.gpu_status()[0] == "no-cupy"
    with pytest.raises(NoGPUError, match="CUPY_CACHE_DIR"):
        device.current_device()


def test_status_of_this_computer():
    state, detail = device.gpu_status()
    assert state in ("ok", "no-gpu", "no-cupy")
    assert detail


@pytest.mark.parametrize("name", ["90", "90a", "sm_90a"])
def test_target_by_any_of_its_names(name):
    assert device.target(name) is device.TARGETS["90a"]


def test_unknown_target_lists_the_known():
    with pytest.raises(ArgumentError, match=r"arch must be one of.*'120a'"):
        device.target("sm_75")


def test_target_facts():
    # Table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide:
    # a CTA gets what the SM has, less 1 KiB that the driver keeps.
    for target in device.TARGETS.values():
        assert target.max_smem_per_cta == target.max_smem_per_sm - 1024
    kib = {arch: t.max_smem_per_cta // 1024 for arch, t in device.TARGETS.items()}
    assert kib == {"80": 163, "86": 99, "89": 99, "90a": 227, "100a": 227, "120a": 99}
    assert [a for a, t in device.TARGETS.items() if t.native_s4] == ["80", "86", "89"]
    assert [a for a, t in device.TARGETS.items() if t.native_e4m3_mma] == ["89", "120a"]


@pytest.mark.gpu
def test_target_agrees_with_this_gpu():
    here = device.current_device()
    facts = device.target(here.arch)
    assert here.max_smem_per_cta == facts.max_smem_per_cta
    assert here.max_smem_per_sm == facts.max_smem_per_sm
