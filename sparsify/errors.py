"""The error tree, and Problem: one complaint with its place and the next useful action."""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError


@dataclass(frozen=True, order=True)
class Problem:
    """`file:line:column: path: message; hint`. What is not known is left out."""

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


def first_line(error: Exception) -> str:
    """What an error says, on one line of at most 300 characters; of a document's many faults the first, with its place."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        text = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    else:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 300 else f"{text[:300]}..."


class SparsifyError(Exception):
    """Something that a user can mend; the message says how.

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
        self.problems = tuple(
            sorted(set(problems), key=lambda p: (p.file, p.line or 0, p.column or 0, p.path, p.message))
        )
        super().__init__("\n".join(str(p) for p in self.problems))


class ModelError(SparsifyError):
    """The model or its file cannot be used."""


class DataError(SparsifyError):
    """The data cannot be read."""


class TrainingError(SparsifyError):
    """Training cannot go on: the loss is no longer finite, or the model cannot take the batches."""


class TargetError(SparsifyError):
    """A target cannot be timed here: its runtime, its device or its table is missing or of another machine."""


class RunError(SparsifyError):
    """A run folder is missing something, damaged, or cannot be written."""


class VerificationError(SparsifyError):
    """A cut model does not compute what the masked one does, or a file not what its model does; nothing was saved."""
