"""From a spec to a function that can be launched: compile, keep on disk, load once per GPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from ..arrays.device import Device
from ..errors import CuattnError, UnsupportedError
from . import disk_cache as cache
from .nvrtc import Cubin, checked_arch, compile_source, fingerprint, nvrtc_version
from .sources import sources_digest

__all__ = [
    "Cubin",
    "Spec",
    "begin",
    "compile_cubin",
    "image_of",
    "load",
    "precompile",
    "sources_digest",
]

# Above this a kernel has to ask for its dynamic shared memory; the number is CUDA's.
_SMEM_WITHOUT_ASKING = 48 * 1024
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_..., cuda.h


class Spec(Protocol):
    """A kernel's compile-time parameters, and where the kernel is."""

    @property
    def source(self) -> str:
        """File under kernels_cu/."""

    @property
    def function(self) -> str:
        """Name of the ``template <Struct S> __device__`` function in it."""

    @property
    def params(self) -> str:
        """Name of the struct that the function takes."""

    @property
    def entry(self) -> str:
        """Name that the ``__global__`` function around it shall have."""

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of a CTA."""

    @property
    def prelude(self) -> str:
        """What the unit begins with, before the source."""

    def cxx(self) -> str:
        """Render ``Struct{...}``, which has at least the members num_threads and min_ctas."""


_loaded: dict[tuple[Spec, int], Any] = {}
_loading = threading.Lock()

# Cubins that are being compiled, or read from disk, for a target.
_images: dict[tuple[Spec, str], Future[bytes]] = {}
_beginning = threading.Lock()
_compiling = ThreadPoolExecutor(os.cpu_count(), "cuattn")


def begin(spec: Spec, device: Device) -> None:
    """Begin to get ready, beside others, what `load` will be asked for; reports no failure.

    Parameters
    ----------
    spec : Spec
    device : Device
        From `cuattn.arrays.device.current_device`.
    """
    if (spec, device.ordinal) not in _loaded:
        _image(spec, device.arch)


def load(spec: Spec, device: Device) -> Any:
    """Return the kernel that a spec describes, ready to launch on a device.

    Parameters
    ----------
    spec : Spec
        Hashable; equal specs share one kernel.
    device : Device
        From `cuattn.arrays.device.current_device`.

    Returns
    -------
    cupy.cuda.function.Function
        Of which the driver is told `ptr`.

    Raises
    ------
    CompileError
        If there is no compiler or it rejects the kernel.
    UnsupportedError
        If the compiler is too old for the device, or the driver for the compiler.
    """
    kernel = _loaded.get((spec, device.ordinal))
    return _load(spec, device) if kernel is None else kernel


def compile_cubin(source_file: str, spec: Spec, arch: str) -> Cubin:
    """Compile the kernel of a spec, taken from a file under kernels_cu/; needs no GPU.

    Raises
    ------
    ArgumentError, CompileError, UnsupportedError
        As `cuattn.compile.nvrtc.compile_source`.
    """
    return compile_source(_unit(source_file, spec), arch)


def image_of(unit: str, arch: str) -> bytes:
    """Return the binary of a unit, compiled as by `compile_source` unless it is on disk."""
    return cache.fetch(_file(unit, arch), lambda: compile_source(unit, arch).image)


def precompile(
    specs: Iterable[Spec],
    archs: Sequence[str],
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Fill the disk cache; needs no GPU.

    Parameters
    ----------
    specs : iterable of Spec
    archs : sequence of str
        Targets; every spec is compiled for each of them.
    jobs : int, optional
        Kernels to compile at a time; as many as there are cores by default.
    progress : callable, optional
        Called as ``progress(done, total)`` after each kernel, in the caller's thread.

    Returns
    -------
    int
        How many kernels were compiled; the others were in the cache.

    Raises
    ------
    ArgumentError, CompileError, UnsupportedError
        As `cuattn.compile.nvrtc.compile_source`.
    CuattnError
        If the cache cannot be written.
    """
    archs = [checked_arch(arch) for arch in archs]
    work = [(spec, arch) for spec in dict.fromkeys(specs) for arch in archs]
    compiled = 0
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        try:
            for done, is_new in enumerate(pool.map(lambda job: _save(*job), work), 1):
                compiled += is_new
                if progress is not None:
                    progress(done, len(work))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return compiled


def _load(spec: Spec, device: Device) -> Any:
    with _loading:
        kernel = _loaded.get((spec, device.ordinal))
        if kernel is None:
            try:
                image = _image(spec, device.arch).result()
            finally:
                # Loaded it is not needed any more, and what failed is to be tried again.
                _images.pop((spec, device.arch), None)
            kernel = _loaded[spec, device.ordinal] = _ready(image, spec, device)
        return kernel


def _image(spec: Spec, arch: str) -> Future[bytes]:
    with _beginning:
        if (spec, arch) not in _images:
            _images[spec, arch] = _compiling.submit(_fetch, spec, arch)
        return _images[spec, arch]


def _fetch(spec: Spec, arch: str) -> bytes:
    return image_of(_unit(spec.source, spec), arch)


def _ready(image: bytes, spec: Spec, device: Device) -> Any:
    import cupy

    try:
        with cupy.cuda.Device(device.ordinal):
            module = cupy.cuda.function.Module()
            module.load(image)
            kernel = module.get_function(spec.entry)  # keeps its module loaded
            if spec.smem_bytes > _SMEM_WITHOUT_ASKING:
                cupy.cuda.driver.funcSetAttribute(
                    kernel.ptr, _MAX_DYNAMIC_SHARED_SIZE_BYTES, spec.smem_bytes
                )
    except cupy.cuda.driver.CUDADriverError as error:
        major, minor = nvrtc_version()
        raise UnsupportedError(
            f"{device.name} refuses {spec.entry} for sm_{device.arch}: {error}; NVRTC {major}."
            f"{minor} compiled it, so the driver has to support CUDA {major}"
        ) from None
    return kernel


def _unit(source_file: str, spec: Spec) -> str:
    # Apart from the literal and the entry all text of ours is in files: messages name real lines.
    return (
        f"{spec.prelude}"
        f'#include "{source_file}"\n'
        f"constexpr auto S = {spec.cxx()};\n"
        f'extern "C" __global__ void __launch_bounds__(S.num_threads, S.min_ctas)\n'
        f"{spec.entry}(const __grid_constant__ {spec.params} p) {{ {spec.function}<S>(p); }}\n"
    )


def _file(text: str, arch: str) -> Path:
    return cache.path(cache.key((sources_digest(), text, arch, *fingerprint())), arch)


def _save(spec: Spec, arch: str) -> bool:
    text = _unit(spec.source, spec)
    file = _file(text, arch)
    if cache.read(file) is not None:
        return False
    image = compile_source(text, arch).image
    try:
        cache.write(file, image)
    except OSError as error:
        raise CuattnError(
            f"the kernel cache cannot be written: {error}; CUATTN_CACHE_DIR chooses another folder"
        ) from None
    return True
