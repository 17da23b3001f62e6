"""The pages about extending the project are true: their steps work, one after the other."""

import pytest
from page_steps import copy_of_the_project, edited, take

pytest.importorskip("cupy")  # both pages compile kernels


# And how many steps they have at least.
PAGES = {"howto/add-a-scheme.md": 9, "howto/add-a-kernel-family.md": 12}


@pytest.mark.parametrize("page", PAGES)
def test_steps_of_the_page_work(page, tmp_path):
    copy_of_the_project(tmp_path)
    assert take(page, tmp_path) >= PAGES[page]


def test_an_edit_fits_in_one_place():
    assert edited("a\nb\nc\n", " a\n-b\n+B\n") == "a\nB\nc\n"
    assert edited("a\n\nb\nc\n", " a\n\n+x\n…\n b\n+y\n") == "a\n\nx\nb\ny\nc\n"
    assert edited("a b c\n", "-a …\n+a x …\n") == "a x b c\n"
    for text in ("a\nb\na\nb\n", "c\n"):
        with pytest.raises(AssertionError, match="places for"):
            edited(text, " a\n+x\n")
