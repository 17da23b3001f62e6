"""The package index, asked through uv, which resolves without downloading packages."""

import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PLATFORMS = {
    "linux": "x86_64-manylinux_2_28",
    "macos": "aarch64-apple-darwin",
    "windows": "x86_64-pc-windows-msvc",
}


def resolved(*requirements, extras=(), python="3.12", platform="linux"):
    """Return the versions that pip would install for requirements, by name; wheels only.

    Raises
    ------
    AssertionError
        If they do not go together, with the reason.
    """
    files = [name for name in requirements if name.endswith(".toml")]
    lines = "\n".join(name for name in requirements if name not in files)
    options = [option for extra in extras for option in ("--extra", extra)]
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
        *("--python", sys.executable, "--python-version", python),
        *("--python-platform", PLATFORMS[platform], "--only-binary", ":all:"),
        *(*options, *files, "-"),
    ]
    run = subprocess.run(
        command, cwd=ROOT, input=lines, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, f"{requirements} {extras}: {run.stderr}"
    return dict(line.partition(" ;")[0].split("==") for line in run.stdout.splitlines())


@cache
def why_no_index():
    """Return why nothing can be resolved here, or None."""
    try:
        resolved("packaging")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None
