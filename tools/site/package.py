"""What the reference pages are made of: a copy of the package in build/package.

In the checkout `reference/`, which is `cuattn.reference`, lies beside `cuattn/`, where a tool that
reads files instead of importing them does not find it. And docstrings have a little of
reStructuredText, which Python's own tools show as it is, where the site wants Markdown.
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "package" / "cuattn"

_FORMULA = re.compile(r"^( *)\.\. math:: (.*(?:\n\1 +\S.*)*)$", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_LITERAL = re.compile(r"(?<=\w)::$", re.MULTILINE)


def as_markdown(text):
    """Return the text of a module with the formulas of its docstrings as Markdown has them."""
    text = _FORMULA.sub(lambda found: f"{found[1]}$${found[2]}$$", text)
    text = _INLINE.sub(lambda found: f"${found[1]}$", text)
    return _LITERAL.sub(":", text)


def on_startup(**_):
    """Make the copy anew, before mkdocstrings asks whether its folder is there."""
    shutil.rmtree(COPY, ignore_errors=True)
    for source, to in ((ROOT / "cuattn", COPY), (ROOT / "reference", COPY / "reference")):
        shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
    for file in COPY.rglob("*.py"):
        file.write_text(as_markdown(file.read_text(encoding="utf-8")), encoding="utf-8")
