"""The house is as docs/architecture.md draws it: rooms, and imports that run one way."""

import ast
import re
from pathlib import Path

import pytest

import cuattn
from cuattn.compile.sources import sources

ROOT = Path(cuattn.__file__).resolve().parent.parent
PACKAGE = ROOT / "cuattn"

# What a user meets, at the top: modules of their own, which count as rooms.
MOST_AT_THE_TOP = 12


def order():
    """Return the rooms in the order of the page, the lowest first."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = text.partition("| room | what for |")[2].partition("\n\n")[0].splitlines()[2:]
    return [re.match(r"\| `(\w+)/?`", row)[1] for row in rows]


def files():
    """Yield (room, path) of every module; the package itself is the room `cuattn`."""
    for path in PACKAGE.glob("*.py"):
        yield ("cuattn" if path.stem.startswith("__") else path.stem), path
    for folder in PACKAGE.iterdir():
        if folder.is_dir() and (folder / "__init__.py").exists():
            for path in folder.rglob("*.py"):
                yield folder.name, path


ROOMS = {}
for _room, _path in files():
    ROOMS.setdefault(_room, []).append(_path)
FOLDERS = [room for room in ROOMS if (PACKAGE / room / "__init__.py").exists()]


def imported(room):
    """Return the rooms that a room imports, wherever in its files."""
    found = set()
    for path in ROOMS[room]:
        package = ["cuattn", *path.relative_to(PACKAGE).parts[:-1]]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {_room_of(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parts = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*parts, *filter(None, [node.module])])
                found |= {_room_of(f"{base}.{alias.name}") for alias in node.names}
    return found - {None, room}


def _room_of(name):
    parts = name.split(".")
    if parts[0] != "cuattn":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "cuattn"


def allowed(room):
    """Return the rooms that the docstring of a room's `__init__` names."""
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8")))
    sentence = re.search(r"May import (.*?)\.(?:\n|$)", text, re.DOTALL)[1]
    return set(re.findall(r"`(\w+)`", sentence))


def test_the_page_names_every_room_once():
    assert sorted(order()) == sorted(ROOMS)


def test_rooms_import_only_rooms_before_them():
    place = {room: n for n, room in enumerate(order())}
    top = {"cli", "cuattn"}  # the package's own names are for those who use it as a user does
    users = {"bench", "cli"}
    wrong = [
        f"{room} imports {other}"
        for room in ROOMS
        for other in imported(room)
        if place[other] > place[room] and not (room in users and other in top)
    ]
    assert wrong == []


@pytest.mark.parametrize("room", FOLDERS)
def test_a_room_says_what_it_is_for_and_what_it_imports(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8")))
    assert len(text.splitlines()[0]) > 40
    assert allowed(room) == imported(room)


def test_no_modules_of_a_room_import_each_other():
    graph = {}
    for room in FOLDERS:
        for path in ROOMS[room]:
            graph[path] = _neighbours(path)
    while leaves := {path for path, others in graph.items() if not others & graph.keys()}:
        graph = {path: others for path, others in graph.items() if path not in leaves}
    assert graph == {}


def _neighbours(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1]
            base = folder.joinpath(*(node.module or "").split("."))
            for alias in node.names:
                places = (base / f"{alias.name}.py", base.with_suffix(".py"), base / "__init__.py")
                found.add(next((place for place in places if place.exists()), path))
    return found - {path}


def test_few_modules_are_at_the_top():
    at_top = list(PACKAGE.glob("*.py"))
    assert len(at_top) <= MOST_AT_THE_TOP


def test_the_package_shows_its_public_names():
    shown = {name for name in dir(cuattn) if not name.startswith("__")}
    public = {name for name in cuattn.__all__ if not name.startswith("__")}
    assert shown == public | {"reference"}


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
