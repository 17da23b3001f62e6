"""Files that commands write: their options, and what is checked before any work."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from ..common.output_files import Target, check_target
from ..errors import ArgumentError

__all__ = ["add_outputs", "checked"]

# Options with files that commands read, by what `argparse` calls them.
READ = {
    "input": "--input",
    "given": "--from",
    "compare": "--compare",
    "model": "MODEL",
    "text": "TEXT",
    "plan": "--plan",
}


def add_outputs(
    parser: argparse.ArgumentParser, group: argparse._ArgumentGroup, **texts: str
) -> None:
    """Add an option for each file that a command can write, with its help."""
    for name, text in texts.items():
        group.add_argument(f"--{name}", type=_target, metavar="FILE", help=text)
    parser.set_defaults(outputs=tuple(texts))


@contextmanager
def checked(args: argparse.Namespace) -> Iterator[None]:
    """Refuse files that could not be written at the end, before any work.

    Within, what a command prints goes to standard error if a file takes standard output.

    Raises
    ------
    ArgumentError
        If a file could not be written, would replace one that is read, or two would be the same.
    """
    names = {f"--{name}": getattr(args, name) for name in getattr(args, "outputs", ())}
    targets: dict[str, Target] = {k: target for k, target in names.items() if target is not None}
    seen: dict[object, str] = _read(args)
    for option, target in targets.items():
        check_target(option, target)
        place = os.path.realpath(target) if isinstance(target, Path) else "-"
        if place in seen and place != os.devnull:
            raise ArgumentError(option, place, f"another file than that of {seen[place]}")
        seen[place] = option
    if "-" in seen:
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def _read(args: argparse.Namespace) -> dict[object, str]:
    """Return the files that a command reads, without links, and their options."""
    files = {option: getattr(args, name, None) or [] for name, option in READ.items()}
    return {
        os.path.realpath(file): option
        for option, given in files.items()
        for file in (given if isinstance(given, list) else [given])
    }


def _target(text: str) -> Target:
    """Read a path, or ``-`` for standard output."""
    return sys.stdout if text == "-" else Path(text)
