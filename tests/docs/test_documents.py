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


@pytest.mark.parametrize(("number", "printed"), [(0, "relative_l1"), (1, "[301]")])
def test_examples_of_the_readme_run(number, printed, capsys):
    code = CODE.findall((ROOT / "README.md").read_text(encoding="utf-8"))[number]
    exec(compile(code, "README.md", "exec"), {})
    assert printed in capsys.readouterr().out
