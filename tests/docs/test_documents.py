"""The documents hold: examples run, and links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

import cuattn
from cuattn.cli import _parser

ROOT = Path(cuattn.__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Not what `cuattn info` prints, whose columns are apart.
COMMAND = re.compile(r"^(?:RUN |\$ )?cuattn (?!  )(.*)$", re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    links = LINK.findall(document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


# Pages that add something have commands about it; test_extending.py runs them.
@pytest.mark.parametrize(
    "document", [x for x in DOCUMENTS if not x.match("add-*")], ids=lambda path: path.name
)
def test_commands_are_understood(document):
    blocks = BLOCK.findall(document.read_text(encoding="utf-8"))
    for command in COMMAND.findall("\n".join(blocks)):
        _parser().parse_args(shlex.split(command, comments=True))


def test_example_of_the_readme_runs(capsys):
    (code,) = CODE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    exec(compile(code, "README.md", "exec"), {})
    assert "relative_l1" in capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_pages_begin_with_whom_they_are_for(document):
    sentence = re.split(r"[.:]\s", document.read_text(encoding="utf-8").split("\n\n")[1])[0]
    assert re.search(r"\b[Ff]or\sthose\swho", sentence), sentence


@pytest.mark.parametrize(("document", "most"), [("README.md", 1000), ("docs/performance.md", 2500)])
def test_pages_that_are_meant_to_be_short_are(document, most):
    words = (ROOT / document).read_text(encoding="utf-8").split()
    assert sum(word != "|" for word in words) <= most
