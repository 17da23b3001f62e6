"""Facts of targets and GPUs, with CuPy's run-time replaced by a description of a GPU."""

import importlib.abc
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.foreign import OnGPU

import cuattn
from cuattn.arrays import caller, cuda_runtime, device, view
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
    assert 'pip install "cupy-cuda12x' in detail
    with pytest.raises(NoGPUError, match='pip install "cupy-cuda12x'):
        device.current_device()


@pytest.fixture
def cupy_13(monkeypatch):
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError)
    cuda = SimpleNamespace(runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__="13.6.0", cuda=cuda))
    view.cupy_module.cache_clear()
    yield
    view.cupy_module.cache_clear()


@pytest.mark.usefixtures("cupy_13")
def test_a_cupy_that_is_too_old_is_refused_before_anything_is_launched():
    advice = r'CuPy 13\.6\.0 .* needs 14 .*pip install "cupy-cuda12x>=14'
    for call in (
        lambda: cuattn.attention(OnGPU(), OnGPU(), OnGPU()),
        lambda: cuattn.quantize(OnGPU()),
    ):
        with pytest.raises(UnsupportedError, match=advice):
            call()


@pytest.mark.usefixtures("cupy_13")
def test_arrays_in_host_memory_have_no_need_of_cupy():
    x = np.zeros((1, 1, 4, 8), np.float32)
    assert cuattn.attention(x, x, x).shape == x.shape


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


class CudaError(RuntimeError):
    """As CuPy's, with the number of CUDA's error."""

    def __init__(self, status):
        super().__init__(f"cudaError{status}")
        self.status = status


def unusable_cupy(status, driver=0):
    """Return a CuPy whose CUDA fails in every call but those for versions."""

    def fail(*_):
        raise CudaError(status)

    runtime = SimpleNamespace(
        CUDARuntimeError=CudaError,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 13000,
        **dict.fromkeys(("getDevice", "getDeviceCount", "getDeviceProperties"), fail),
    )
    cuda = SimpleNamespace(runtime=runtime, Device=fail)
    return SimpleNamespace(__version__="14.2.0", cuda=cuda)


@pytest.fixture
def unusable(monkeypatch, uncached_runtime):
    """Let CuPy be one that finds no GPU, by the number of CUDA's error."""

    def use(status, driver=0):
        monkeypatch.setitem(sys.modules, "cupy", unusable_cupy(status, driver))
        caller.cupy_module.cache_clear()

    yield use
    caller.cupy_module.cache_clear()


@pytest.mark.parametrize(
    ("status", "driver", "visible", "text"),
    [
        (35, 0, None, "there is no NVIDIA driver"),
        (35, 12040, None, "the NVIDIA driver is for CUDA 12.4, and CuPy here for CUDA 13"),
        (100, 13000, None, "the NVIDIA driver finds no GPU"),
        (100, 13000, "", "the NVIDIA driver finds no GPU; CUDA_VISIBLE_DEVICES is ''"),
        (3, 13000, None, "cudaError3"),
        (999, 13000, None, "cudaError999"),
    ],
)
def test_why_there_is_no_gpu(unusable, monkeypatch, status, driver, visible, text):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    unusable(status, driver)
    assert device.gpu_status() == ("no-gpu", text)
    with pytest.raises(NoGPUError, match="no usable GPU"):
        device.current_device()


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x: cuattn.attention(x, x, x), id="attention"),
        pytest.param(cuattn.quantize, id="quantize"),
        pytest.param(lambda x: cuattn.measure_error(x, x, x), id="measure_error"),
        pytest.param(lambda x: cuattn.KVCache(1, 1, 64, capacity=64), id="KVCache"),
    ],
)
def test_arrays_on_a_gpu_that_cupy_cannot_use(unusable, call):
    unusable(35, 12040)
    with pytest.raises(NoGPUError, match=r"driver is for CUDA 12\.4"):
        call(OnGPU())


FORK = """
import os, sys
sys.path.insert(0, {tests!r})
from arrays.test_device import CudaError, unusable_cupy
import cuattn
from cuattn.arrays import caller, device

cupy = unusable_cupy(3)
fail = cupy.cuda.runtime.getDeviceCount
# As CUDA does: GPUs are counted, but not used.
cupy.cuda.runtime.getDeviceCount = lambda: 1
cupy.cuda.runtime.free = lambda address: fail()
sys.modules["cupy"] = cupy
assert caller.cupy_module() is cupy
device._devices[0] = "the parent's"
child = os.fork()
if child == 0:
    assert not device._devices
    try:
        caller.cupy_module()
    except cuattn.NoGPUError as error:
        print(error)
        sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_process_is_told_to_be_spawned():
    tests = os.path.dirname(os.path.dirname(__file__))
    run = subprocess.run(
        [sys.executable, "-c", FORK.format(tests=tests)],
        cwd=os.path.dirname(tests),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "start processes with spawn" in run.stdout


def test_home_that_cannot_be_written_does_not_keep_cupy_from_importing(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pytest.importorskip("cupy")
    code = (
        "import os; from cuattn.arrays.cuda_runtime import import_cupy; import_cupy();"
        "from cuattn.compile.nvrtc import nvrtc_version; print(nvrtc_version());"
        "print(os.path.isdir(os.environ['CUPY_CACHE_DIR']), os.environ['CUPY_CACHE_DIR'])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    version, folder = run.stdout.splitlines()
    assert version.startswith("(1")
    made, _, name = folder.partition(" ")
    assert made == "True"
    assert not os.path.exists(name)  # gone with the process


def test_folder_that_the_user_chose_for_cupy_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("CUPY_CACHE_DIR", "chosen")
    cuda_runtime.import_cupy()
    assert os.environ["CUPY_CACHE_DIR"] == "chosen"


@pytest.mark.gpu
def test_forked_process_is_told_to_be_spawned_on_a_gpu():
    code = (
        "import os, cupy, cuattn\n"
        "q = cupy.zeros((1, 1, 64, 64), 'float16')\n"
        "cuattn.attention(q, q, q)\n"
        "cache = cuattn.KVCache(1, 1, 64, capacity=64)\n"
        "calls = (\n"
        "    lambda: cuattn.attention(q, q, q),\n"
        "    lambda: cuattn.quantize(q),\n"
        "    lambda: cuattn.measure_error(q, q, q),\n"
        "    lambda: cuattn.KVCache(1, 1, 64, capacity=64),\n"
        "    lambda: cache.attend(q),\n"
        ")\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    for call in calls:\n"
        "        try:\n"
        "            call()\n"
        "        except cuattn.NoGPUError as error:\n"
        "            print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.count("start processes with spawn") == 5


@pytest.mark.parametrize(
    ("major", "available"), [(7, False), (8, True), (9, True), (12, True), (15, False)]
)
def test_a_gpu_is_available_if_there_are_kernels_for_it(monkeypatch, major, available):
    fake_runtime(monkeypatch, (major, 0))
    assert cuattn.gpu_available() is available


def test_without_a_gpu_none_is_available(unusable):
    unusable(100)
    assert cuattn.gpu_available() is False


@pytest.mark.usefixtures("uncached_runtime", "cupy_13")
def test_a_cupy_that_is_too_old_makes_none_available():
    assert cuattn.gpu_available() is False


@pytest.mark.usefixtures("uncached_runtime")
def test_without_cupy_none_is_available(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert cuattn.gpu_available() is False


def test_status_of_this_computer():
    state, detail = device.gpu_status()
    assert state in ("ok", "no-gpu", "no-cupy")
    assert detail


@pytest.mark.parametrize("name", ["90", "90a", "sm_90a"])
def test_target_by_any_of_its_names(name):
    assert device.target(name) is device.TARGETS["90a"]


def test_unknown_target_lists_the_known():
    with pytest.raises(
        ArgumentError, match=r"arch must be one of sm_80, sm_86.*sm_120a, sm_121a, got 'sm_75'"
    ):
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
