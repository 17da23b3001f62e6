"""Compiling, caching and loading kernels, on a tiny kernel that stands in for kernels_cu/."""

import re
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from threading import Barrier
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from cuattn.arrays.device import TARGETS, Device, all_targets, target
from cuattn.compile import cache_folder, jit, sources
from cuattn.compile import disk_cache as cache
from cuattn.compile import nvrtc as compiler
from cuattn.errors import ArgumentError, CompileError, CuattnError, UnsupportedError

cupy = pytest.importorskip("cupy")

KERNEL = """
#include "part/offset.cuh"
struct TinySpec { int step; int num_threads; int min_ctas; };
struct TinyParams { int* out; int first; };
template <TinySpec S>
__device__ void tiny(const TinyParams& p) {
  p.out[threadIdx.x] = p.first + kOffset + S.step * threadIdx.x;
}
"""


@dataclass(frozen=True)
class TinySpec:
    source: ClassVar[str] = "tiny.cu"
    entry: ClassVar[str] = "tiny_entry"
    function: ClassVar[str] = "tiny"
    params: ClassVar[str] = "TinyParams"
    prelude: ClassVar[str] = ""

    step: int = 2
    smem_bytes: int = 0

    def cxx(self):
        return f"TinySpec{{.step = {self.step}, .num_threads = 32, .min_ctas = 1}}"


H100 = Device(0, "NVIDIA Test", "90", "90a", 132, 232448, 233472)


READ_ONCE = (
    sources.sources,
    sources.sources_digest,
    compiler._nvrtc,
    compiler._headers,
)


def forget():
    """Make the next use read sources and compiler afresh, as a new process would."""
    for cached in READ_ONCE:
        cached.cache_clear()


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A folder that takes the place of kernels_cu/, and an empty cache."""
    folder = tmp_path / "kernels"
    (folder / "part").mkdir(parents=True)
    (folder / "tiny.cu").write_text(KERNEL)
    (folder / "part" / "offset.cuh").write_text("#pragma once\nconstexpr int kOffset = 1;\n")
    (folder / "notes.txt").write_text("not a source")
    monkeypatch.setattr(sources, "files", lambda package: folder)
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_unsaved", {})
    monkeypatch.setattr(jit, "_loaded", {})
    forget()
    yield folder
    forget()


@pytest.fixture
def compiled(kernels, monkeypatch):
    """What was compiled, as a growing list of targets; loading on a GPU is left out."""
    log = []

    def counting(text, arch, name="unit.cu"):
        log.append(arch)
        return compiler.compile_source(text, arch, name)

    monkeypatch.setattr(jit, "compile_source", counting)
    monkeypatch.setattr(jit, "_ready", lambda image, spec, device: SimpleNamespace(image=image))
    return log


def test_sources_are_named_by_their_place(kernels):
    assert list(sources.sources()) == ["part/offset.cuh", "tiny.cu"]
    assert sources.sources()["tiny.cu"] == KERNEL


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("arch", TARGETS)
def test_cubin_is_a_whole_elf_file_with_the_entry(kernels, arch):
    if not compiler.can_compile_for(target(arch)):  # NVRTC before 12.8
        with pytest.raises(UnsupportedError, match=f"sm_{arch}"):
            jit.compile_cubin("tiny.cu", TinySpec(), arch)
        return
    cubin = jit.compile_cubin("tiny.cu", TinySpec(), arch)
    assert list(cubin.info) == ["tiny_entry"]
    assert 0 < cubin.info["tiny_entry"].registers < 64
    assert cubin.info["tiny_entry"].spill_stores == 0
    # The program header table is the last thing in NVRTC's files; CuPy would lose its last byte.
    assert cubin.image[:4] == b"\x7fELF"
    (phoff,) = struct.unpack_from("<Q", cubin.image, 32)
    size, count = struct.unpack_from("<HH", cubin.image, 54)
    assert phoff + size * count == len(cubin.image)


def test_compile_error_carries_the_log_with_the_real_file(kernels):
    (kernels / "part" / "offset.cuh").write_text("#pragma once\nconstexpr int kOffset = nothing;\n")
    with pytest.raises(CompileError, match="sm_80") as caught:
        jit.compile_cubin("tiny.cu", TinySpec(), "80")
    assert "part/offset.cuh(2): error" in caught.value.log
    assert '"nothing" is undefined' in caught.value.log


def test_missing_kernels_are_reported(monkeypatch):
    def absent(package):
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(sources, "files", absent)
    forget()
    with pytest.raises(CompileError, match="lacks its kernels_cu"):
        compiler.compile_source("", "80")
    forget()


def test_unknown_target_is_an_argument_error(kernels):
    with pytest.raises(ArgumentError, match="arch must be one of"):
        jit.compile_cubin("tiny.cu", TinySpec(), "75")


OF_CUDA_12_4 = (12, 4), (75, 80, 86, 87, 89, 90)


def pretend(monkeypatch, version, archs, cupys_major=12):
    """Let the compiler be another one."""
    other = SimpleNamespace(getVersion=lambda: version, getSupportedArchs=lambda: archs)
    monkeypatch.setattr(compiler, "_nvrtc", lambda: other)
    monkeypatch.setattr(compiler, "_cuda_major", lambda cupy: cupys_major)


def test_old_compiler_does_for_the_targets_that_it_knows(kernels, monkeypatch):
    pretend(monkeypatch, *OF_CUDA_12_4)
    able = [known.arch for known in all_targets() if compiler.can_compile_for(known)]
    assert able == ["80", "86", "87", "89", "90a"]
    assert compiler.checked_arch("sm_90") == "90a"


def test_compiler_too_old_for_the_target_says_which_it_has_and_what_is_needed(kernels, monkeypatch):
    pretend(monkeypatch, *OF_CUDA_12_4)
    expected = (
        "NVRTC 12.4 cannot compile for sm_100a, which needs CUDA 12.8 or newer; it has sm_80, "
        'sm_86, sm_87, sm_89, sm_90a: pip install "nvidia-cuda-nvrtc-cu12>=12.8"'
    )
    with pytest.raises(UnsupportedError, match=f"^{re.escape(expected)}$"):
        compiler.checked_arch("100a")
    with pytest.raises(UnsupportedError, match=r"driver for CUDA 13.*cupy-cuda13x"):
        compiler.checked_arch("110a")


def test_compiler_older_than_any_that_was_tried_has_no_targets(kernels, monkeypatch):
    pretend(monkeypatch, (12, 3), (80, 90))
    with pytest.raises(UnsupportedError, match=r"sm_80, .*CUDA 12\.4 .* none of the targets"):
        compiler.checked_arch("80")


def test_missing_cupy_says_what_to_install(kernels, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(CompileError, match=r'no CuPy.*pip install "cupy-cuda12x.*"cupy-cuda13x'):
        compiler.nvrtc_version()


def test_missing_nvrtc_says_what_to_install(kernels, monkeypatch):
    def version():
        raise RuntimeError("libnvrtc.so not found\nin any place")

    monkeypatch.setattr("cupy.cuda.nvrtc.getVersion", version)
    monkeypatch.setattr(compiler, "_cuda_major", lambda cupy: 12)
    expected = r'found in any place; pip install "nvidia-cuda-nvrtc-cu12.*runtime'
    with pytest.raises(CompileError, match=expected):
        jit.precompile([TinySpec()], ["80"])


def test_load_compiles_once_per_spec_and_loads_once_per_device(compiled):
    first = jit.load(TinySpec(), H100)
    assert jit.load(TinySpec(), H100) is first
    assert jit.load(TinySpec(), replace(H100, ordinal=1)) is not first
    assert compiled == ["90a"]
    jit.load(TinySpec(step=3), H100)
    jit.load(TinySpec(), replace(H100, ordinal=2, arch="80"))
    assert compiled == ["90a", "90a", "80"]


def test_threads_share_one_compilation(compiled):
    with ThreadPoolExecutor(8) as pool:
        kernels = set(map(id, pool.map(lambda _: jit.load(TinySpec(), H100), range(32))))
    assert len(kernels) == 1
    assert len(compiled) == 1


def test_kernels_that_were_begun_compile_side_by_side(compiled, monkeypatch):
    both = Barrier(2, timeout=60)

    def meeting(text, arch):
        both.wait()  # breaks if one waits for the other to end
        return compiler.compile_source(text, arch)

    monkeypatch.setattr(jit, "compile_source", meeting)
    monkeypatch.setattr(jit, "_compiling", ThreadPoolExecutor(2))
    specs = TinySpec(), TinySpec(step=3)
    for spec in specs:
        jit.begin(spec, H100)
    assert len({jit.load(spec, H100).image for spec in specs}) == 2


def test_what_failed_in_the_background_is_raised_when_asked_for_and_tried_again(compiled):
    broken = TinySpec(step="nothing")
    jit.begin(broken, H100)
    for _ in range(2):
        with pytest.raises(CompileError):
            jit.load(broken, H100)
    assert len(compiled) == 2


def test_what_is_loaded_is_not_begun_again(compiled):
    jit.load(TinySpec(), H100)
    jit.begin(TinySpec(), H100)
    assert jit._images == {}


def new_process(monkeypatch):
    forget()
    monkeypatch.setattr(jit, "_loaded", {})


def test_another_process_reads_the_cache(compiled, monkeypatch):
    image = jit.load(TinySpec(), H100).image
    new_process(monkeypatch)
    assert jit.load(TinySpec(), H100).image == image
    assert len(compiled) == 1


@pytest.mark.parametrize("name", ["part/offset.cuh", "tiny.cu", "new.cuh"])
def test_edited_source_never_meets_an_old_binary(compiled, kernels, monkeypatch, name):
    jit.load(TinySpec(), H100)
    new_process(monkeypatch)
    with (kernels / name).open("a") as file:
        file.write("// edited\n")
    jit.load(TinySpec(), H100)
    assert len(compiled) == 2


def test_another_compiler_or_option_makes_another_binary(compiled, monkeypatch):
    def loaded():
        monkeypatch.setattr(jit, "_loaded", {})
        jit.load(TinySpec(), H100)
        return len(compiled)

    assert loaded() == 1
    version, *options = compiler.fingerprint()
    monkeypatch.setattr(jit, "fingerprint", lambda: ("NVRTC 0.0", *options))
    assert loaded() == 2
    monkeypatch.setattr(jit, "fingerprint", lambda: (version, *options, "-ftz=true"))
    assert loaded() == 3
    monkeypatch.setattr(jit, "fingerprint", lambda: (version, *options))
    assert loaded() == 3


def test_damaged_file_is_compiled_again(compiled, tmp_path, monkeypatch):
    image = jit.load(TinySpec(), H100).image
    (file,) = (tmp_path / "cache" / "sm_90a").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    new_process(monkeypatch)
    assert jit.load(TinySpec(), H100).image == image
    assert len(compiled) == 2
    assert file.read_bytes() == whole


def test_cache_that_cannot_be_written_is_kept_in_memory(compiled, tmp_path):
    (tmp_path / "cache").write_text("a file is in the way")
    jit.load(TinySpec(), H100)
    jit.load(TinySpec(), replace(H100, ordinal=1))
    assert compiled == ["90a"]
    with pytest.raises(CuattnError, match=r"cache cannot be written.*CUATTN_CACHE_DIR"):
        jit.precompile([TinySpec()], ["80"])


def test_precompile_fills_the_cache_and_reports(compiled):
    specs = [TinySpec(), TinySpec(step=3), TinySpec()]
    seen = []
    archs = ["80", "sm_90"]
    assert jit.precompile(specs, archs, 2, lambda *done: seen.append(done)) == 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert cache_folder.usage()[0] == 4
    assert jit.precompile(specs, archs) == 0
    jit.load(TinySpec(), H100)
    assert sorted(compiled) == ["80", "80", "90a", "90a"]


def test_precompile_stops_at_the_first_error(compiled):
    broken = TinySpec(step="nothing")
    with pytest.raises(CompileError) as caught:
        jit.precompile([broken], ["80"])
    assert "nothing" in caught.value.log


@pytest.fixture
def gpu(monkeypatch):
    """CuPy's module loading, written down instead of done."""
    calls = []

    class Module:
        def load(self, image):
            calls.append(("load", image))

        def get_function(self, name):
            calls.append(("get_function", name))
            return SimpleNamespace(ptr=1234)

    monkeypatch.setattr("cupy.cuda.function.Module", Module)
    monkeypatch.setattr("cupy.cuda.Device", lambda n: nullcontext(calls.append(("device", n))))
    monkeypatch.setattr(
        "cupy.cuda.driver.funcSetAttribute", lambda *args: calls.append(("attribute", *args))
    )
    return calls


def test_loading_asks_for_shared_memory_only_above_48_kib(gpu):
    loaded = [("device", 0), ("load", b"image"), ("get_function", "tiny_entry")]
    assert jit._ready(b"image", TinySpec(smem_bytes=48 * 1024), H100).ptr == 1234
    assert gpu == loaded
    gpu.clear()
    jit._ready(b"image", TinySpec(smem_bytes=100_000), H100)
    assert gpu == [*loaded, ("attribute", 1234, 8, 100_000)]


def test_driver_that_refuses_a_binary_is_unsupported(gpu, monkeypatch):
    class RefusedError(Exception):
        pass

    def refuse(self, image):
        raise RefusedError("CUDA_ERROR_NO_BINARY_FOR_GPU")

    monkeypatch.setattr("cupy.cuda.driver.CUDADriverError", RefusedError)
    monkeypatch.setattr("cupy.cuda.function.Module.load", refuse)
    with pytest.raises(UnsupportedError, match=r"NVIDIA Test.*NO_BINARY_FOR_GPU.*CUDA \d+"):
        jit._ready(b"image", TinySpec(), H100)


@pytest.mark.gpu
@pytest.mark.parametrize("step", [2, 5])
def test_loaded_kernel_runs(kernels, step):
    from cuattn.arrays.device import current_device

    out = cupy.zeros(32, cupy.int32)
    record = np.zeros(1, {"names": ["out", "first"], "formats": ["<u8", "<i4"], "itemsize": 16})
    record[0] = (out.data.ptr, 10)
    jit.load(TinySpec(step=step), current_device())((1,), (32,), (record,), 0)
    np.testing.assert_array_equal(out.get(), 11 + step * np.arange(32))
