"""Formulas of the site as MathML, which browsers show without a script or a font of ours."""

import html
import logging
import re

from latex2mathml.converter import convert

# What pymdownx.arithmatex leaves, with generic: true.
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)

# Sizes of fences, which MathML has by itself.
_SIZES = re.compile(r"\\[bB]igg?[lr](?=[^a-zA-Z])")

log = logging.getLogger("mkdocs.hooks.formulas")


def mathml(latex, *, display):
    """Return a formula's MathML.

    Raises
    ------
    ValueError
        If a command in it is not known.
    """
    text = convert(_SIZES.sub("", latex), display="block" if display else "inline")
    if "\\" in text:
        raise ValueError(f"a command is not known: {latex.strip()}")
    return text


def on_page_content(content, page, **_):
    """Replace the formulas of a page."""

    def replace(found):
        try:
            return mathml(html.unescape(found["latex"]), display=found["tag"] == "div")
        except Exception as error:
            log.warning("%s: %s in %s", page.file.src_uri, error, found["latex"])
            return found[0]

    return FORMULA.sub(replace, content)
