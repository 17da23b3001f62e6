"""The package as a whole: its names, its version, and what importing it costs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cuattn
from cuattn.sources import sources

ROOT = Path(__file__).resolve().parent.parent


def test_version_is_that_of_the_project():
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.*)"$', project, re.MULTILINE)[1] == cuattn.__version__


@pytest.mark.parametrize("name", cuattn.__all__)
def test_public_names_exist(name):
    assert getattr(cuattn, name) is not None


def test_import_leaves_gpu_libraries_alone():
    code = (
        "import sys, cuattn, cuattn.reference, cuattn.plan, cuattn.prepared\n"
        "heavy = ('cupy', 'torch', 'jax', 'ml_dtypes', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_reference_and_kernels_are_found_beside_the_package():
    import cuattn.reference

    assert cuattn.reference.exact is not None
    assert {"attention_mma.cu", "attention_wgmma.cu", "hopper/wgmma_spec.cuh"} <= set(sources())


def test_package_takes_the_kernels_along():
    """Whatever folder of kernels_cu/ a file is in, a pattern of pyproject.toml finds it."""
    project = (ROOT / "pyproject.toml").read_text()
    line = re.search(r'^"cuattn.kernels_cu" = \[(.*)\]$', project, re.MULTILINE)[1]
    folder = ROOT / "kernels_cu"
    taken = {path for pattern in re.findall(r'"(.+?)"', line) for path in folder.glob(pattern)}
    assert {path.relative_to(folder).as_posix() for path in taken} == set(sources())
