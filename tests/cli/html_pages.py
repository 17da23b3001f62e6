"""What holds of every page that a command writes, and a browser to look at one."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
from matplotlib.image import imread

from cuattn.cli.pages.figures import FAINT, INK, SERIES
from cuattn.cli.pages.page import TEMPLATES

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "br", "img", "input", "link", "hr"}
# Attributes that make a browser fetch something.
REFERENCES = {"href", "src", "srcset", "data", "poster", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """What is in a document; fails for elements that are not closed as they were opened."""

    def __init__(self, text):
        super().__init__()
        self.references, self.names, self.tags = [], [], []
        self.styles, self.scripts, self.texts, self.cells = [], [], [], []
        self._open = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self._look(tag, attributes)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self._look(tag, attributes)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("style", "script"):
            (self.styles if self._open[-1] == "style" else self.scripts).append(data)
        else:
            self.texts.append(data)
            if self._open and self._open[-1] == "td":
                self.cells.append(data)

    def _look(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in REFERENCES:
                self.references.append(value)
            if name == "id":
                self.names.append(value)
            if name in ("style", "clip-path", "fill"):
                self.styles.append(value)
            assert not name.startswith("on"), f"{tag} has a script"


def is_sound(text):
    """Fail for a page that is not well formed, or refers to what is outside or nowhere."""
    page = Page(text)
    own = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    assert [script.strip() for script in page.scripts] == [own.strip()]
    assert set(page.tags) & {"link", "iframe", "object", "embed", "base"} == set()
    outside = [x for x in page.references if not x.startswith(("#", "data:image/png;base64,"))]
    assert outside == []
    styles = "\n".join(page.styles)
    assert "@import" not in styles
    assert set(re.findall(r"url\((.)", styles)) <= {"#"}
    assert "http" not in text
    assert len(page.names) == len(set(page.names))
    wanted = {x[1:] for x in page.references if x.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", styles))
    assert wanted <= set(page.names)
    return page


def has_its_own_colors(text):
    """Fail for a page with colours that do not follow the theme."""
    for color in (INK, FAINT, *SERIES):
        assert color not in text.lower()
    names = set(re.findall(r"var\(--([\w-]+)\)", text))
    defined = set(re.findall(r"--([\w-]+):", text))
    assert names <= defined
    assert "prefers-color-scheme: dark" in text


def browse(folder, file, *options):
    """Run a browser without a window, with a profile that is thrown away."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", *options, file.as_uri()]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, cwd=folder
    ).stdout


def is_shown_as_it_should_be(folder, file):
    """Fail unless a browser shows a page light or dark, as wide as a phone's or a desk's screen."""
    assert brightness(folder, file, dark=True) < 60
    assert brightness(folder, file, dark=False) > 230
    assert [overhang(folder, file, width) for width in (360, 1200)] == [0, 0]


def brightness(folder, file, *, dark):
    """Return the median of a screenshot's grey levels."""
    picture = folder / f"dark-{dark}.png"
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(folder, file, f"--screenshot={picture}", "--window-size=1200,1500", theme)
    pixels = (255 * imread(picture)[..., :3].mean(axis=2)).round()
    assert pixels.shape == (1500, 1200)
    assert len(np.unique(pixels)) > 50
    return np.median(pixels)


def overhang(folder, file, width):
    """Return by how many pixels a page is wider than a screen; wide tables scroll apart."""
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe id="f" width="{width}" height="800" src="{file.as_uri()}"></iframe>'
        "<script>onload = () => { const d = f.contentDocument.documentElement;"
        "document.title = `${d.scrollWidth} of ${d.clientWidth}`; }</script>"
    )
    title = re.search(r"<title>(\d+) of (\d+)</title>", browse(folder, frame, "--dump-dom"))
    return int(title[1]) - int(title[2])
