"""What lies beside the weights of a checkpoint: options, paths, numbers of numpy. It is read as nothing.

Each class or function that a file names and that holds no weights is replaced by an inert stand-in, so that
torch's restricted unpickler gets past it. Neither the class nor its module is looked up or imported.
"""

from _compat_pickle import IMPORT_MAPPING
from collections.abc import Sequence
from typing import Any, Final

_HARMLESS: Final = (
    "argparse",
    "pathlib",
    "datetime",
    "decimal",
    "fractions",
    "enum",
    "uuid",
    "types",
    "numpy",
)
"""modules of the standard library whose values stand in checkpoints, and none of which runs commands"""


class _Skipped:
    """Takes whatever a pickle does to it, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Skipped":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def stand_in(names: Sequence[str], never: frozenset[str]) -> list[tuple[Any, str]] | None:
    """A stand-in for each name, for torch's `safe_globals`; None where one is of a package that may run
    commands: such a file is refused, though nothing of it would be called."""
    for name in names:
        top = name.partition(".")[0]
        top = IMPORT_MAPPING.get(top, top)  # pickles name the modules of Python 2: commands for subprocess
        if top in never and top not in _HARMLESS:
            return None
    return [(type(name.rpartition(".")[2], (_Skipped,), {}), name) for name in names]
