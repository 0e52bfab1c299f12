"""MNIST and Fashion-MNIST: four IDX files, raw or gzipped, where torchvision keeps them."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsify.data.examples import Examples
from sparsify.errors import DataError, find_refusal
from sparsify.forward.free_memory import check_memory

_MAGIC = {3: 0x0803, 1: 0x0801}
_EXPANDED = 1100
"""bytes that gzip makes of one, at most"""
_KIND = {3: "images", 1: "labels"}


def read_idx(root: Path, name: str) -> tuple[Examples, Examples]:
    """Training and test examples of 1x28x28 bytes from <root>/<name>/raw; `name` is torchvision's class."""
    folder = root / name / "raw"
    wanted = [
        f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    missing = [w for w in wanted if not any(p.is_file() for p in _list_places(folder, w))]
    if missing:
        raise DataError(_describe_missing(root, name, folder, missing))
    return _read_examples(folder, "train"), _read_examples(folder, "t10k")


def _list_places(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.gz"


def _describe_missing(root: Path, name: str, folder: Path, missing: list[str]) -> str:
    return (
        f"{name} is not there: {folder} has no {', '.join(missing)} (raw or .gz)\n"
        f"  get it:     python -c "
        f"\"from torchvision.datasets import {name}; {name}('{root}', download=True)\"\n"
        f"  or point data.root or $SPARSIFY_DATA at the folder that holds {name}/raw"
    )


def _read_examples(folder: Path, part: str) -> Examples:
    images = _read_file(folder, f"{part}-images-idx3-ubyte", 3)
    labels = _read_file(folder, f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {part} has {len(images)} images and {len(labels)} labels; fetch both files again"
        )
    if not len(labels):
        raise DataError(f"{folder}: {part} has no examples")
    if int(labels.max()) > 9:
        raise DataError(
            f"{folder / part}-labels-idx1-ubyte: label {int(labels.max())} is out of range, expected 0 to 9"
        )
    return Examples(images[:, None], labels.long())


def _read_file(folder: Path, name: str, dims: int) -> Tensor:
    """Read an IDX file: magic number, a big-endian length per dimension, bytes.

    Source: http://yann.lecun.com/exdb/mnist
    """
    path = next(p for p in _list_places(folder, name) if p.is_file())
    content = _read_content(path, dims)
    header = 4 * (1 + dims)
    if len(content) < header:
        raise DataError(
            f"{path}: {len(content)} bytes are too short for an IDX file of {_KIND[dims]}; download it again"
        )
    magic, *shape = struct.unpack(f">{1 + dims}I", content[:header])
    if magic != _MAGIC[dims]:
        raise DataError(
            f"{path}: not an IDX file of {_KIND[dims]} "
            f"(starts with {magic:#010x}, expected {_MAGIC[dims]:#010x})"
        )
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: {_count_bytes(content, expected)} where its header promises {expected}; "
            "download it again"
        )
    # a copy, because torch wants memory that it may write to
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())


def _count_bytes(content: bytes, expected: int) -> str:
    return "more bytes" if len(content) > expected else f"{len(content)} bytes"


def _read_content(path: Path, dims: int) -> bytes:
    """The bytes of a file; of a .gz, which may unpack to any number of zeros, one more than its header says
    at most."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as stream:
            header = stream.read(4 * (1 + dims))
            lengths = struct.unpack(f">{len(header) // 4}I", header[: len(header) // 4 * 4])[1:]
            size = min(math.prod(lengths), _EXPANDED * path.stat().st_size)
            check_memory(size, f"{path}, unpacked,", "use a part of it", DataError)
            return header + stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        why = find_refusal(error) or f"cannot be read ({error}); download it again"
        raise DataError(f"{path}: {why}") from error
