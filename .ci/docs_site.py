"""The documentation site: the pages of docs/ and of the repository's root, each written once.

A hook of mkdocs. README.md is the site's front page; a file of the repository that a page links
to, a configuration or a module, is copied beside the pages. Links are written for the repository,
and are rewritten here to where their targets lie on the site. mkdocs then checks all of them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?=[#)])")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and every file of the repository that some page links to."""
    pages = [*ROOT_PAGES, *(f"docs/{each.src_uri}" for each in files.documentation_pages())]
    linked = {target for page in pages for target in targets(page)}
    for path in dict.fromkeys([*ROOT_PAGES, *sorted(linked)]):
        if site_path(path) not in files.src_uris and (ROOT / path).is_file():
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the page's links at where their targets lie on the site."""
    source = repository_path(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri) or "."

    def moved(match: re.Match[str]) -> str:
        return posixpath.relpath(site_path(resolved(source, match["path"])), here)

    return outside_code(markdown, moved)


def targets(page: str) -> Iterator[str]:
    """The repository's files that a page links to."""
    for part in FENCE.split((ROOT / page).read_text(encoding="utf-8"))[::2]:
        for match in LINK.finditer(part):
            yield resolved(page, match["path"])


def outside_code(markdown: str, moved: Callable[[re.Match[str]], str]) -> str:
    """The page with its links rewritten, but for what stands in code blocks."""
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)


def resolved(page: str, link: str) -> str:
    """A link's target as a path from the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def site_path(path: str) -> str:
    """Where a file of the repository lies on the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def repository_path(site: str) -> str:
    """Where a page of the site lies in the repository."""
    if site == "index.md":
        return "README.md"
    return site if site in ROOT_PAGES else f"docs/{site}"
