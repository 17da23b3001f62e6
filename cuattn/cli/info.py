"""``cuattn info``: what there is on this computer, and what it can run."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from .. import __version__
from ..arrays.device import all_targets, current_device, gpu_status, target
from ..compile.nvrtc import can_compile_for, checked_arch, nvrtc_version
from ..errors import CuattnError
from ..operands.operand import DTYPES
from ..plan.listing import attention_specs
from ..presets import PRESETS
from ..records import record
from ..reference.layout import HEAD_DIMS
from ..scheme import Scheme
from .cache import summary

__all__ = ["add_to"]

NAME_WIDTH = max(map(len, PRESETS))
KIB = 1024


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "info",
        help="GPU, compiler, cache, and what this computer can run",
        description="GPU, driver, compiler, kernel cache, records of GPU runs, and which schemes "
        "this computer can run, or why not.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print what there is."""
    for name, text in _facts():
        print(f"{name:{NAME_WIDTH}} {text}")
    print("schemes")
    for scheme in PRESETS.values():
        print(f"  {scheme.name:{NAME_WIDTH}} {_or_why_not(partial(_runs_on, scheme))}")


def _facts() -> Iterator[tuple[str, str]]:
    yield "cuattn", f"{__version__}, Python {platform.python_version()}, NumPy {np.__version__}"
    state, detail = gpu_status()
    if state == "ok":
        for ordinal in range(int(detail)):
            yield f"GPU {ordinal}", _or_why_not(partial(_gpu, ordinal))
        yield "driver", _driver()
    else:
        yield "GPU", f"none: {_first_line(detail)}"
    yield "compiler", _or_why_not(_compiler)
    yield "kernel cache", _or_why_not(summary)
    lines = [f"{status.path.name}: {status}" for status in record.status()]
    for line in lines or ["none"]:
        yield "GPU record", line


def _or_why_not(describe: Callable[[], str]) -> str:
    try:
        return describe()
    except CuattnError as error:
        return f"no: {_first_line(str(error))}"


def _first_line(text: str) -> str:
    return text.splitlines()[0]


def _gpu(ordinal: int) -> str:
    import cupy

    with cupy.cuda.Device(ordinal):
        device = current_device()
    major, minor = device.compute_capability[:-1], device.compute_capability[-1]
    return (
        f"{device.name}, compute capability {major}.{minor} (sm_{device.arch}), "
        f"{device.num_sms} SMs, {device.max_smem_per_cta // KIB} KiB of shared memory for a CTA"
    )


def _driver() -> str:
    import cupy

    version = cupy.cuda.runtime.driverGetVersion()
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


def _compiler() -> str:
    version = "NVRTC {}.{}".format(*nvrtc_version())
    import cupy  # there is one, or there would be no NVRTC

    able: list[str] = []
    needing: dict[tuple[int, int], list[str]] = {}
    for known in all_targets():
        names = able if can_compile_for(known) else needing.setdefault(known.min_toolkit, [])
        names.append(f"sm_{known.arch}")
    compiles = [f"compiles for {', '.join(able) or 'none of the targets'}"]
    for (major, minor), names in sorted(needing.items()):
        compiles.append(f"{', '.join(names)} from CUDA {major}.{minor} on")
    return f"{version}, CuPy {cupy.__version__}; {'; '.join(compiles)}"


def _runs_on(scheme: Scheme) -> str:
    """Say which kernels run a scheme on the current GPU, or raise why none does."""
    if gpu_status()[0] != "ok":
        return "emulated in NumPy, as there is no GPU"
    arch = checked_arch(current_device().arch)
    specs = attention_specs([scheme], HEAD_DIMS, DTYPES, target(arch))
    return ", ".join(dict.fromkeys(spec.source for spec in specs)) + f" for sm_{arch}"
