"""The code that a GPU's results depend on, as numbers: of all of it, and of each phase's part.

Kernels of a phase are the .cu files that it launches and all that these include. What measures is
not part of it: no edit of a test or of a table may ask for another run on a GPU.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..compile.sources import sources

__all__ = [
    "ATTENTION",
    "LAUNCH_CODE",
    "PHASES",
    "TESTED_ONLY",
    "Part",
    "digest",
    "phase_digests",
    "with_includes",
]

INCLUDE = re.compile(r'^\s*#\s*include\s+"(.*)"', re.MULTILINE)

# Of every launch: from the caller's arrays and a spec to a function with its arguments.
_LAUNCH = ("arrays", "common/sizes.py", "compile", "operands", "reference/layout.py")
_ATTENTION = (
    *_LAUNCH,
    *("attention.py", "plan", "presets.py", "quantize.py", "reference/sorting.py", "scheme.py"),
    "specs",
)
_CACHES = (
    *_LAUNCH,
    *("kv", "kv_format.py", "latent", "specs/attention.py", "specs/kernel_spec.py"),
)

# Between a caller's arrays and a kernel's arguments, of the package: files, and folders with all in
# them. An edit here may change what a GPU computes. Not `auto`, which takes one scheme or another:
# what is measured of a scheme is measured by its name.
LAUNCH_CODE = tuple(sorted({*_ATTENTION, *_CACHES, "distributed", "merging.py"}))


@dataclass(frozen=True)
class Part:
    """What a phase of the check depends on.

    Attributes
    ----------
    kernels : tuple of str
        Files under kernels_cu/, without what they include; empty for all.
    code : tuple of str
        Files and folders of the package, as in `LAUNCH_CODE`.
    """

    kernels: tuple[str, ...] = ()
    code: tuple[str, ...] = LAUNCH_CODE


WHOLE = Part()
ATTENTION = Part(
    (
        *("attention_sm80.cu", "attention_sm90.cu", "quantize.cu", "stats.cu"),
        *("block_means.cu", "deltas.cu", "mask_map.cu", "rotate.cu", "unpack.cu"),
        "attn/user_arrays.cuh",  # what callers' expressions are compiled with includes it
    ),
    _ATTENTION,
)
RINGS = Part((*ATTENTION.kernels, "merge_states.cu"), (*_ATTENTION, "distributed", "merging.py"))
CACHES = Part(
    (
        *("append.cu", "offsets.cu", "decode.cu"),
        *("append_latent.cu", "decode_latent.cu", "merge_latent.cu"),
    ),
    _CACHES,
)
CHUNKS = Part(
    (*ATTENTION.kernels, *CACHES.kernels, "cache_operands.cu", "cache_queries.cu"),
    tuple(sorted({*_ATTENTION, *_CACHES})),
)
LANGUAGE_MODEL = Part((*ATTENTION.kernels, *CACHES.kernels), tuple(sorted({*_ATTENTION, *_CACHES})))
RATES = Part(
    ("memory_rate.cu", "mma_rate_sm80.cu", "wgmma_rate_sm90.cu"),
    ("arrays", "compile", "specs/rates.py"),
)

# Kernels of which only the phases that depend on everything have findings.
TESTED_ONLY = ("mailboxes.cu", "units.cu")

# The phases of the GPU check whose findings a record has.
PHASES = {
    "tests": WHOLE,
    "sanitizer": WHOLE,
    "accuracy": ATTENTION,
    "cache_accuracy": CACHES,
    "real_model": ATTENTION,
    "language_model": LANGUAGE_MODEL,
    "ceilings": RATES,
    "prefill": ATTENTION,
    "comparison": ATTENTION,
    "features": ATTENTION,
    "models": ATTENTION,
    "mma_sync": ATTENTION,
    "auto": ATTENTION,
    "decode": CACHES,
    "chunk": CHUNKS,
    "ring": RINGS,
    "first_calls": WHOLE,
}


def digest(part: Part = WHOLE) -> str:
    """Return the SHA-256 of a part's kernels and of its modules that launch, by name and content.

    By default it is that of kernels_cu/ and all of `LAUNCH_CODE`.
    """
    package = Path(__file__).parents[1]
    names = with_includes(part.kernels or sources())
    texts = {f"kernels_cu/{name}": sources()[name] for name in names}
    for name in part.code:
        path = package / name
        for file in (path,) if path.suffix else path.glob("*.py"):
            texts[file.relative_to(package).as_posix()] = file.read_text(encoding="utf-8")
    whole = hashlib.sha256()
    for name, text in sorted(texts.items()):
        content = text.encode()
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return whole.hexdigest()


def phase_digests() -> dict[str, str]:
    """Return the digest of each phase's part of the code at hand."""
    return {name: digest(part) for name, part in PHASES.items()}


def with_includes(kernels: Iterable[str]) -> set[str]:
    """Return files under kernels_cu/ and all that they include, directly or not."""
    found: set[str] = set()
    left = list(kernels)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += INCLUDE.findall(sources()[name])
    return found
