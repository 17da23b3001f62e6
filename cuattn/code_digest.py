"""The code that a GPU's results depend on, as one number: kernels, and what launches them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .reference import layout
from .sources import sources

__all__ = ["LAUNCH_MODULES", "digest"]

# Between a caller's arrays and a kernel's arguments: an edit here may change what a GPU computes.
LAUNCH_MODULES = (
    "attention",
    "caller",
    "coding",
    "compiler",
    "conversion",
    "deltas",
    "device",
    "dlpack",
    "form",
    "item",
    "jit",
    "kv_append",
    "kv_attend",
    "kv_book",
    "kv_cache",
    "kv_calls",
    "kv_device",
    "kv_format",
    "kv_geometry",
    "kv_options",
    "kv_pages",
    "kv_plan",
    "kv_operands",
    "kv_sequences",
    "kv_spec",
    "kv_store",
    "launch",
    "operand",
    "operand_maps",
    "overlap",
    "params",
    "pipeline",
    "places",
    "plan",
    "prepared",
    "presets",
    "problem",
    "quantize",
    "quantize_spec",
    "quantized",
    "rate_spec",
    "rotate_spec",
    "scheme",
    "sizes",
    "smoothing_spec",
    "spec",
    "stats",
    "stats_spec",
    "streams",
    "tensor_map",
    "unpack_spec",
    "views",
    "wgmma_plan",
    "wgmma_spec",
)


def digest() -> str:
    """Return the SHA-256 of kernels_cu/ and of the modules that launch, by name and content."""
    folder = Path(__file__).parent
    texts = {f"kernels_cu/{name}": text for name, text in sources().items()}
    # All that launches take of the reference: paddings, and the order of V's tokens.
    texts["reference/layout.py"] = Path(layout.__file__).read_text(encoding="utf-8")
    for module in LAUNCH_MODULES:
        texts[f"cuattn/{module}.py"] = (folder / f"{module}.py").read_text(encoding="utf-8")
    whole = hashlib.sha256()
    for name, text in sorted(texts.items()):
        content = text.encode()
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return whole.hexdigest()
