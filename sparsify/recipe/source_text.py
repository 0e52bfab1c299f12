"""Read the text of a recipe file: of bounded size, in UTF-8."""

import stat
from difflib import get_close_matches
from pathlib import Path as File

from sparsify.errors import Problem, RecipeError
from sparsify.recipe.nodes import Place

LARGEST = 1024 * 1024
"""Bytes of a recipe; PyYAML reads about 200 kB a second."""
_OPENED = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""Pipes that a shell has opened, with somebody who writes to them: `sparsify validate <(make-recipe)`."""


def read_file(file: str) -> str:
    """Read the text of a recipe, never more than the bound. Raises RecipeError."""
    try:
        status = File(file).stat()
        if status.st_size > LARGEST and stat.S_ISREG(status.st_mode):
            raise _make_error(file, f"too large for a recipe: more than {LARGEST // 1024} KiB")
        if _is_special(status.st_mode) and not file.startswith(_OPENED):
            raise _make_error(file, "a pipe or a device, not a recipe file", "write the recipe to a file")
        with File(file).open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        is_named_wrongly = isinstance(error, FileNotFoundError | IsADirectoryError)
        hint = _find_neighbour(file) if is_named_wrongly else ""
        raise _make_error(file, _describe_error(error), hint) from None
    except ValueError as error:
        raise _make_error(file, f"not a file name: {error}") from None
    if len(data) > LARGEST:
        raise _make_error(file, f"too large for a recipe: more than {LARGEST // 1024} KiB")
    return _decode(file, data)


def _is_special(mode: int) -> bool:
    """Whether reading may wait for ever, or never end."""
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _make_error(file: str, message: str, hint: str = "") -> RecipeError:
    return RecipeError([Problem(file, None, None, "", message, hint)])


def _describe_error(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a recipe file"
    return f"cannot be read: {error.strerror or error}"


def _find_neighbour(file: str) -> str:
    try:
        names = [entry.name for entry in File(file).parent.iterdir()]
    except (OSError, ValueError):
        return ""
    match get_close_matches(File(file).name, [n for n in names if n.endswith((".yaml", ".yml"))], 1):
        case [name]:
            return f"did you mean '{File(file).parent / name}'?"
        case _:
            return ""


def _decode(file: str, data: bytes) -> str:
    if b"\0" in data:
        raise _make_error(file, "a binary file, not a recipe", "recipes are YAML text in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        place = _place_after(file, before)
        raise RecipeError(
            [
                place.problem(
                    "", f"the byte 0x{data[error.start]:02x} is not UTF-8", "save the recipe as UTF-8 text"
                )
            ]
        ) from None


def _place_after(file: str, text: str) -> Place:
    return Place(file, text.count("\n") + 1, len(text) - text.rfind("\n"))
