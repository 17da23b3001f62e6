"""The code blocks of a page of docs/: run in their order, and what they print compared.

A block of Python prints what the block without a language behind it shows. Blocks behind the
comment `<!-- on a GPU -->` need one, those behind `<!-- with torch -->` PyTorch too.
"""

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import cuattn
from cuattn.cli import main

DOCS = Path(cuattn.__file__).resolve().parent.parent / "docs"

_BLOCK = re.compile(
    r"^(?:<!-- (?P<needs>(?:on|with) .*?) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]*)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?%?,?$")


@dataclass(frozen=True)
class Block:
    """A fenced block; `title` is the file that it is, `needs` the words of the comment before."""

    language: str
    text: str
    title: str | None
    needs: str | None
    line: int


def blocks(page):
    """Return the blocks of a page, given by its path below docs/."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            found["text"],
            found["title"],
            found["needs"],
            text[: found.start("text")].count("\n") + 1,
        )
        for found in _BLOCK.finditer(text)
    ]


def run(page, *available):
    """Run the Python and the commands of a page that need no more than what is available.

    With anything available, output is not compared: it is shown for a computer without a GPU.

    Returns
    -------
    dict
        The names that the page has defined.
    """
    names, printed = {}, ""
    for block in blocks(page):
        if block.needs is not None and block.needs not in available:
            continue
        if block.language == "python":
            # As many empty lines before as make the line numbers of errors those of the page.
            code = compile("\n" * (block.line - 1) + block.text, str(DOCS / page), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, names)
            printed = out.getvalue()
        elif block.language == "console":
            for command, shown in commands(block.text):
                printed = cuattn_command(command)
                assert available or alike(shown, printed), (page, block.line, printed)
            printed = ""
        elif block.language == "" and printed and not available:
            assert alike(block.text, printed), f"{page}, line {block.line}, prints\n{printed}"
            printed = ""
    return names


def commands(text):
    """Yield each command of a console block, and the output that is shown below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield shlex.split(command), shown


def cuattn_command(command):
    """Run a command of ours in this process and return what it prints."""
    assert command[0] == "cuattn", command
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(command[1:]) == 0, command
    return out.getvalue()


def alike(shown, printed):
    """Whether output is as shown: equal words, and numbers that differ by little.

    Rounding depends on the BLAS, hardly by as much as is shown. "…" stands for the rest of a line,
    and alone for any lines; an empty text stands for any output.
    """
    if not shown.strip():
        return True
    before, *parts = re.split(r"^…\n", shown, flags=re.MULTILINE)
    rows, position = printed.rstrip().splitlines(), 0
    for n, part in enumerate([before, *parts]):
        wanted = part.rstrip().splitlines()
        starts = range(position, len(rows) - len(wanted) + 1) if n else [position]
        found = [i for i in starts if _same_lines(wanted, rows[i : i + len(wanted)])]
        if not found:
            return False
        position = found[0] + len(wanted)
    return (bool(parts) and not parts[-1].strip()) or position == len(rows)


def _same_lines(wanted, rows):
    return len(wanted) == len(rows) and all(map(_same_line, wanted, rows))


def _same_line(wanted, row):
    words, found = wanted.split(), row.split()
    if words[-1:] == ["…"]:
        words.pop()
        found = found[: len(words)]
    return len(words) == len(found) and all(map(_same_word, words, found))


def _same_word(wanted, found):
    if not (_NUMBER.match(wanted) and _NUMBER.match(found)):
        return wanted == found
    x, y = (float(word.rstrip(",%")) for word in (wanted, found))
    return abs(x - y) <= 0.01 * max(abs(x), abs(y)) + 1e-4
