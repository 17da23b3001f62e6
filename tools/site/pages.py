"""Pages that are not files of docs/: the home page, and what of the project pages link to.

Links in the documents are those of the repository, so that they lead somewhere wherever that is
shown. On the site README.md is the home page, and other files outside of docs/ that are linked to
become pages below source/.
"""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = "README.md"

# A link to a file, with or without a fragment; not one within a page or to elsewhere.
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)

_LANGUAGES = {".py": "python", ".cu": "cuda", ".cuh": "cuda", ".json": "json"}


def page_of(path):
    """Return the page, relative to docs/, that a file of the repository is shown as."""
    if path == HOME:
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def linked(text, path):
    """Return the files of the repository that a document at a path links to."""
    folder = posixpath.dirname(path)
    prose = _FENCED.sub("", text)
    return {posixpath.normpath(posixpath.join(folder, to)) for to, _ in LINK.findall(prose)}


def relinked(text, path):
    """Return a document at a path with its links as they are between pages."""
    folder, here = posixpath.dirname(path), posixpath.dirname(page_of(path))

    def replace(link):
        to = page_of(posixpath.normpath(posixpath.join(folder, link[1])))
        return f"]({posixpath.relpath(to, here or '.')}{link[2] or ''})"

    parts = _FENCED.split(text)
    return "".join(part if n % 2 else LINK.sub(replace, part) for n, part in enumerate(parts))


def shown(path):
    """Return a file of the repository as Markdown, with its own links."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = _LANGUAGES.get(posixpath.splitext(path)[1], "text")
    return f"# {posixpath.basename(path)}\n\n`{path}`\n\n````{language}\n{text.rstrip()}\n````\n"


def generated():
    """Return the Markdown, by path, of all files outside of docs/ that the site shows."""
    documents = (ROOT / "docs").rglob("*.md")
    waiting = {HOME, *(document.relative_to(ROOT).as_posix() for document in documents)}
    found, seen = {}, set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        text = shown(path)
        if path.endswith(".md"):
            waiting |= linked(text, path) - seen
        if not path.startswith("docs/"):
            found[path] = text
    return found


def on_files(files, config):
    """Add the pages."""
    from mkdocs.structure.files import File

    for path, text in generated().items():
        files.append(File.generated(config, page_of(path), content=text))
    return files


def on_page_markdown(markdown, page, **_):
    """Turn the links of the repository into those of the site."""
    return relinked(markdown, path_of(page.file.src_uri))


def path_of(page):
    """Undo `page_of`."""
    if page == "index.md":
        return HOME
    if not page.startswith("source/"):
        return f"docs/{page}"
    path = page.removeprefix("source/")
    return path if (ROOT / path).exists() else path.removesuffix(".md")
