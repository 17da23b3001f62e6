"""Run mypy on the package as it is once installed.

`reference/` is the package `cuattn.reference`, but lies beside `cuattn/` in the checkout, where
mypy would not find it. So mypy is shown a folder of links in which everything is in its place.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "cuattn"
        package.mkdir()
        for source in (*(ROOT / "cuattn").iterdir(), ROOT / "reference", ROOT / "kernels_cu"):
            if source.name != "__pycache__":
                (package / source.name).symlink_to(source)
        options = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
        answer = subprocess.run(
            [sys.executable, "-m", "mypy", *options, *sys.argv[1:], "-p", "cuattn"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    sys.stdout.write(answer.stdout.replace("cuattn/reference/", "reference/"))
    sys.stderr.write(answer.stderr)
    return answer.returncode


if __name__ == "__main__":
    raise SystemExit(main())
