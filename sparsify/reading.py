"""Reading a whole file of a run folder, which may have come from anywhere."""

from pathlib import Path

from sparsify.errors import RunError

LARGEST = 2**29
"""bytes of a file that is read as text"""


def read(path: Path) -> bytes:
    """All of it. Raises RunError when it is missing, no plain file, or far larger than it would ever be."""
    try:
        if not path.exists():
            raise RunError(f"{path} is missing")
        if not path.is_file():
            raise RunError(f"{path} is damaged: it is no plain file")
        if path.stat().st_size > LARGEST:
            raise RunError(f"{path} is damaged: it is larger than {LARGEST >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
