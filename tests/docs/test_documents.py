"""The documents hold: examples run, links lead somewhere, and the architecture is as drawn."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import cuattn
from cuattn.cli import _parser
from cuattn.compile.sources import sources

ROOT = Path(cuattn.__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Not what `cuattn info` prints, whose columns are apart.
COMMAND = re.compile(r"^(?:RUN |\$ )?cuattn (?!  )(.*)$", re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def module_files():
    """Yield (name below cuattn, path) of every module of the package as it is installed."""
    for path in (ROOT / "cuattn").rglob("*.py"):
        parts = path.relative_to(ROOT / "cuattn").with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__") or "cuattn", path
    for path in (ROOT / "reference").glob("*.py"):
        yield ("reference" if path.stem == "__init__" else f"reference.{path.stem}"), path


MODULES = dict(module_files())


def layers():
    """Return the layer of each module as docs/architecture.md has them, the lowest first."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = text.partition("| layer | modules |")[2].partition("\n\n")[0].splitlines()[2:]
    found = {}
    for depth, row in enumerate(rows):
        for entry in row.split("|")[2].split(" · "):
            for name in re.findall(r"`([\w.]+)`", entry):
                if name in MODULES:
                    assert name not in found, f"{name} is in two layers"
                    found[name] = depth
    return found


def imports(name, path):
    """Return the modules of the package that a module imports, wherever in the file."""
    package = ["cuattn"] if name == "cuattn" else ["cuattn", *name.split(".")]
    if path.stem != "__init__":
        package.pop()
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {_below(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                # What is imported from a package may be a module of it.
                module = _below(f"{base}.{alias.name}")
                found.add(module if module in MODULES else _below(base))
    return found & MODULES.keys() - {name}


def _below(name):
    return name.removeprefix("cuattn.")


def test_architecture_names_every_module():
    assert set(layers()) == set(MODULES)


def test_imports_point_to_higher_rows_of_the_table():
    depth = layers()
    wrong = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in imports(name, path)
        if depth[other] > depth[name]
    ]
    assert wrong == []


def test_no_modules_import_each_other():
    graph = {name: imports(name, path) for name, path in MODULES.items()}
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    assert graph == {}


def test_kernel_includes_point_one_way():
    order = {"ptx": 1, "tile": 2, "attn": 3, "quant": 3, "sm90": 4, "kv": 4}

    def depth(name):
        if "/" in name:
            return order[name.partition("/")[0]]
        return 5 if name.endswith(".cu") else 0

    for name, text in sources().items():
        for other in re.findall(r'^#include "(.*)"', text, re.MULTILINE):
            here, there = name.partition("/")[0], other.partition("/")[0]
            assert depth(other) < depth(name) or here == there or depth(name) == 0, (name, other)


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
