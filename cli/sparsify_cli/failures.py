"""How a command ends that failed: one message on stderr, with --json an object on stdout too."""

import json
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import CodeType
from typing import Any, TextIO

from sparsify.errors import RecipeError, SparsifyError, SparsifyWarning, describe_error, first_line
from sparsify.formatting.table import escape_character
from sparsify_cli.output import has_results, write_message, write_result

LONGEST = 2000
"""Characters in a line of an error message."""
_OWN = tuple(str(Path(__import__(name).__file__ or "").parent) for name in ("sparsify", "sparsify_schemas"))
_OWN += (str(Path(__file__).parent),)
_LIBRARIES = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


_ALLOCATION = re.compile("can't allocate memory|out of memory", re.IGNORECASE)
"""How torch says that memory is used up."""


class UserCodeError(SparsifyError):
    """Code of the recipe, the data or the model failed where nothing else explains it."""


def print_error(error: SparsifyError, arguments: Sequence[str]) -> None:
    """Print the error's text; with --json an object on stdout, unless the command wrote its own."""
    lines = [_escape(line) for line in str(error).splitlines()]
    problems = error.problems if isinstance(error, RecipeError) else ()
    print_object(type(error).__name__, "\n".join(lines), arguments, [asdict(p) for p in problems])
    write_message("\n".join(lines))


def print_object(kind: str, message: str, arguments: Sequence[str], problems: Sequence[Any] = ()) -> None:
    """The error as JSON on stdout, where --json was asked for and nothing was printed there."""
    if "--json" not in arguments or has_results():
        return
    text = json.dumps({"error": kind, "message": message, "problems": problems}, indent=2, ensure_ascii=False)
    try:
        write_result(text)
    except (OSError, SparsifyError):
        return  # the message on stderr says the same


def _escape(line: str) -> str:
    """Escape control characters, which a name in a damaged file may hold, and shorten long lines."""
    return "".join(map(escape_character, shorten(line)))


def shorten(line: str) -> str:
    """A line of at most 2000 characters; its end, which says what is wrong, stays."""
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 605]} ... {line[-600:]}"


def explain_os_error(error: BaseException) -> SparsifyError | None:
    """What the system refused and nothing else explained: a name that is too long, a loop of links."""
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):
        return SparsifyError(f"{str(error).removeprefix('Symlink loop from ')}: a loop of links")
    is_torchs = isinstance(error, RuntimeError) and _ALLOCATION.search(str(error)) is not None
    if is_torchs or isinstance(error, MemoryError):
        return SparsifyError(
            f"there is not enough memory ({first_line(error)}); use a smaller batch or model"
        )
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = "" if error.filename is None else f"{error.filename}: "
    return SparsifyError(f"{name}{error.strerror}")


def print_unexpected(error: BaseException, arguments: Sequence[str]) -> None:
    """An error that nobody expected: a failure of the user's code where that raised it, else a bug."""
    place = find_user_code(error)
    refused = explain_os_error(error) if place is None else None
    if refused is not None:
        print_error(refused, arguments)
        return
    if place is not None:
        message = f"{place} failed: {describe_error(error)}"
        hint = "run it again with SPARSIFY_DEBUG=1 to see what called it"
    else:
        message = f"sparsify: {describe_error(error)}; this is a bug"
        hint = "run it again with SPARSIFY_DEBUG=1 to see where, and please report that with the recipe"
    message = _escape(message)
    print_object("UserCodeError" if place is not None else "Bug", message, arguments)
    write_message(message)
    if os.environ.get("SPARSIFY_DEBUG"):
        write_message("".join(traceback.format_exception(error)), nl=False)
    else:
        write_message(hint)


def find_user_code(error: BaseException) -> str | None:
    """`mynets.py:12: forward`: the code of the user that raised an error; None where ours did.

    Libraries are passed over: they raise for whoever called them.
    """
    for code, line in reversed(list(_list_frames(error))):
        file = code.co_filename
        if file.startswith(_OWN):
            return None
        if not file.startswith(("<", *_LIBRARIES)):
            return f"{file}:{line}: {code.co_name}"
    return None


def _list_frames(error: BaseException) -> Iterator[tuple[CodeType, int]]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame.f_code, step.tb_lineno
        step = step.tb_next


@contextmanager
def show_warnings() -> Iterator[None]:
    """Print our own warnings as one line each."""
    before = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, SparsifyWarning):
            write_message(_escape(f"warning: {message}"))
        elif sys.stderr is not None:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
