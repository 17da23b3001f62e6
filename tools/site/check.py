"""The built site opens without a network: no page takes anything from another host."""

import logging
import re
from pathlib import Path

# What a browser fetches by itself, not what a reader follows.
FETCHED = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(https?:)?//[^"]*"'
    r'|<link\b[^>]*\brel="?(?:stylesheet|icon|preconnect|preload)\b[^>]*\bhref="?(https?:)?//[^>]*'
    r"|@import\s+(?:url\()?[\"']?https?:[^;]*"
)

log = logging.getLogger("mkdocs.hooks.check")


def fetched(text):
    """Return what of a page or a style sheet would come from another host."""
    return [found[0] for found in FETCHED.finditer(text)]


def on_post_build(config):
    """Warn of each file that needs the network, which ends a strict build."""
    site = Path(config.site_dir)
    for file in sorted((*site.rglob("*.html"), *site.rglob("*.css"))):
        for what in fetched(file.read_text(encoding="utf-8")):
            log.warning("%s needs a network: %s", file.relative_to(site), what)
