"""The errors of sparsify, and Problem: one fault with its place and the next useful action."""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError


@dataclass(frozen=True, order=True)
class Problem:
    """`file:line:column: path: message; hint`. Unknown parts are left out."""

    file: str
    line: int | None
    column: int | None
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        place = ":".join(str(p) for p in (self.file, self.line, self.column) if p is not None)
        parts = [p for p in (place, self.path, self.message) if p]
        return ": ".join(parts) + (f"; {self.hint}" if self.hint else "")


def first_line(error: BaseException) -> str:
    """The message of an error on one line of at most 300 characters.

    The first of several faults, with its place.
    """
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        text = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    else:
        text = (_read_text(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= 300 else f"{text[:300]}..."


def find_newer(error: Exception) -> str:
    """What shows that a newer version wrote a file that does not validate; '' where it is just wrong.

    A higher number of the format, or keys that are all right but for those that this version does not know.
    """
    if not isinstance(error, ValidationError):
        return ""
    faults = error.errors(include_url=False, include_context=False)
    for fault in faults:
        version = fault["input"]
        if fault["loc"] == ("version",) and isinstance(version, int) and version > 1:
            return f"version: {version}"
    if all(fault["type"] == "extra_forbidden" for fault in faults):
        return f"it has '{'.'.join(map(str, faults[0]['loc']))}'"
    return ""


def describe_error(error: BaseException) -> str:
    """An error of somebody else's code on one line of at most 1000 characters: `ValueError: what it says`.

    An exit is said as the call that asked for it. An error may have no text, or fail to give it.
    """
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        return f"it called sys.exit({code})"[:1000]
    text = " ".join(_read_text(error).split())
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 1000 else f"{text[:1000]}..."


def find_refusal(error: BaseException) -> str:
    """Why the system refuses to read or write a file, such as 'Permission denied'.

    '' where what is in the file is wrong.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    return error.strerror or ""


def _read_text(error: BaseException) -> str:
    try:
        return str(error).strip()
    except KeyboardInterrupt:
        raise
    except BaseException:  # a `__str__` of somebody else's that fails itself
        return ""


class SparsifyError(Exception):
    """An error that the user can correct; the message says how.

    The base of all errors that sparsify raises: RecipeError, ModelError, DataError, TrainingError,
    TargetError, RunError and VerificationError, in `sparsify.errors`.

    Examples:
        >>> try:
        ...     sparsify.load_run("runs/nowhere")
        ... except sparsify.SparsifyError as error:
        ...     print(type(error).__name__)
        RunError
    """


class RecipeError(SparsifyError):
    """The recipe is wrong, or does not fit the model. Carries every problem found."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        by_place = sorted(
            set(problems), key=lambda p: (p.file, p.line or 0, p.column or 0, p.path, p.message)
        )
        self.problems = tuple(by_place)
        super().__init__("\n".join(str(p) for p in self.problems))


class ModelError(SparsifyError):
    """The model or its file cannot be used."""


class DataError(SparsifyError):
    """The data cannot be read."""


class TrainingError(SparsifyError):
    """Training cannot continue: the loss is not finite, or the model cannot take the batches."""


class TargetError(SparsifyError):
    """A target cannot be timed: its runtime, device or table is missing or belongs to another machine."""


class RunError(SparsifyError):
    """A run folder is incomplete, damaged, or cannot be written."""


class VerificationError(SparsifyError):
    """A cut model differs from the masked one, or a file from its model; nothing was saved."""


class SparsifyWarning(UserWarning):
    """Something that the user should know of and that stops nothing."""
