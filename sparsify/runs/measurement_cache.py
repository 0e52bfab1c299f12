"""The finished parts of a long measurement, on disk: a resumed run makes only the missing ones."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sparsify.errors import RunError, first_line
from sparsify.files import read_bytes
from sparsify.files import write_bytes as write_file
from sparsify.runs import run_folder

Figures = tuple[float | None, ...]
RECORD = "parts.json"
"""Name of the index file."""
_ADVICE = "delete it, and it is measured again"


@dataclass(frozen=True)
class _Record:
    """Contents of the index file."""

    of: str
    files: dict[str, str]
    """name -> SHA-256"""
    figures: dict[str, Figures]


_RECORD = TypeAdapter(_Record)


@dataclass(frozen=True)
class MeasurementCache:
    """Files and numbers in a folder.

    A process killed at any moment loses only the part that it was making.
    """

    folder: Path
    of: str
    """Digest of everything that the measurements depend on; parts under another digest are ignored."""

    def get_file(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The content of a file, made if it is missing.

        Raises RunError when it is damaged or cannot be written.
        """
        path, known = self.folder / name, self._read_record()
        if name in known.files and path.exists():
            if run_folder.hash_file(path) != known.files[name]:
                raise RunError(f"{path} is damaged: its SHA-256 is not the one in {RECORD}; {_ADVICE}")
            return path.read_bytes()
        made = make()
        self._write(name, made)
        self._write_record(replace(known, files=known.files | {name: hash_text(made)}))
        return made

    def get_figures(self, what: str, count: int, make: Callable[[], Figures]) -> Figures:
        """`count` numbers, measured if they are missing. Raises RunError when the index file is damaged."""
        known = self._read_record()
        if what not in known.figures:
            made = make()
            self._write_record(replace(known, figures=known.figures | {what: made}))
            return made
        found = known.figures[what]
        if len(found) != count:
            reason = f"{what}: {len(found)} numbers instead of {count}"
            raise RunError(f"{self.folder / RECORD} is damaged ({reason}); {_ADVICE}")
        return found

    def _read_record(self) -> _Record:
        path, empty = self.folder / RECORD, _Record(self.of, {}, {})
        if not path.exists():
            return empty
        try:
            found = _RECORD.validate_json(read_bytes(path))
        except ValidationError as error:
            raise RunError(f"{path} is damaged ({first_line(error)}); {_ADVICE}") from None
        return found if found.of == self.of else empty

    def _write_record(self, known: _Record) -> None:
        self._write(RECORD, _RECORD.dump_json(known, indent=1) + b"\n")

    def _write(self, name: str, data: bytes) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot make {self.folder}: {error.strerror or error}") from error
        write_file(self.folder / name, data)


def hash_text(content: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
