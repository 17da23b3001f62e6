"""The pages about extending the project are true: their steps work, one after the other."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from page_steps import copy_of_the_project, edited, take

pytest.importorskip("cupy")  # both pages compile kernels


# And how many steps they have at least.
PAGES = {"howto/add-a-scheme.md": 9, "howto/add-a-kernel-family.md": 11}


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """The pages' steps, taken side by side: most are commands, which this process waits for."""
    with ThreadPoolExecutor(len(PAGES)) as pool:
        yield {page: pool.submit(steps_of, page, tmp_path_factory.mktemp("copy")) for page in PAGES}


def steps_of(page, folder):
    copy_of_the_project(folder)
    return take(page, folder)


@pytest.mark.parametrize("page", PAGES)
def test_steps_of_the_page_work(page, taken):
    assert taken[page].result() >= PAGES[page]


def test_an_edit_fits_in_one_place():
    assert edited("a\nb\nc\n", " a\n-b\n+B\n") == "a\nB\nc\n"
    assert edited("a\n\nb\nc\n", " a\n\n+x\n…\n b\n+y\n") == "a\n\nx\nb\ny\nc\n"
    assert edited("a b c\n", "-a …\n+a x …\n") == "a x b c\n"
    for text in ("a\nb\na\nb\n", "c\n"):
        with pytest.raises(AssertionError, match="places for"):
            edited(text, " a\n+x\n")
