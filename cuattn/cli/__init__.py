"""The ``cuattn`` command: one module or folder for each of its commands.

May import `errors`, `common`, `scheme`, `presets`, `kv_format`, `reference`, `arrays`, `compile`,
`records`, `auto`, `operands`, `plan`, `kv`, `latent`, `distributed`, `choice`, `language_model`,
`bench` and `cuattn` itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import NoReturn, TextIO

from .. import __version__
from ..errors import CuattnError
from . import cache, choose, info, scale
from . import compile as compile_command
from .bench import command as bench_command
from .outputs import checked
from .perplexity import command as perplexity_command
from .report import command as report_command

__all__ = ["main"]

USAGE_ERROR = 2
INTERRUPTED = 130  # as shells report SIGINT


class _UsageError(CuattnError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        0, or 2 after an error, which is one line on stderr.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        _never_fail_to_encode(stream)
    try:
        args, unknown = _parser().parse_known_args(argv)
        if unknown:  # argparse would name the help of `cuattn`, which has no options of a command
            raise _UsageError(
                f"unrecognized arguments: {' '.join(unknown)} (see cuattn {args.command} --help)"
            )
        with checked(args):
            args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has left; the interpreter must not try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CuattnError, MemoryError, OSError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        print(f"cuattn: error: {first_line}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _open_closed_streams() -> None:
    """Give words nowhere to go where a shell has closed the stream (``>&-``): Python has None."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _never_fail_to_encode(stream: TextIO) -> None:
    """Have a stream write escapes for letters that its encoding lacks, in names of files too."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cuattn",
        description="Quantized attention on NVIDIA GPUs, and how wrong it is.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cuattn {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    of_calls = (report_command, bench_command, choose, perplexity_command)
    for command in (*of_calls, info, compile_command, cache, scale):
        command.add_to(commands)
    return parser
