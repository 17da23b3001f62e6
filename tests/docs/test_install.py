"""What can be installed beside what: extras, PyTorch, Python, and all that messages advise.

Packages are resolved only; metadata is all that is downloaded.
"""

import re
import shlex
import sys

import pytest
from helpers.package_index import ROOT, resolved

from cuattn.arrays.cuda_runtime import CUPY_PACKAGES, install_advice, pip_install
from cuattn.arrays.device import all_targets
from cuattn.compile import nvrtc

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PROJECT = "pyproject.toml"
# The oldest PyTorch that the extras promise to go with.
OLDEST_TORCH = 6

index = pytest.mark.index


@index
def test_extras_go_with_every_pytorch():
    """Both at once, so that either does; PyTorch's own compiler is the one that is used."""
    newest = resolved("torch")["torch"].split(".")
    assert newest[0] == "2"
    for minor in range(OLDEST_TORCH, int(newest[1]) + 1):
        own = resolved(f"torch==2.{minor}.*")
        found = resolved(PROJECT, f"torch==2.{minor}.*", extras=("cuda12", "cuda13"))
        compilers = [name for name in own if name.startswith("nvidia-cuda-nvrtc")]
        assert compilers
        assert {name: found[name] for name in compilers} == {name: own[name] for name in compilers}


@index
def test_frameworks_go_with_the_oldest_pytorch():
    oldest = f"2.{OLDEST_TORCH}."
    found = resolved(PROJECT, f"torch=={oldest}*", extras=("cuda12", "frameworks"))
    assert found["torch"].startswith(oldest)


@index
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", ["linux", "windows", "macos"])
def test_package_has_all_it_needs_for_every_python(python, platform):
    # CUDA does not exist for macOS.
    extras = ("report",) if platform == "macos" else ("report", "cuda12", "cuda13")
    found = resolved(PROJECT, extras=extras, python=python, platform=platform)
    assert {"numpy", "scipy", "jinja2"} <= set(found)


@index
@pytest.mark.parametrize("extra", ["cuda12", "cuda13"])
def test_oldest_cupy_goes_with_the_extras(extra):
    cupy = f"cupy-{extra}x"
    assert resolved(PROJECT, f"{cupy}==14.2.*", extras=(extra,))[cupy].startswith("14.2")


def commands(text):
    """Return the packages of each command in a text, none of which is one of this package."""
    found = re.findall(r'pip install((?: "[^"]+")+)', text)
    assert found
    return [shlex.split(packages) for packages in found]


@index
def test_what_is_advised_can_be_installed():
    advised = commands(install_advice())
    assert len(advised) == len(CUPY_PACKAGES)
    for packages in advised:
        assert resolved(*packages)


@index
@pytest.mark.parametrize("major", CUPY_PACKAGES)
def test_newer_compiler_that_is_advised_can_be_installed(monkeypatch, major):
    monkeypatch.setattr(nvrtc, "_cuda_major", lambda cupy: major)
    monkeypatch.setattr(nvrtc, "import_cupy", lambda: None)
    for target in all_targets():
        for packages in commands(nvrtc._newer_compiler(target)):
            assert resolved(*packages)


def test_advice_is_quoted_for_every_shell():
    assert pip_install("a>=1", "b") == 'pip install "a>=1" "b"'


def test_nothing_is_advised_where_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "pip install" not in install_advice()


def test_no_message_names_a_package_that_no_index_has():
    found = {
        str(path)
        for folder in ("cuattn", "benchmarks", "examples", "reference", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"pip install\s+['\"]?cuattn", path.read_text(encoding="utf-8"))
    }
    assert found == set()
