"""`make gpu-check-multi`: rings on as many GPUs as there are, and a record of what they did.

python -m benchmarks.multi_gpu --out benchmarks/records [--gpus N] [--within SECONDS] [--only PART]

One process for each GPU, started here with the variables that torchrun sets, and NCCL through CuPy.
First what they compute, then a rank that dies, then times, ours and those of PyTorch's own ring.
``--rehearse`` runs the same on small shapes without a GPU, over the host and with gloo, and writes
no times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cuattn.arrays.device import current_device, gpu_available
from cuattn.bench.results import PACKAGES, versions
from cuattn.common.typed_json import read
from cuattn.records import record
from cuattn.records.rows import Timing

from .commands import ROOT
from .gpu_check import TESTED_WITH, slug
from .multi_gpu_ranks import PARTS

__all__ = ["main"]

# Of the process that starts the others, for any port that is free.
HOST = "127.0.0.1"
FIRST_PORT = 29541

# Seconds that what comes before the times may take, and a rank that dies be noticed within.
CHECK_S, DEATH_S = 150, 60
# Seconds for what others have, at the end.
BESIDE_S = 50


def main() -> int:
    """Run all parts, write the record, and return 0 if everything held."""
    options = _options()
    begun = time.monotonic()
    failures: list[str] = []
    timings: list[Timing] = []
    if options.only:
        with tempfile.TemporaryDirectory() as name:
            failures = _part(options.only, Path(name), options, options.within)
        print(*failures, sep="\n")
        return bool(failures)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, limit in (("check", CHECK_S), ("torch", DEATH_S), ("death", DEATH_S)):
            failures += _part(part, folder, options, limit)
        left = options.within - BESIDE_S - (time.monotonic() - begun)
        failures += _part("times", folder, options, max(left, 30), f"--seconds={left:.0f}")
        # What others have is theirs: it is told of, and fails nothing.
        for line in _part("beside", folder, options, BESIDE_S, f"--seconds={BESIDE_S // 2}"):
            print(f"left out: {line}")
        for name in ("times", "beside"):
            file = folder / f"{name}.json"
            timings += read(file, list[Timing]) if file.exists() else []
    for line in failures:
        print(f"FAILED: {line}")
    if options.rehearse:
        return bool(failures)
    gpu = current_device().name
    found = record.Record(
        digest=record.digest(),
        gpu=f"{options.gpus} of {gpu}",
        versions=versions((*PACKAGES, *TESTED_WITH)),
        failures="; ".join(failures) or None,
        timings=timings,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{slug(gpu)}_x{options.gpus}.json"
    record.save(found, path)
    print(f"{len(timings)} times in {path}, {time.monotonic() - begun:.0f} s")
    return bool(failures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records"))
    parser.add_argument("--gpus", type=int, help="how many (all)")
    parser.add_argument("--within", type=float, default=240, help="seconds in all (240)")
    parser.add_argument("--rehearse", action="store_true", help="without GPUs, small shapes")
    parser.add_argument("--only", choices=PARTS, help="one part, and no record")
    options = parser.parse_args()
    if options.gpus is None:
        options.gpus = 2 if options.rehearse else _gpus()
    return options


def _gpus() -> int:
    if not gpu_available():
        sys.exit("no GPU that CuPy can use; --rehearse runs without")
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def _part(
    part: str, folder: Path, options: argparse.Namespace, limit: float, *more: str
) -> list[str]:
    """Run a part in a process for each GPU, and return what did not hold."""
    begun = time.monotonic()
    file = folder / f"{part}.json"
    command = [sys.executable, "-m", "benchmarks.multi_gpu_ranks", part, str(file), *more]
    command += ["--rehearse"] * options.rehearse
    port = FIRST_PORT + len(list(folder.iterdir()))
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    processes = []
    for rank in range(options.gpus):
        env = {
            "GLOO_SOCKET_IFNAME": "lo",  # all ranks are on this computer
            **os.environ,
            "PYTHONPATH": paths,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(options.gpus),
            "LOCAL_WORLD_SIZE": str(options.gpus),
            "MASTER_ADDR": HOST,
            "MASTER_PORT": str(port + os.getpid() % 1000),
        }
        if options.rehearse:
            env["CUDA_VISIBLE_DEVICES"] = ""
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env))
    failures = []
    for rank, process in enumerate(processes):
        try:
            code = process.wait(max(1.0, begun + limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            failures.append(f"{part}: rank {rank} took longer than {limit:.0f} s")
        else:
            if code:
                failures.append(f"{part}: rank {rank} ended with {code}")
    for process in processes:
        process.kill()
        process.wait()
    said = folder / f"{part}.failures.json"
    if said.exists():
        failures += json.loads(said.read_text())
    print(f"{part}: {time.monotonic() - begun:.0f} s, {len(failures)} failures", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
