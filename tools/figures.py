"""Fill in from the committed record of a GPU run: the documents' figures, the picture, and the
table of `scheme="auto"`.

Between ``<!-- figures: NAME -->`` and ``<!-- end -->`` a document holds what `SECTIONS[NAME]` makes
of the record, or of the records of several GPUs; a test fails where it does not. After a new one,
from the root of the project:
python -m tools.figures
"""

from __future__ import annotations

import re
from pathlib import Path

from cuattn.auto.table import save
from cuattn.errors import ArgumentError
from cuattn.records.record import Record, load
from tools.auto_table import TABLE, made
from tools.picture import picture
from tools.tables.record_figures import Figures
from tools.tables.sections import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "records" / "h200.json"
DOCUMENTS = (
    "README.md",
    "docs/howto/decode.md",
    "docs/howto/several-gpus.md",
    "docs/lab-notebook.md",
    "docs/numerics.md",
    "docs/papers.md",
    "docs/performance.md",
    "docs/reliability.md",
    "docs/results.md",
    "docs/schemes.md",
    "docs/support.md",
)
PICTURE = ROOT / "docs" / "assets" / "front.svg"

BEGIN = "<!-- figures: "
BLOCK = re.compile(rf"({BEGIN}([\w-]+) -->\n)(?:(?!{BEGIN}).)*?(<!-- end -->)", re.DOTALL)


def filled(text: str, record: Record) -> str:
    """Return a document with every section as the record has it.

    Raises
    ------
    ArgumentError
        If a section has a name that is unknown, or no end.
    """
    figures = Figures(record)

    def section(block: re.Match[str]) -> str:
        begin, name, end = block.groups()
        if name not in SECTIONS:
            raise ArgumentError("section", name, f"one of {list(SECTIONS)}")
        return f"{begin}{SECTIONS[name](figures)}\n{end}"

    new, count = BLOCK.subn(section, text)
    if count != text.count(BEGIN):
        raise ArgumentError("sections", f"{count} with an end", f"{text.count(BEGIN)}, as begun")
    return new


def main() -> None:
    record = load(RECORD)
    for name in DOCUMENTS:
        path = ROOT / name
        _write(path, filled(path.read_text(encoding="utf-8"), record))
    _write(PICTURE, picture(Figures(record)))
    save(made(record), TABLE)


def _write(path: Path, new: str) -> None:
    same = path.exists() and path.read_text(encoding="utf-8") == new
    path.write_text(new, encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {'as it was' if same else 'filled in anew'}")


if __name__ == "__main__":
    main()
