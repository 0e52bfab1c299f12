"""What the pages show is true: marked examples run, recipes are valid, links lead somewhere."""

import doctest
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

sys.path.append(str(Path(__file__).parent))

from blocks import DOCS, PAGES, ROOT, Block, blocks

from sparsify.recipe import load
from sparsify_cli.app import exit_code

BASE: dict[str, Any] = {
    "version": 1,
    "title": "part",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits"},
    "rules": [{"layers": "Conv2d", "group": "filter"}],
}
"""what a part of a recipe is completed by"""
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
RUN = [page for page in PAGES if any(block.mark in ("run", "prints") for block in blocks(page))]
NEEDS = {
    "detector.md": "pycocotools",
    "hugging-face-trainer.md": "transformers",
    "language-model.md": "transformers",
    "lora.md": "peft",
    "transformer.md": "transformers",
}
WIDE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.filterwarnings("ignore")  # of transformers, and of exporters
@pytest.mark.parametrize("page", RUN, ids=named)
def test_what_a_page_shows_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(NEEDS.get(page.name, "torch"))
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    torch.manual_seed(0)
    printed = ""
    for block in blocks(page):
        place = f"{named(page)}:{block.line}"
        if block.mark.startswith("file: "):
            _written(block)
        elif block.mark == "run" and block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, module.__dict__)
            printed = capsys.readouterr().out
        elif block.mark == "run":
            assert block.language == "console", f"{place}: python and console blocks run"
            printed = _carried_out(block, place, capsys)
        elif block.mark == "prints":
            assert _agrees(block.text, printed), f"{place}: printed is\n{printed}"


def _written(block: Block) -> None:
    path = Path(block.mark.removeprefix("file: "))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    if block.language == "yaml" and "version:" in block.text:
        load(path)


def _carried_out(block: Block, place: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Lines that begin with `$` are commands; what follows one is what it prints, where anything follows."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert parts[0].strip() == "", f"{place}: a console block begins with a command"
    whole = ""
    for part in parts[1:]:
        command, _, expected = part.partition("\n")
        words = shlex.split(command, comments=True)
        assert words[0] == "sparsify", f"{place}: only sparsify runs here"
        code = exit_code(words[1:])
        told = capsys.readouterr()
        failing = "error:" in expected or re.search(r"^\S+\.yaml:\d+:\d+: ", expected, re.MULTILINE)
        assert code == (1 if failing else 0), f"{place}: {command}: {code}\n{told.err}"
        shown = told.err if failing else told.out
        assert not expected.strip() or _agrees(expected, shown), f"{place}: {command}:\n{shown}"
        whole += shown
    return whole


def _agrees(expected: str, found: str) -> bool:
    return doctest.OutputChecker().check_output(expected, found, WIDE)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_recipes_in_a_page_are_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language != "yaml":
            continue
        assert block.mark, (
            f"{named(page)}:{block.line}: mark this block as a recipe, a part of one, or a file"
        )
        if block.mark.startswith("file: "):
            _written(block)
            continue
        given = yaml.safe_load(block.text)
        whole = block.mark == "recipe"
        file = tmp_path / "recipe.yaml"
        file.write_text(block.text if whole else _completed(block.text, given), encoding="utf-8")
        load(file, limits=False)


def _completed(text: str, given: dict[str, Any]) -> str:
    """The part as it is written, and of BASE what it lacks."""
    lacking = {key: value for key, value in BASE.items() if key not in given}
    return yaml.safe_dump(lacking, sort_keys=False) + text


def test_every_tutorial_runs() -> None:
    assert TUTORIALS
    assert [named(page) for page in TUTORIALS if page not in RUN] == []


LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.*?)(?: *\{ *#([\w-]+).*\})?$", re.MULTILINE)
MADE = {"reference/python.md"}
"""pages of which some headings are made when the site is built"""


def without_blocks(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings, as the site names them."""
    slugify = pytest.importorskip("markdown.extensions.toc").slugify
    found = HEADING.findall(without_blocks(page))
    plain = [(re.sub(r"[`*]", "", title), own) for title, own in found]
    return {own or slugify(title, "-") for title, own in plain}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=named)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    links = [link for link in LINK.findall(without_blocks(page)) if not re.match(r"\w+:", link[0])]
    assert [target for target, _ in links if not (page.parent / target).exists()] == []
    for target, anchor in links:
        other = (page.parent / target).resolve() if target else page
        if anchor and other.suffix == ".md" and str(other.relative_to(DOCS)) not in MADE:
            assert anchor in anchors(other), f"{target}#{anchor}"


def test_every_page_is_in_the_navigation() -> None:
    """And the navigation names no other; NIGHTLY=1 builds the site."""
    shown = re.findall(r"^ *- (?:.*: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.nightly
@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """As `make docs` does: every link and anchor leads somewhere, every page is in the navigation."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    import subprocess

    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "reference" / "python" / "index.html").read_text()
    assert all(
        f'id="sparsify.{name}"' in page for name in ("make_plan", "attach", "cut", "save_run", "load_run")
    )
