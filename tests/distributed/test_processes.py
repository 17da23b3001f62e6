"""Ranks that are processes, of MPI and of PyTorch's gloo: bit for bit ranks of one process."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import cuattn

HERE = Path(__file__).parent
ROOT = Path(cuattn.__file__).resolve().parents[1]
LIMIT_S = 60


def environment(**more):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **more}


def by_mpi(size, what, where="host"):
    """Return what processes of mpiexec print."""
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("no mpiexec: pip install mpich")
    version = subprocess.run([launcher, "--version"], capture_output=True, text=True).stdout
    command = [launcher, "-n", str(size)]
    if "open" in version.lower():
        command += ["--oversubscribe", "--allow-run-as-root"]
    command += [sys.executable, str(HERE / "between_processes.py"), what, "mpi", where]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S
    )
    return done.stdout, done.stderr


def by_torch(size, what):
    """Return what processes with the variables of torchrun print."""
    with socket.socket() as any_free:
        any_free.bind(("127.0.0.1", 0))
        port = str(any_free.getsockname()[1])
    command = [sys.executable, str(HERE / "between_processes.py"), what, "torch"]
    processes = [
        subprocess.Popen(
            command,
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                CUDA_VISIBLE_DEVICES="",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        found = [process.communicate(timeout=LIMIT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return "".join(out for out, _ in found), "".join(err for _, err in found)


@pytest.mark.needs("mpi4py")
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_processes_of_mpi(size):
    out, err = by_mpi(size, "equal")
    assert f"MPIGroup {size}" in out, err
    assert "calls equal" in out


@pytest.mark.gpu
@pytest.mark.needs("mpi4py")
@pytest.mark.parametrize("size", [2, 4])
def test_processes_of_mpi_share_a_gpu(size):
    out, err = by_mpi(size, "equal", "gpu")
    assert f"MPIGroup {size}" in out, err
    assert "calls equal" in out


@pytest.mark.needs("torch")
def test_processes_of_gloo():
    out, err = by_torch(2, "equal")
    assert "TorchGroup 2" in out, err
    assert "calls equal" in out


@pytest.mark.needs("mpi4py")
def test_processes_that_differ_are_all_told():
    out, err = by_mpi(2, "differ")
    lines = [line for line in out.splitlines() if line.startswith("differ: scale must be equal")]
    assert len(lines) == 2, err
    assert len(set(lines)) == 1


@pytest.mark.needs("torch")
def test_a_process_of_gloo_that_is_gone_ends_in_an_error():
    out, err = by_torch(2, "dead")
    assert "dead: " in out, err
