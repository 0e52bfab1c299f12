"""HTML as a value. Text becomes markup only through `tag`, which escapes it."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sparsify.formatting.table import escape_character, escape_controls

Attributes = Mapping[str, str | float]
_EMPTY = frozenset({"meta", "line", "rect", "path", "circle", "polyline", "br", "wbr"})


@dataclass(frozen=True)
class Html:
    """Complete, escaped markup."""

    text: str


Content = Html | str
NOTHING = Html("")


def tag(name: str, *content: Content, at: Attributes | None = None) -> Html:
    """`tag("td.n", "3 < 4")` -> <td class="n">3 &lt; 4</td>.

    Content that is not Html is text and is escaped.
    """
    kind, *classes = name.split(".")
    attributes = {**({"class": " ".join(classes)} if classes else {}), **(at or {})}
    opening = "".join(f' {key}="{html.escape(_format_value(value))}"' for key, value in attributes.items())
    if kind in _EMPTY and not content:
        return Html(f"<{kind}{opening}/>")
    return Html(f"<{kind}{opening}>{''.join(map(_escape_content, content))}</{kind}>")


def escape_text(words: str) -> Html:
    """Words, escaped."""
    return Html(html.escape(escape_controls(words)))


def join_markup(parts: Iterable[Html]) -> Html:
    """Parts one after the other."""
    return Html("".join(part.text for part in parts))


def quote_lines(text: str) -> Html:
    """Lines as they are, in <pre>, with control characters escaped."""
    return tag("pre", Html("\n".join(html.escape(_escape_line(line)) for line in text.splitlines())))


def _escape_line(text: str) -> str:
    return "\t".join("".join(map(escape_character, part)) for part in text.split("\t"))


def _escape_content(content: Content) -> str:
    return content.text if isinstance(content, Html) else escape_text(content).text


def _format_value(value: str | float) -> str:
    """An attribute; a coordinate is rounded to a tenth, which is finer than the eye sees."""
    return escape_controls(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
