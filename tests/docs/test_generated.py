"""Pages and pictures that a script writes are current: `make reference` writes them anew."""

import re
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs" / "scripts"))
reference = import_module("reference_pages")
picture = import_module("report_picture")
repair_picture = import_module("repair_picture")


def test_the_generated_reference_is_current() -> None:
    folder = ROOT / "docs" / "reference"
    stale = [name for name, text in reference.pages().items() if (folder / name).read_text() != text]
    assert stale == [], "run `make reference`"


def test_the_reference_has_every_word_of_the_language() -> None:
    from sparsify_cli.topics import all_topics

    whole = "\n".join(reference.pages().values())
    assert [
        name for name, topic in all_topics().items() if topic.key and f"`{topic.key.name}`" not in whole
    ] == []
    headings = set(re.findall(r"^#+ (?:sparsify )?(\S+)$", whole, re.MULTILINE))
    assert [name for name in _kinds() if name.rpartition(".")[2] not in headings] == []


def _kinds() -> list[str]:
    """Members of families, and commands."""
    from sparsify_cli.topics import FAMILIES, all_topics

    families = ("group", "command", *FAMILIES)
    return [name for name in all_topics() if name.partition(".")[0] in families and name.count(".") == 1]


def test_the_picture_of_a_report_is_current() -> None:
    """The words of the picture, as the versions of rich place them differently."""
    assert _words((picture.PICTURE).read_text()) == _words(picture.drawn(picture.REPORT)), (
        "run `make reference`"
    )


def test_the_picture_of_a_repair_has_the_figures_of_its_page() -> None:
    page = repair_picture.PAGE.read_text(encoding="utf-8")
    assert repair_picture.PICTURE.read_text(encoding="utf-8") == repair_picture.draw(page), (
        "run `make reference`"
    )
    other = page.replace("| 91.0 ± 0.2 |", "| 90.0 ± 0.2 |")
    assert "50 % of the MACs: 90 %" in repair_picture.draw(other)


def test_the_picture_fetches_nothing() -> None:
    text = picture.PICTURE.read_text()
    assert "url(http" not in text.replace('url("http', "url(http") and "<script" not in text


def _words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)
