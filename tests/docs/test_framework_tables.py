"""Tables of what works in which framework: every test that they name is there."""

import re
from pathlib import Path

from page_blocks import DOCS

TESTS = Path(__file__).parents[1]


def test_tests_that_the_page_names_are_there():
    page = (DOCS / "howto" / "frameworks.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    found = set()
    for path in TESTS.rglob("test_*.py"):
        found |= set(re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.M))
    assert named
    assert named - found == set()
