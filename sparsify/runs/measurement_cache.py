"""The finished parts of a long measurement, on disk: whoever goes on with it makes only those that are missing."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sparsify.errors import RunError, first_line
from sparsify.files import read
from sparsify.files import write as write_file
from sparsify.runs import run_folder

Figures = tuple[float | None, ...]
RECORD = "parts.json"


@dataclass(frozen=True)
class _Record:
    """What lies in the folder."""

    of: str
    files: dict[str, str]
    """name -> SHA-256"""
    figures: dict[str, Figures]


_RECORD = TypeAdapter(_Record)


@dataclass(frozen=True)
class Parts:
    """Parts in a folder of their own. A kill at any moment costs the part that was being made, and no other."""

    folder: Path
    of: str
    """what they were measured of and on: parts of anything else do not count"""

    def content(self, name: str, make: Callable[[], bytes]) -> bytes:
        """A file, made where it is missing. Raises RunError when it was damaged or cannot be written."""
        path, known = self.folder / name, self._record()
        if name in known.files and path.exists():
            if run_folder.sha256(path) != known.files[name]:
                raise RunError(f"{path} is damaged: its SHA-256 is not the one in {RECORD}; {_MEND}")
            return path.read_bytes()
        made = make()
        self._write(name, made)
        self._keep(replace(known, files=known.files | {name: sha256(made)}))
        return made

    def figures(self, what: str, count: int, make: Callable[[], Figures]) -> Figures:
        """So many numbers, measured where they are missing. Raises RunError when what is known was damaged."""
        known = self._record()
        if what not in known.figures:
            made = make()
            self._keep(replace(known, figures=known.figures | {what: made}))
            return made
        if len(known.figures[what]) != count:
            raise RunError(
                f"{self.folder / RECORD} is damaged ({what}: {len(known.figures[what])} numbers in place of {count}); {_MEND}"
            )
        return known.figures[what]

    def _record(self) -> _Record:
        path, nothing = self.folder / RECORD, _Record(self.of, {}, {})
        if not path.exists():
            return nothing
        try:
            found = _RECORD.validate_json(read(path))
        except ValidationError as error:
            raise RunError(f"{path} is damaged ({first_line(error)}); {_MEND}") from None
        return found if found.of == self.of else nothing

    def _keep(self, known: _Record) -> None:
        self._write(RECORD, _RECORD.dump_json(known, indent=1) + b"\n")

    def _write(self, name: str, data: bytes) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make {self.folder}: {error.strerror or error}") from error
        write_file(self.folder / name, data)


_MEND = "remove it, and the run measures anew"


def sha256(content: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
