"""CIFAR-10 in its official binary layout: six files of 10,000 records, a label and 3x32x32 bytes each."""

from pathlib import Path

import numpy as np
import torch

from sparsify.data.examples import Examples
from sparsify.errors import DataError, find_refusal

_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_RECORDS, _RECORD = 10_000, 1 + 3 * 32 * 32
_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def read_cifar(root: Path) -> tuple[Examples, Examples]:
    """50,000 training and 10,000 test examples of 3x32x32 bytes from <root>/cifar-10-batches-bin."""
    folder = root / "cifar-10-batches-bin"
    missing = [name for name in (*_TRAIN, "test_batch.bin") if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"CIFAR-10 is missing: {folder} has no {', '.join(missing)}\n"
            f"  get it:     mkdir -p '{root}' && curl -L {_URL} | tar xz -C '{root}'\n"
            "  or point data.root or $SPARSIFY_DATA at the folder that holds cifar-10-batches-bin"
        )
    return _read_examples([folder / name for name in _TRAIN]), _read_examples([folder / "test_batch.bin"])


def _read_examples(paths: list[Path]) -> Examples:
    records = np.concatenate([_read_records(path) for path in paths])
    images = np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32)
    return Examples(torch.from_numpy(images), torch.from_numpy(records[:, 0].astype(np.int64)))


def _read_records(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        why = find_refusal(error) or f"cannot be read ({error}); download it again"
        raise DataError(f"{path}: {why}") from error
    if len(content) != _RECORDS * _RECORD:
        raise DataError(
            f"{path}: {len(content)} bytes where {_RECORDS * _RECORD} were expected; download it again"
        )
    records = content.reshape(_RECORDS, _RECORD)
    highest = int(records[:, 0].max())
    if highest > 9:
        raise DataError(f"{path}: label {highest} is out of range, expected 0 to 9; this is not CIFAR-10")
    return records
