"""The code that a GPU's results depend on, as one number: kernels, and what launches them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..compile.sources import sources

__all__ = ["LAUNCH_CODE", "digest"]

# Between a caller's arrays and a kernel's arguments, of the package: files, and folders with all in
# them. An edit here may change what a GPU computes.
LAUNCH_CODE = (
    "attention.py",
    "quantize.py",
    "kv_format.py",
    "presets.py",
    "scheme.py",
    "common/sizes.py",
    "arrays",
    "compile",
    "kv",
    "operands",
    "plan",
    "reference/layout.py",
    "specs",
)


def digest() -> str:
    """Return the SHA-256 of kernels_cu/ and of the modules that launch, by name and content."""
    package = Path(__file__).parents[1]
    texts = {f"kernels_cu/{name}": text for name, text in sources().items()}
    for name in LAUNCH_CODE:
        path = package / name
        for file in (path,) if path.suffix else path.glob("*.py"):
            texts[file.relative_to(package).as_posix()] = file.read_text(encoding="utf-8")
    whole = hashlib.sha256()
    for name, text in sorted(texts.items()):
        content = text.encode()
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return whole.hexdigest()
