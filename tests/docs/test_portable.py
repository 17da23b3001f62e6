"""What the package needs of a system: nothing that only POSIX has, nor any encoding or folder name.

The emulation runs on Windows and macOS; there is neither here, so what Windows lacks is taken away.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("cuattn", "reference") for path in (ROOT / folder).rglob("*.py"))

# Modules and attributes of `os` that the documentation of Python calls "Unix" only.
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
IN_OS = {
    *("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "WNOHANG", "chown", "chroot", "confstr", "fchmod"),
    *("fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups", "getloadavg"),
    *("getpgid", "getpriority", "getuid", "killpg", "lchown", "mkfifo", "mknod", "nice", "pipe2"),
    *("posix_fadvise", "posix_spawn", "pread", "pwrite", "readv", "register_at_fork"),
    *("sched_getaffinity", "sched_setaffinity", "sched_yield", "sendfile", "setegid", "seteuid"),
    *("setgid", "setpgid", "setpriority", "setsid", "setuid", "statvfs", "sync", "sysconf"),
    *("uname", "wait3", "wait4", "writev"),
}


def imported(tree):
    """Yield the top-level names of the modules that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def attributes(tree, module):
    """Yield the names that a file takes of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == module:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == module:
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_windows_lacks_is_used_unasked(file):
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert MODULES.isdisjoint(imported(tree))
    asked = {name for name in IN_OS if f'hasattr(os, "{name}")' in text}
    assert (set(attributes(tree, "os")) & IN_OS) - asked == set()


def test_the_search_finds_what_it_looks_for():
    tree = ast.parse("import fcntl, os\nfrom os import fork\nos.geteuid()\n")
    assert not MODULES.isdisjoint(imported(tree))
    assert set(attributes(tree, "os")) == {"fork", "geteuid"}


USE = """
import os, sys, warnings
import numpy as np, scipy.special  # which may use what Windows lacks, where there is no Windows
import threadpoolctl
for name in {missing!r}:
    if hasattr(os, name):
        delattr(os, name)
sys.modules["cupy"] = None  # its parts for Linux use what Linux has

import cuattn
from cuattn.cli import main
from cuattn.compile import cache_folder, disk_cache

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 2, 40, 64), np.float32) for _ in range(3))
cuattn.attention(q, k, v, is_causal=True)
cache = cuattn.KVCache(1, 2, 64, capacity=64, device="cpu")
cache.append(k, v)
cache.attend(q)
file = disk_cache.path(disk_cache.key(["x"]), "80")
disk_cache.write(file, b"image")
assert disk_cache.read(file) == b"image"
assert main(["report", "--schemes=int8", "--heads=1", "--seqlen-q=32", "--head-dim=32"]) == 0
for command in (["info"], ["cache", "show"], ["cache", "prune"], ["cache", "clear"]):
    assert main(command) == 0, command
assert cache_folder.usage() == (0, 0)
"""


def run(folder, *command, **environment):
    """Run Python elsewhere, and see that no file of ours opens text with the system's encoding."""
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-W", "always::EncodingWarning", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", **environment},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "EncodingWarning" in line]
    assert [line for line in warned if line.startswith(str(ROOT / "cuattn"))] == []
    return done.stdout


# A name with a space, and letters that ASCII, Latin-1 and the code pages of Windows lack.
NAME = "größe 核 кэш"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_emulation_and_cache_need_nothing_that_windows_lacks(tmp_path, encoding):
    folder = tmp_path / NAME
    folder.mkdir()
    run(
        folder,
        "-c",
        USE.format(missing=sorted(IN_OS)),
        CUATTN_CACHE_DIR=str(folder / "cache"),
        PYTHONIOENCODING=encoding,
    )


def test_outputs_may_have_any_name(tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    small = ("--schemes=int8", "--heads=1", "--seqlen-q=32", "--head-dim=32")
    name = f"{NAME}.json"
    run(folder, "-m", "cuattn", "report", *small, f"--json={name}", PYTHONIOENCODING="ascii")
    assert (folder / name).stat().st_size > 0


def test_module_is_the_command(tmp_path):
    assert run(tmp_path, "-m", "cuattn", "--version").startswith("cuattn ")
