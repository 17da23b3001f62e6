"""The steps of a page of docs/, taken in a copy of the project: files, edits and commands.

A block with a title is a new file, a block of diff with a title an edit of one. Commands of console
blocks run in the copy.
"""

import os
import re
import shutil
import subprocess
import sys

from page_blocks import DOCS, alike, blocks, commands

ROOT = DOCS.parent
_COPIED = (
    *("cuattn", "reference", "kernels_cu", "benchmarks", "docs", "examples", "tests", "tools"),
    *("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"),
)


def copy_of_the_project(folder):
    """Copy what the steps may read or change."""
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, folder / name)


def take(page, folder):
    """Take the steps of a page in a copy of the project, and return how many there were."""
    steps = 0
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if block.title is not None:
            path = folder / block.title
            if block.language == "diff":
                path.write_text(edited(path.read_text("utf-8"), block.text, where), "utf-8")
            else:
                assert not path.exists(), where
                path.write_text(block.text, "utf-8")
            steps += 1
        elif block.language == "console":
            for command, shown in commands(block.text):
                printed = _run(command, folder, where)
                assert alike(shown, printed), f"{where}, prints\n{printed}"
                steps += 1
    return steps


def edited(text, diff, where="diff"):
    """Return a text with the hunks of a diff, each of which must fit in one place.

    Hunks are apart by lines of ``…``; a line begins with its sign, or a space, and where it ends
    with ``…`` the rest of it stays as it is.
    """
    for hunk in re.split(r"^…\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        assert all(line[0] in " +-\n" for line in lines), where
        old = "".join(line[1:] or "\n" for line in lines if line[0] != "+").replace("…\n", "")
        new = "".join(line[1:] or "\n" for line in lines if line[0] != "-").replace("…\n", "")
        assert text.count(old) == 1, f"{where}: {text.count(old)} places for\n{old}"
        text = text.replace(old, new)
    return text


def _run(command, folder, where):
    """Run one of our commands or Python's in the copy, with a kernel cache of its own."""
    programs = {"python": [sys.executable], "cuattn": [sys.executable, "-m", "cuattn"]}
    # Where tests run in parallel, variables of pytest's say so, which pytest-benchmark warns about.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = kept | {
        "PYTHONPATH": str(folder),
        "CUATTN_CACHE_DIR": str(folder / "kernels"),
        "OPENBLAS_NUM_THREADS": "1",
    }
    answer = subprocess.run(
        [*programs[command[0]], *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, f"{where}: {command}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout
