"""The package as a whole: its names, its version, and what importing it costs."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import cuattn
from cuattn.compile.sources import sources

ROOT = Path(__file__).resolve().parents[2]

# Of https://keepachangelog.com, in their order.
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_version_is_in_one_place():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert 'version = { attr = "cuattn.__version__" }' in project
    assert re.fullmatch(r"\d+\.\d+\.\d+", cuattn.__version__)


def test_changelog_keeps_its_form():
    """Versions from the newest to the oldest, each with headings of Keep a Changelog, each once."""
    releases = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    titles = [release.splitlines()[0] for release in releases]
    assert titles[0] == "[Unreleased]"
    assert titles[1].startswith(f"[{cuattn.__version__}] - ")
    for release in releases:
        kinds = re.findall(r"^### (.*)$", release, re.MULTILINE)
        assert kinds == [kind for kind in KINDS if kind in kinds]
        # One list under each heading: a blank line would make two.
        assert "\n\n- " not in re.sub(r"(### .*)\n\n- ", r"\1\n- ", release)


@pytest.mark.parametrize("name", cuattn.__all__)
def test_public_names_exist(name):
    assert getattr(cuattn, name) is not None


def test_import_leaves_gpu_libraries_alone():
    code = (
        "import sys, cuattn, cuattn.reference, cuattn.plan.kernels, cuattn.plan.prepared\n"
        "heavy = ('cupy', 'torch', 'transformers', 'jax', 'ml_dtypes', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_reference_and_kernels_are_found_beside_the_package():
    import cuattn.reference

    assert cuattn.reference.exact is not None
    assert {"attention_sm80.cu", "attention_sm90.cu", "sm90/wgmma_spec.cuh"} <= set(sources())


def test_package_takes_the_kernels_along():
    """Whatever folder of kernels_cu/ a file is in, a pattern of pyproject.toml finds it."""
    project = (ROOT / "pyproject.toml").read_text()
    line = re.search(r'^"cuattn.kernels_cu" = \[(.*)\]$', project, re.MULTILINE)[1]
    folder = ROOT / "kernels_cu"
    taken = {path for pattern in re.findall(r'"(.+?)"', line) for path in folder.glob(pattern)}
    assert {path.relative_to(folder).as_posix() for path in taken} == set(sources())


def test_every_folder_with_modules_is_a_package_of_the_wheel(monkeypatch):
    """Those of links too, once; a new folder only needs its ``__init__.py``."""
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", given.update)
    runpy.run_path("setup.py")
    folders = {
        path.parent.relative_to(ROOT)
        for top in ("cuattn", "reference")
        for path in (ROOT / top).rglob("*.py")
    }
    places = {name: Path(name.replace(".", "/")) for name in given["packages"]}
    places.update({name: Path(folder) for name, folder in given["package_dir"].items()})
    assert len(given["packages"]) == len(set(given["packages"]))
    assert folders <= set(places.values())
    assert {path for path in places.values() if not (ROOT / path).is_dir()} == set()
    assert {"cuattn.reference", "cuattn.kernels_cu", "cuattn.records.committed"} <= set(places)
