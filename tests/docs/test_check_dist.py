"""What `make dist` says of an sdist and a wheel that were built wrongly."""

import io
import tarfile
import zipfile

import pytest

from tools import check_dist

NAMES = {"cuattn/a.py", "kernels_cu/attn/b.cuh", "benchmarks/records/c.json", "tests/d.py"}


def written(folder, in_sdist, in_wheel):
    sdist, wheel = folder / "x.tar.gz", folder / "x.whl"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in in_sdist:
            archive.addfile(tarfile.TarInfo(f"cuattn-1/{name}"), io.BytesIO())
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in in_wheel:
            archive.writestr(name, "")
    return sdist, wheel


@pytest.fixture
def good():
    sdist = {*NAMES, "PKG-INFO", "setup.cfg", "cuattn.egg-info/SOURCES.txt"}
    wheel = {"cuattn/a.py", "cuattn/kernels_cu/attn/b.cuh", "cuattn/records/committed/c.json"}
    return sdist, {*wheel, "cuattn-1.dist-info/METADATA"}


def test_nothing_to_say_of_good_ones(tmp_path, good):
    assert check_dist.content_problems(*written(tmp_path, *good), NAMES) == []


def test_what_is_missing_or_too_much_is_named(tmp_path, good):
    sdist, wheel = good
    sdist -= {"tests/d.py"}
    wheel = wheel - {"cuattn/kernels_cu/attn/b.cuh"} | {"tests/d.py"}
    assert check_dist.content_problems(*written(tmp_path, sdist, wheel), NAMES) == [
        "the wheel lacks cuattn/kernels_cu/attn/b.cuh",
        "the wheel should not have tests/d.py",
        "the sdist lacks tests/d.py",
    ]


def test_kernels_records_and_types_are_expected():
    expected = check_dist.expected_in_wheel(check_dist.sources())
    assert {
        "cuattn/py.typed",
        "cuattn/cli/compile.py",
        "cuattn/kernels_cu/kv/unit.cuh",
        "cuattn/records/committed/h200.json",
        "cuattn/reference/exact.py",
    } <= expected


def test_folder_without_a_wheel_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="0 files"):
        check_dist.only(tmp_path, "*.whl")
