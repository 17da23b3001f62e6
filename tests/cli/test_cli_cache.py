"""`cuattn cache`: what it shows and what it removes."""

import re

import pytest

from cuattn.cli import main
from cuattn.compile import disk_cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of three kernels of half a MiB each."""
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CUATTN_CACHE_MAX_MIB", raising=False)
    for n in range(3):
        disk_cache.write(disk_cache.path(disk_cache.key([str(n)]), "80"), bytes(2**19))
    return tmp_path


def said(capsys, *arguments):
    assert main(["cache", *arguments]) == 0
    return capsys.readouterr().out


def test_show_says_where_how_many_and_how_large(capsys, folder, monkeypatch):
    expected = rf"{re.escape(str(folder))}: 3 kernels, 1\.5 MiB of at most 2048\n"
    assert re.fullmatch(expected, said(capsys, "show"))
    monkeypatch.setenv("CUATTN_CACHE_MAX_MIB", "64")
    assert said(capsys, "show").endswith("of at most 64\n")


def test_prune_keeps_the_size_that_was_asked_for(capsys, folder):
    assert said(capsys, "prune").startswith("removed 0 files")
    assert "removed 2 files, 1.0 MiB\n" in said(capsys, "prune", "--max-mib", "1")
    assert "1 kernels" in said(capsys, "show")


def test_clear_removes_all(capsys, folder):
    assert "removed 3 files, 1.5 MiB\n" in said(capsys, "clear")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: ACTION"),
        (["prune", "--max-mib", "-1"], "must be at least 0"),
        (["purge"], "invalid choice: 'purge'"),
    ],
)
def test_wrong_arguments_are_named(capsys, folder, arguments, message):
    assert main(["cache", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_size_of_the_environment_that_is_no_number_is_named(capsys, folder, monkeypatch):
    monkeypatch.setenv("CUATTN_CACHE_MAX_MIB", "2 GB")
    assert main(["cache", "show"]) == 2
    assert "CUATTN_CACHE_MAX_MIB must be a number of MiB, got '2 GB'" in capsys.readouterr().err
    assert main(["info"]) == 0
    assert "no: CUATTN_CACHE_MAX_MIB" in capsys.readouterr().out
