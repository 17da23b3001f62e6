"""What the site is made of, but for what `make docs` says of it itself."""

import re
from importlib import import_module
from pathlib import Path

import pytest

import cuattn
import cuattn.reference
from tools.site.check import fetched
from tools.site.pages import ROOT, generated, linked, page_of, path_of, relinked

# Imported where they are used: computers that only run GPU tests collect this file without them.
GRIFFE, DOCSTRINGS = "griffe", "tools.site.docstrings"

SHOWN = re.compile(r"^::: (\S+)(?:\n    options:\n      heading: (\S+))?", re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "package"), [("cuattn.md", cuattn), ("reference.md", cuattn.reference)]
)
def test_reference_has_every_public_name_once(page, package):
    found = SHOWN.findall((ROOT / "docs" / "api" / page).read_text(encoding="utf-8"))
    names = [heading or name for name, heading in found if name != package.__name__]
    assert sorted(names) == sorted(f"{package.__name__}.{name}" for name in package.__all__)


def test_docstrings_become_markdown():
    as_markdown = import_module(DOCSTRINGS).as_markdown
    text = "  Of :math:`x^2`.\n\n  .. math:: a = b, \\quad\n            c\n\n  As::\n\n    d"
    expected = "  Of $x^2$.\n\n  $$a = b, \\quad\n            c$$\n\n  As:\n\n    d"
    assert as_markdown(text) == expected
    assert as_markdown("x[::2]\n") == "x[::2]\n"


def test_each_name_of_a_docstring_has_an_entry_and_a_description():
    text = "Do.\n\nParameters\n----------\nq : array [D]\n"
    text += "k, v : array\n    Of a head.\n\n    And.\ny_0, y_1 : int\n    Two.\n\n"
    text += "Returns\n-------\nlse : float\n    Mine.\n\nNotes\n-----\nq : x"
    expected = "Do.\n\nParameters\n----------\nq : array [D]\n    Queries.\n"
    expected += "k : array\n    Keys.\n    Of a head.\n\n    And.\n"
    expected += "v : array\n    Values.\n    As `k`.\n"
    expected += "y_0 : int\n    Two.\ny_1 : int\n    As `y_0`.\n\n"
    expected += "Returns\n-------\nlse : float\n    Mine.\n\nNotes\n-----\nq : x"
    assert import_module(DOCSTRINGS).described(text) == expected


def entries_without_description(thing):
    """Yield the names of a docstring's sections, as the site has it, that say nothing."""
    for section in thing.docstring.parsed if thing.docstring else []:
        if section.kind.value in ("parameters", "attributes", "returns"):
            for entry in section.value:
                if entry.name and not entry.description:
                    yield f"{thing.path}: {entry.name}"


@pytest.mark.parametrize("page", ["cuattn.md", "reference.md"])
def test_parameters_on_the_pages_have_descriptions(page):
    griffe = import_module(GRIFFE)
    extensions = griffe.load_extensions("dataclasses", str(ROOT / "tools/site/docstrings.py"))
    package = griffe.load(
        "cuattn", search_paths=[str(ROOT)], extensions=extensions, docstring_parser="numpy"
    )
    names = SHOWN.findall((ROOT / "docs" / "api" / page).read_text(encoding="utf-8"))
    silent, seen = [], 0
    for name, _ in names:
        thing = package[name.removeprefix("cuattn.")] if name != "cuattn.reference" else None
        if thing is None:
            continue
        thing = thing.final_target if thing.is_alias else thing
        members = {} if thing.is_function or thing.is_attribute else thing.members
        shown = [m for m in members.values() if not m.is_alias and not m.name.startswith("_")]
        for each in (thing, *shown):
            silent += entries_without_description(each)
            seen += 1
    assert silent == []
    assert seen > 20


@pytest.mark.parametrize(
    ("path", "page"),
    [
        ("README.md", "index.md"),
        ("docs/howto/decode.md", "howto/decode.md"),
        ("CHANGELOG.md", "source/CHANGELOG.md"),
        ("reference/metrics.py", "source/reference/metrics.py.md"),
        ("LICENSE", "source/LICENSE.md"),
    ],
)
def test_files_have_pages(path, page):
    assert page_of(path) == page
    assert path_of(page) == path


def test_links_lead_from_page_to_page():
    text = "[a](../README.md#support) [b](numerics.md) [c](../reference/metrics.py) [d](#here)\n"
    text += "[e](https://x.org/y.md)\n```\n[f](../README.md)\n```\n"
    assert relinked(text, "docs/usage.md") == (
        "[a](index.md#support) [b](numerics.md) [c](source/reference/metrics.py.md) [d](#here)\n"
        "[e](https://x.org/y.md)\n```\n[f](../README.md)\n```\n"
    )
    assert relinked("[a](docs/usage.md)", "README.md") == "[a](usage.md)"
    assert relinked("[a](../schemes.md)", "docs/howto/decode.md") == "[a](../schemes.md)"
    assert linked(text, "docs/usage.md") == {
        "README.md",
        "docs/numerics.md",
        "reference/metrics.py",
    }


def test_what_pages_link_to_is_generated():
    pages = generated()
    assert {"README.md", "CHANGELOG.md", "reference/metrics.py"} <= set(pages)
    assert all((ROOT / path).is_file() for path in pages)
    assert pages["reference/metrics.py"].startswith(
        "# metrics.py\n\n`reference/metrics.py`\n\n````"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('<script src="assets/a.js"></script><a href="https://x.org">x</a>', 0),
        ('<script src="https://x.org/a.js"></script>', 1),
        ('<link rel="stylesheet" href="//x.org/a.css">', 1),
        ('<link rel=preconnect href="https://x.org" crossorigin>', 1),
        ('<link rel="canonical" href="https://x.org">', 0),
        ("@import url(https://x.org/a.css);", 1),
        ('<img src="http://x.org/a.png">', 1),
    ],
)
def test_what_a_browser_would_fetch_elsewhere_is_found(text, found):
    assert len(fetched(text)) == found


def test_formulas_are_between_signs_that_the_site_knows():
    """Displayed ones begin lines of their own, or they would be words of a paragraph."""
    for document in (ROOT / "docs").rglob("*.md"):
        prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        for found in re.finditer(r"\$\$.+?\$\$", prose, re.DOTALL):
            before, after = prose[: found.start()], prose[found.end() :]
            assert re.search(r"\n\s*$", before), (Path(document).name, found[0])
            assert re.match(r"\s*\n", after), (Path(document).name, found[0])
