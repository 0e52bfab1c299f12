"""Hooks of mkdocs: recipes, examples and the project's own pages join the site, so that links to them work.

In the repository a page links to `../../recipes/NAME.yaml`. In the site the file lies at
`files/recipes/NAME.yaml`.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
SHARED = ("recipes/*.yaml", "recipes/*.py", "examples/*.py", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
"""files outside docs/ that pages link to"""
FOLDER = "files"
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the shared files to the site. Markdown becomes plain text, as its own links lead elsewhere."""
    for pattern in SHARED:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, _in_site(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **others: Any) -> str:  # noqa: ARG001 - what mkdocs passes
    """Points links that leave docs/ at the copies in the site."""
    here = posixpath.dirname(page.file.src_uri)

    def pointed(match: re.Match[str]) -> str:
        path = ROOT / "docs" / here / match.group(1)
        shared = path.resolve()
        if not shared.is_file() or shared.is_relative_to(ROOT / "docs"):
            return match.group(0)
        return "](" + posixpath.relpath(_in_site(shared), here or ".")

    return _LINK.sub(pointed, markdown)


def _in_site(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return f"{FOLDER}/{name}.txt" if name.endswith(".md") or "." not in name else f"{FOLDER}/{name}"
