"""Docstrings as the reference pages show them: an extension of griffe, which reads them.

The docstrings keep numpydoc's conventions, of which griffe's parser lacks two: names that share one
description ("k, v : array"), and a name whose meaning is the same everywhere, which has a type and
no description. They also have formulas as reStructuredText, where the site wants Markdown.
"""

import re

from griffe import Alias, Extension

# What a name means wherever it has no description of its own.
TERMS = {
    "q": "Queries.",
    "k": "Keys.",
    "v": "Values.",
    "o": "The output.",
    "lse": "Natural logarithm of the sum of the exponentials of the logits.",
    "scheme": "What is quantized, and how.",
    "operand": "Which operand of attention it is.",
    "layout": "Order of the axes: heads before tokens, or tokens before heads.",
    "is_causal": "Whether the causal mask hides later keys.",
    "batch": "Number of sequences.",
    "num_q_heads": "Number of heads of Q.",
    "num_kv_heads": "Number of heads of K and V.",
    "seqlen_q": "Number of queries of a sequence.",
    "seqlen_kv": "Number of keys of a sequence.",
    "head_dim": "Channels of a head.",
    "seed": "Of the random numbers.",
    "kv_format": "Bits, groups and zero points of the cache.",
    "min_cosine": "Least cosine similarity with attention in float64.",
    "x": "The elements.",
    "codes": "What the elements were rounded to.",
    "scope": "Which elements share a scale.",
    "dtype": "Type of the elements.",
    "vector": "One vector for each head.",
    "reference": "What it is compared with.",
    "workers": "How many share the work.",
}

_FORMULA = re.compile(r"^( *)\.\. math:: (.*(?:\n\1 +\S.*)*)$", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_LITERAL = re.compile(r"(?<=\w)::$", re.MULTILINE)
_SECTION = re.compile(r"^(?:Parameters|Attributes|Returns)\n-+\n(?:(?!.*\n---).*\n)*", re.MULTILINE)
_ITEM = re.compile(
    r"^(?P<names>\w+(?:, \w+)*) : (?P<type>.*)\n(?P<text>(?:\n* .*\n)*)", re.MULTILINE
)


def as_markdown(text):
    """Return a docstring with its formulas as Markdown has them."""
    text = _FORMULA.sub(lambda found: f"{found[1]}$${found[2]}$$", text)
    text = _INLINE.sub(lambda found: f"${found[1]}$", text)
    return _LITERAL.sub(":", text)


def described(text):
    """Return a docstring with one name to an entry, and a description for each.

    Of several names the first keeps the description, and the others refer to it.
    """
    return _SECTION.sub(lambda section: _ITEM.sub(_entries, section[0]), f"{text}\n").rstrip()


def _entries(item):
    """Return the entries that one of several names, or of a name without description, becomes."""
    names = item["names"].split(", ")
    lines = []
    for name in names:
        lines.append(f"{name} : {item['type']}\n")
        if len(names) > 1 or not item["text"]:
            lines.append(f"    {TERMS[name]}\n" if name in TERMS else "")
        if name == names[0]:
            lines.append(item["text"])
        elif item["text"]:
            lines.append(f"    As `{names[0]}`.\n")
    return "".join(lines)


class Docstrings(Extension):
    """Rewrites the docstrings of a package before they are parsed."""

    def on_package(self, *, pkg, **_):
        """Do so for everything in it."""
        self._rewrite(pkg)

    def _rewrite(self, thing):
        if thing.docstring is not None:
            thing.docstring.value = described(as_markdown(thing.docstring.value))
        for member in thing.members.values():
            if not isinstance(member, Alias):
                self._rewrite(member)
