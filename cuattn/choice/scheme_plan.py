"""Which scheme each layer of a model uses, and each time step of a layer, as a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

from ..common.public import class_naming_keywords, public
from ..common.typed_json import read, write
from ..errors import ArgumentError
from ..reference.arrays import Progress
from ..scheme import Scheme
from .calibration import candidates
from .choose import Choice, choose_scheme
from .progress import Stages

__all__ = ["Key", "SchemePlan", "plan_schemes"]

# A layer, or a layer and a time step.
Key: TypeAlias = str | tuple[str, int]


@dataclass(frozen=True)
class _Entry:
    layer: str
    step: int | None
    scheme: Scheme

    @property
    def key(self) -> Key:
        return self.layer if self.step is None else (self.layer, self.step)


@dataclass(frozen=True)
class _Document:
    # The number rises when the fields of a scheme change: a file always says all of them, so that
    # it means the same to a version whose presets or defaults are others.
    format: Literal["cuattn scheme plan 1"]
    entries: list[_Entry]


@class_naming_keywords
@dataclass(frozen=True)
class SchemePlan:
    """The scheme of each layer: ``plan["layer 3"]``, or at a time step ``plan["layer 3", 10]``.

    Parameters
    ----------
    schemes : mapping of str or (str, int) to Scheme
        By layer, or by layer and step. A layer's scheme is that of its steps that have none.
    choices : mapping of str or (str, int) to Choice, optional
        What the schemes were chosen by; not saved.

    Raises
    ------
    ArgumentError
        If a key or a scheme is not one, or a layer is asked for that has none.
    """

    schemes: Mapping[Key, Scheme]
    choices: Mapping[Key, Choice] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for key, scheme in self.schemes.items():
            _check_key(key)
            if not isinstance(scheme, Scheme):
                raise ArgumentError(f"schemes[{key!r}]", scheme, "a Scheme")
        # Copies: what the caller does to its mapping later is nothing to the plan.
        object.__setattr__(self, "schemes", dict(self.schemes))
        object.__setattr__(self, "choices", dict(self.choices))

    def __getitem__(self, key: Key) -> Scheme:
        _check_key(key)
        if key in self.schemes:
            return self.schemes[key]
        layer = key if isinstance(key, str) else key[0]
        if layer in self.schemes:
            return self.schemes[layer]
        raise ArgumentError("layer", key, f"one of {list(self.schemes)}")

    def __str__(self) -> str:
        titles = {_title(key): scheme.name for key, scheme in self.schemes.items()}
        width = max(map(len, titles), default=0)
        return "\n".join(f"{title:{width}}  {name}" for title, name in titles.items())

    def save(self, path: str | PathLike[str] | TextIO) -> None:
        """Write the plan as JSON, whole or not at all, with all fields of every scheme.

        Parameters
        ----------
        path : str, path or text stream
            A file that is there is replaced; one that a link leads to, too.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        entries = [_Entry(*_parts(key), scheme) for key, scheme in self.schemes.items()]
        target = Path(path) if isinstance(path, (str, PathLike)) else path
        write(asdict(_Document("cuattn scheme plan 1", entries)), target)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SchemePlan:
        """Read a plan from a file that `save` wrote.

        Raises
        ------
        ArgumentError
            If there is no such file, or it is no plan; says what is wrong with it.
        """
        path = Path(path)
        if not path.is_file():
            raise ArgumentError("path", str(path), "an existing file")
        document: _Document = read(path, _Document)
        schemes: dict[Key, Scheme] = {}
        for i, entry in enumerate(document.entries):
            if entry.key in schemes:
                raise ArgumentError(f"{path.name}.entries[{i}]", entry.key, "named only once")
            schemes[entry.key] = entry.scheme
        try:
            return cls(schemes)
        except ArgumentError as error:
            raise ArgumentError(
                f"{path.name}: {error.argument}", error.value, error.expected
            ) from None


@public
def plan_schemes(
    layers: Mapping[Key, tuple[Any, Any, Any]],
    *,
    min_cosine: float = 0.998,
    schemes: str | Scheme | Iterable[str | Scheme] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    layout: str = "HND",
    max_relative_l1: float | None = None,
    progress: Progress | None = None,
) -> SchemePlan:
    """Choose a scheme for each layer, or for each layer and time step, by `cuattn.choose_scheme`.

    SageAttention (arXiv 2410.02367) selects by layers, SageAttention2 (arXiv 2411.10958) by layers
    and time steps.

    Parameters
    ----------
    layers : mapping of str or (str, int) to (q, k, v)
        Calibration inputs of a layer, or of a layer at a step, each as for `cuattn.choose_scheme`.
    min_cosine, schemes, scale, is_causal, layout, max_relative_l1, progress
        As for `cuattn.choose_scheme`.

    Returns
    -------
    SchemePlan

    Raises
    ------
    ArgumentError
        As `cuattn.choose_scheme`; names the layer.
    UnsupportedError, CompileError
        As `cuattn.choose_scheme`.
    """
    chosen = None if schemes is None else candidates(schemes)
    stages = Stages(progress, len(layers))
    choices: dict[Key, Choice] = {}
    for key, qkv in layers.items():
        _check_key(key)
        try:
            choices[key] = choose_scheme(
                *qkv,
                min_cosine=min_cosine,
                schemes=chosen,
                scale=scale,
                is_causal=is_causal,
                layout=layout,
                max_relative_l1=max_relative_l1,
                progress=stages.next(),
            )
        except ArgumentError as error:
            where = f"{_title(key)}: {error.argument}"
            raise ArgumentError(where, error.value, error.expected) from None
    return SchemePlan({key: choice.scheme for key, choice in choices.items()}, choices)


def _check_key(key: object) -> None:
    match key:
        case str():
            return
        case (str(), int() as step) if step >= 0 and not isinstance(step, bool):
            return
    raise ArgumentError("layer", key, "a name, or a name and the number of a step")


def _parts(key: Key) -> tuple[str, int | None]:
    return (key, None) if isinstance(key, str) else key


def _title(key: Key) -> str:
    return key if isinstance(key, str) else f"{key[0]}, step {key[1]}"
