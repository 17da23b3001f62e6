"""One HTML file that refers to nothing outside of itself, from the templates beside this module."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import UnsupportedError
from ..table import number

__all__ = ["Card", "needs_packages", "render"]

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("matplotlib", "jinja2")


@dataclass(frozen=True)
class Card:
    """A picture with what it shows.

    Attributes
    ----------
    title : str
    picture : str
        An SVG element, which goes into the page as it is.
    text : str
        For a reader who has not read the papers.
    """

    title: str
    picture: str
    text: str


def needs_packages(option: str, packages: tuple[str, ...] = PACKAGES) -> None:
    """Raise if a page or its pictures cannot be made, before any long work.

    Raises
    ------
    UnsupportedError
        If a package is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"{option} needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def render(template: str, **values: Any) -> str:
    """Return a page; whatever is not HTML in the template itself is escaped.

    Parameters
    ----------
    template : str
        Name of a file in ``templates``.
    **values
        What the template shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    page: str = environment.get_template(template).render(version=__version__, **values)
    return page
