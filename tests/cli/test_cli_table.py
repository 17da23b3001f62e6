"""The tables of the commands: how they are laid out, and how numbers are written."""

import numpy as np
import pytest

from cuattn.cli.table import Group, number, render


def test_table_aligns_names_left_and_figures_right():
    groups = [Group("first", [("a", [1.0, None]), ("long name", [12345.6, 1e-5])])]
    assert render(["x", "y"], groups).splitlines() == [
        "                 x         y",
        "first",
        "  a           1.00         -",
        "  long name  12346  1.00e-05",
    ]


@pytest.mark.parametrize(
    ("figure", "text"),
    [(None, "-"), (0.0, "0.00"), (0.02, "0.0200"), (123.4, "123"), (-4.0, "-4.00"), (5e4, "50000")],
)
def test_number_has_three_digits(figure, text):
    assert number(figure) == text


@pytest.mark.parametrize("figure", [np.nan, np.inf, -np.inf])
def test_number_shows_what_is_not_finite(figure):
    assert number(figure) == str(figure)
