"""House rules of kernels_cu/ that a compiler or a search can check."""

import re

import pytest

from cuattn.compile.sources import sources

INCLUDE = re.compile(r"^\s*#\s*include\s+(\S+)", re.MULTILINE)


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("name", sources())
def test_every_file_compiles_alone(name, arch):
    pytest.importorskip("cupy")
    from cuattn.compile.nvrtc import compile_source

    compile_source(f'#include "{name}"\n', arch)


def test_assembly_is_only_in_ptx():
    with_asm = {name for name, text in sources().items() if re.search(r"\basm\b", text)}
    assert with_asm
    assert {name for name in with_asm if not name.startswith("ptx/")} == set()


@pytest.mark.parametrize("name", sources())
def test_only_own_files_are_included(name):
    # A header from elsewhere would cost compile time and not be part of the cache key.
    included = INCLUDE.findall(sources()[name])
    assert [i for i in included if i.strip('"') not in sources()] == []


@pytest.mark.parametrize("name", [n for n in sources() if n.endswith(".cuh")])
def test_header_is_included_once(name):
    assert "\n#pragma once\n" in "\n" + sources()[name]


@pytest.mark.parametrize("name", sources())
def test_files_are_short(name):
    lines = sources()[name].splitlines()
    assert len(lines) <= (150 if name.endswith(".cuh") else 400)
    assert max(map(len, lines), default=0) <= 100
