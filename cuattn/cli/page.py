"""One HTML file that refers to nothing outside of itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from .style import STYLE
from .table import Table, number

__all__ = [
    "Card",
    "cards",
    "definitions",
    "details",
    "heading",
    "links_to",
    "page",
    "paragraph",
    "section",
    "table",
]


@dataclass(frozen=True)
class Card:
    """A picture with what it shows.

    Attributes
    ----------
    title : str
    picture : str
        An SVG element.
    text : str
        For a reader who has not read the papers.
    """

    title: str
    picture: str
    text: str


def page(title: str, subtitle: Sequence[str], body: Iterable[str], foot: str) -> str:
    """Return the document; `subtitle` are lines under the title."""
    lines = "".join(f"<p>{escape(line)}</p>" for line in subtitle)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1>{lines}</header>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<footer>{paragraph(foot)}</footer>\n</body>\n</html>\n"
    )


def section(name: str, title: str, body: Iterable[str]) -> str:
    """Return a part of the page; `name` is its anchor."""
    inside = "\n".join(body)
    return f'<section id="{escape(name)}">\n<h2>{escape(title)}</h2>\n{inside}\n</section>'


def links_to(sections: Iterable[tuple[str, str]]) -> str:
    """Return links to sections, given as anchors and words."""
    links = (f'<a href="#{escape(name)}">{escape(words)}</a>' for name, words in sections)
    return f"<nav>{''.join(links)}</nav>"


def heading(text: str) -> str:
    """Return a heading inside of a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """Return words, each with what there is to say of it."""
    inside = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in items)
    return f"<dl>{inside}</dl>"


def details(title: str, note: str, body: str, *, is_open: bool = False) -> str:
    """Return what opens by a click."""
    state = " open" if is_open else ""
    summary = f"<summary><b>{escape(title)}</b> <span>{escape(note)}</span></summary>"
    return f"<details{state}>{summary}\n{body}\n</details>"


def cards(shown: Iterable[Card]) -> str:
    """Return pictures side by side, as many as there is room for."""
    figures = "\n".join(
        f"<figure><h3>{escape(card.title)}</h3>"
        f'<div role="img" aria-label="{escape(card.title)}">{card.picture}</div>'
        f"<figcaption>{escape(card.text)}</figcaption></figure>"
        for card in shown
    )
    return f'<div class="cards">\n{figures}\n</div>'


def table(shown: Table, text: str) -> str:
    """Return a table with an explanation; it scrolls sideways where it is too wide."""
    columns = "".join(f'<th scope="col">{escape(column)}</th>' for column in shown.columns)
    rows = []
    for group in shown.groups:
        span = len(shown.columns) + 1
        if group.title:
            rows.append(f'<tr class="group"><th colspan="{span}">{escape(group.title)}</th></tr>')
        rows += [
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(f"<td>{escape(number(figure))}</td>" for figure in figures)
            + "</tr>"
            for name, figures in group.rows
        ]
    return (
        (heading(shown.title[:1].upper() + shown.title[1:]) if shown.title else "")
        + f'{paragraph(text)}<div class="table" tabindex="0"><table><thead><tr><td></td>{columns}'
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
