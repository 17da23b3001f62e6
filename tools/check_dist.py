"""Check what `make dist` has built: what is inside, and that it works where there is no checkout.

    python -m tools.check_dist dist --extra cuda12

The wheel is installed with an extra into an environment of its own, which is gone afterwards; the
other extra is resolved only. Compiles a few kernels; needs a package index, but no GPU.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("cuda12", "cuda13")

# What a source release has of the checkout.
SOURCE_FOLDERS = (
    "benchmarks",
    "cuattn",
    "docs",
    "examples",
    "kernels_cu",
    "reference",
    "tests",
    "tools",
)
SOURCE_FILES = {
    *("CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md"),
    *("pyproject.toml", "setup.py"),
}

# Where the wheel has the folders of the checkout, and the names that it takes of them.
FOLDERS = {
    "cuattn": ("cuattn", (".py", ".typed", ".jinja", ".css", ".js", ".json")),
    "kernels_cu": ("cuattn/kernels_cu", (".cu", ".cuh")),
    "reference": ("cuattn/reference", (".py",)),
    "benchmarks/records": ("cuattn/records/committed", (".json", ".md")),
}

# What runs in the clean environment, one after the other: options of `cuattn`.
COMMANDS = (
    ("--version",),
    ("info",),
    ("cache", "show"),
    ("report", "--schemes=int8,fp16", "--heads=2", "--seqlen-q=64", "--head-dim=32"),
    # The scheme with the fewest kernels.
    ("compile", "--arch=sm_90a", "--schemes=fp16", "--head-dims=32", "--dtypes=float16"),
)


def sources():
    """Return the names of all files of the checkout that a source release has."""
    files = (path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*"))
    names = {path.relative_to(ROOT).as_posix() for path in files if path.is_file()}
    return SOURCE_FILES | {name for name in names if "__pycache__/" not in name}


def expected_in_wheel(names):
    """Return the names that the files of a checkout have in the wheel, but for its dist-info."""
    expected = set()
    for path in map(PurePosixPath, names):
        for folder, (place, endings) in FOLDERS.items():
            if path.is_relative_to(folder) and path.suffix in endings:
                expected.add(f"{place}/{path.relative_to(folder)}")
    return expected


def difference(what, found, expected):
    """Return lines that say what is missing and what is too much."""
    lines = [f"{what} lacks {name}" for name in sorted(expected - found)]
    return lines + [f"{what} should not have {name}" for name in sorted(found - expected)]


def content_problems(sdist, wheel, names):
    """Return in lines what is wrong with the files in sdist and wheel."""
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        files = [member.name.partition("/")[2] for member in archive if member.isfile()]
    # What setuptools adds.
    added = {"PKG-INFO", "setup.cfg"} | {name for name in files if ".egg-info/" in name}
    return [
        *difference("the wheel", in_wheel, expected_in_wheel(names)),
        *difference("the sdist", set(files) - added, names),
    ]


def only(folder, pattern):
    """Return the one file of a pattern in a folder."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder} has {len(found)} files {pattern}, not one: run make dist")
    return found[0].resolve()


def run(folder, *command):
    """Run a command outside of the checkout, with nothing of this environment on its paths."""
    print("$", *command, flush=True)
    kept = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
    environment = {**kept, "CUATTN_CACHE_DIR": str(folder / "kernels größe")}
    subprocess.run(list(map(str, command)), cwd=folder, env=environment, check=True)


def pip(folder, python, *options):
    """Have this environment's pip do something to another one, which has none."""
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    run(folder, sys.executable, "-m", "pip", "--python", python, *options, *quiet)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("dist", type=Path, help="the folder with sdist and wheel")
    parser.add_argument("--extra", choices=EXTRAS, required=True, help="the one to install")
    args = parser.parse_args()
    sdist, wheel = only(args.dist, "*.tar.gz"), only(args.dist, "*.whl")
    if problems := content_problems(sdist, wheel, sources()):
        raise SystemExit("\n".join(problems))
    print(f"{sdist.name}, {wheel.name}: all files are there")
    with tempfile.TemporaryDirectory(prefix="cuattn-dist-") as name:
        folder = Path(name)
        clean = folder / "environment"
        venv.create(clean)
        python = clean / "bin" / "python"
        for extra in EXTRAS:
            dry = () if extra == args.extra else ("--dry-run",)
            # Not compiled to bytecode: most of CuPy is never imported here.
            pip(folder, python, "install", "--no-compile", *dry, f"{wheel}[{extra}]")
        run(folder, python, "-m", "cuattn", "--version")
        for options in COMMANDS:
            run(folder, clean / "bin" / "cuattn", *options)
        run(folder, python, "-I", ROOT / "tools" / "use_installed.py")


if __name__ == "__main__":
    main()
