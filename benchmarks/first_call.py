"""What the first call of each scheme takes, most of which is compiling its kernels.

    python -m benchmarks.first_call --arch sm_90a --out first_call.json

Without a GPU: the kernels that the call loads, each compiled alone, and all of them at once by a
thread for each. With one also the call itself, in a process of its own: from an empty cache on
disk, and again from the full one.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.call_kernels import CACHES, kernels_of
from benchmarks.first_results import (
    GOAL_COLD,
    GOAL_WARM,
    HEAD_DIM,
    NO_DRIVER_CACHE,
    cold_and_warm,
)
from cuattn.arrays.device import current_device, gpu_status, target
from cuattn.cli.progress import Bar
from cuattn.cli.table import Group, render
from cuattn.compile.jit import Spec, compile_cubin
from cuattn.compile.nvrtc import checked_arch, nvrtc_version
from cuattn.plan.kernels import supported


@dataclass(frozen=True)
class CallTimes:
    """Seconds of one kind of call and of its kernels.

    Attributes
    ----------
    call : str
        A scheme, or a cache of `CACHES`.
    kernels : list of (str, float)
        Entry of each kernel, and seconds to compile it.
    together : float
        Seconds to compile all of them, in a thread for each.
    cold, warm : float, optional
        Seconds from the call to its result on the GPU, from an empty and from a full cache.
    """

    call: str
    arch: str
    head_dim: int
    kernels: list[tuple[str, float]]
    together: float
    cold: float | None = None
    warm: float | None = None

    @property
    def alone(self) -> float:
        """Seconds to compile one kernel after the other."""
        return sum(seconds for _, seconds in self.kernels)

    @property
    def longest(self) -> float:
        """Seconds to compile the kernel that takes longest."""
        return max(seconds for _, seconds in self.kernels)


def measure(call: str, head_dim: int, arch: str, on_gpu: bool) -> CallTimes:
    """Measure one kind of call; `on_gpu` if this computer's GPU is of that architecture."""
    specs = kernels_of(call, head_dim, arch)
    alone = [(spec.entry, _seconds([spec], arch)) for spec in specs]
    together = _seconds(specs, arch)
    cold, warm = cold_and_warm(call, head_dim) if on_gpu else (None, None)
    return CallTimes(call, arch, head_dim, alone, together, cold, warm)


def _seconds(specs: Sequence[Spec], arch: str) -> float:
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(specs)) as pool:
        for _ in pool.map(lambda spec: compile_cubin(spec.source, spec, arch), specs):
            pass
    return time.perf_counter() - begun


def table(found: Sequence[CallTimes]) -> str:
    """Lay out the figures."""
    columns = ["kernels", "alone s", "longest s", "together s", "cold s", "warm s"]
    rows = [
        (x.call, [len(x.kernels), x.alone, x.longest, x.together, x.cold, x.warm]) for x in found
    ]
    return render(columns, [Group(f"sm_{found[0].arch}, head_dim {found[0].head_dim}", rows)])


def beyond_goal(found: Sequence[CallTimes]) -> list[str]:
    """Return the calls that take longer than they should; without a GPU, compiling alone."""
    lines = []
    for x in found:
        cold = x.alone if x.cold is None else x.cold
        for name, seconds, goal in (("cold", cold, GOAL_COLD), ("warm", x.warm, GOAL_WARM)):
            if seconds is not None and seconds > goal:
                lines.append(f"{x.call}: {name} {seconds:.1f} s, more than {goal:g} s")
    return lines


def main() -> None:
    """Measure all schemes and two caches, print a table and write a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--arch", help="the target (this computer's GPU)")
    parser.add_argument("--head-dim", type=int, default=HEAD_DIM)
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args()
    os.environ.update(NO_DRIVER_CACHE)
    own = current_device().arch if gpu_status()[0] == "ok" else None
    if args.arch is None and own is None:
        parser.error("--arch is needed on a computer without a GPU")
    arch = checked_arch(args.arch or own)
    calls = [*(scheme.name for scheme in supported(target(arch))), *CACHES]
    found = []
    with Bar() as bar:
        show = bar.task(f"sm_{arch}")
        for done, call in enumerate(calls, 1):
            found.append(measure(call, args.head_dim, arch, arch == own))
            show(done, len(calls))
    print("\n".join([table(found), *beyond_goal(found)]))
    if args.out is not None:
        about = {
            "nvrtc": "{}.{}".format(*nvrtc_version()),
            "cores": os.cpu_count(),
            "gpu": current_device().name if own else None,
        }
        content = {**about, "calls": [asdict(x) for x in found]}
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
