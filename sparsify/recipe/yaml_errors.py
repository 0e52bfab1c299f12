"""Explain errors of PyYAML so that a user knows what to change."""

import re

import yaml
from yaml.error import Mark, MarkedYAMLError

from sparsify.recipe.odd_characters import find_misread_character

Explained = tuple[int, int, str, str]
"""Line, column (from 1), message, hint."""


def explain_yaml_error(error: yaml.YAMLError, text: str) -> Explained:
    """The place of a YAML error, what is wrong, and what to change."""
    if not isinstance(error, MarkedYAMLError):
        return 1, 1, f"not valid YAML: {error}", ""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 1, 1, f"not valid YAML: {error.problem}", ""
    opened = error.context_mark or mark
    return (
        _explain_tab(mark, text)
        or _explain_character(opened, mark, text)
        or _explain_unclosed(error, opened)
        or _explain_alias(error, opened, text)
        or _explain_quote(error, mark, text)
        or _at_mark(error, mark, text)
    )


def _make_problem(mark: Mark, message: str, hint: str = "") -> Explained:
    return mark.line + 1, mark.column + 1, message, hint


def _find_line(mark: Mark, text: str) -> str:
    return _split_lines(text)[mark.line] if mark.line < len(_split_lines(text)) else ""


def _split_lines(text: str) -> list[str]:
    return re.split("\r\n|[\n\r\x85\u2028\u2029]", text)


def _explain_tab(mark: Mark, text: str) -> Explained | None:
    for number in (mark.line, mark.line - 1):
        line = _split_lines(text)[number] if 0 <= number < len(_split_lines(text)) else ""
        indent = line[: len(line) - len(line.lstrip(" \t"))]
        if "\t" in indent:
            return (
                number + 1,
                indent.index("\t") + 1,
                "a tab in the indentation",
                "YAML indents with spaces only",
            )
    if _find_rest(mark, text).startswith("\t"):
        return _make_problem(mark, "a tab", "YAML separates with spaces only")
    return None


def _explain_character(opened: Mark, mark: Mark, text: str) -> Explained | None:
    """A blank that is no space, or a sign that only looks like one of YAML."""
    lines = _split_lines(text)
    for number in range(min(opened.line, mark.line), min(mark.line + 1, len(lines))):
        found = find_misread_character(lines[number])
        if found is not None:
            return number + 1, found[0] + 1, found[1], found[2]
    return None


def _find_rest(mark: Mark, text: str) -> str:
    return _find_line(mark, text)[mark.column :]


def _explain_unclosed(error: MarkedYAMLError, opened: Mark) -> Explained | None:
    context, problem = error.context or "", error.problem or ""
    if "quoted scalar" in context and "unexpected end of stream" in problem:
        return _make_problem(opened, "a quote that is never closed", "close it at the end of the text")
    if "flow sequence" in context and "stream end" in problem:
        return _make_problem(opened, "'[' is never closed", "add a ']'")
    if "flow mapping" in context and "stream end" in problem:
        return _make_problem(opened, "'{' is never closed", "add a '}'")
    return None


def _explain_alias(error: MarkedYAMLError, opened: Mark, text: str) -> Explained | None:
    if "scanning an alias" not in (error.context or ""):
        return None
    word = re.match(r"[^\s,\]}]*", _find_rest(opened, text))
    glob = word[0] if word else "*"
    return _make_problem(
        opened, f"unquoted '{glob}'", f"YAML reads a leading '*' as an alias; quote it: \"{glob}\""
    )


def _explain_quote(error: MarkedYAMLError, mark: Mark, text: str) -> Explained | None:
    """Find a missing closing quote, which PyYAML reports only at the next quote, far below."""
    symptoms = ("expected <block end>", "mapping values", "expected ':'", "but got")
    if not any(symptom in (error.problem or "") for symptom in symptoms):
        return None
    for number, line in enumerate(_split_lines(text)[: mark.line]):
        column = _left_open(line)
        if column is not None:
            return (
                number + 1,
                column + 1,
                "a quote that is not closed in its line",
                "close it, or leave both quotes out",
            )
    return None


def _left_open(line: str) -> int | None:
    """Where a quote opens that the same line does not close."""
    for quoted in re.finditer(
        r"""(?:^\s*|[:,\[{-]\s*)(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|(["']))|\s#.*""", line
    ):
        if quoted[1]:
            return quoted.start(1)
    return None


def _at_mark(error: MarkedYAMLError, mark: Mark, text: str) -> Explained:
    problem = error.problem or ""
    rest = _find_rest(mark, text)
    if escape := re.search(r"found unknown escape character '(.*)'", problem):
        return _make_problem(
            mark,
            f"'\\{escape[1]}' is not an escape in a double-quoted text",
            "use single quotes, which keep '\\' as it is",
        )
    if "document start" in problem or "document end" in problem:
        return _explain_document_end(mark, text)
    if "cannot start any token" in problem:
        return _make_problem(mark, f"a text cannot start with '{rest[:1]}'", "quote it")
    if "but got '{'" in problem and _find_line(mark, text)[: mark.column].endswith("$"):
        return _make_problem(mark, "an unquoted '${' inside '{' or '['", 'quote the expression: "${name}"')
    if "mapping values are not allowed" in problem:
        return _make_problem(
            mark,
            "a ':' is not expected here",
            "quote a text that holds ': ', and indent keys of one mapping alike",
        )
    if "sequence entries are not allowed" in problem:
        return _make_problem(mark, "a list item '-' is not expected here", "begin it on a line of its own")
    if "could not find expected ':'" in problem:
        return _key_without_colon(error, mark)
    if "expected <block end>" in problem:
        return _make_problem(
            mark,
            "not in line with what it belongs to",
            "indent the keys of one mapping, or the '-' of one list, alike",
        )
    if "but got" in problem or "did not find expected" in problem:
        return _make_problem(
            mark, problem.replace("<", "").replace(">", ""), "check brackets, commas and quotes"
        )
    return _make_problem(mark, f"not valid YAML: {problem}")


def _explain_document_end(mark: Mark, text: str) -> Explained:
    """Text after `...`, or nothing before it; a directive where none may stand."""
    for number, line in enumerate(_split_lines(text)[: mark.line + 1]):
        if line.startswith("..."):
            return number + 1, 1, "'...' ends a YAML document, and the recipe goes on", "remove this line"
        if line.startswith("%"):
            return number + 1, 1, "a '%' line is a directive of YAML", "remove this line, or quote the text"
    return _make_problem(mark, "the YAML document ends here, and the recipe goes on", "check the indentation")


def _key_without_colon(error: MarkedYAMLError, mark: Mark) -> Explained:
    key = error.context_mark or mark
    return _make_problem(key, "a key without a ':' after it", "write 'key: value'")
