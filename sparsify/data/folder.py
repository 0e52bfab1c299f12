"""Images in folders: <root>/train/<class>/* and <root>/test/<class>/*."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sparsify.data.examples import Examples
from sparsify.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_GRAY = {"1", "L"}


def read_folder(root: Path, size: int | None) -> tuple[Examples, Examples]:
    """Read training and test examples of CxHxW bytes. Classes are numbered in the order of their names.

    Images have one channel if all are gray, else three. size: resize to size x size; otherwise all images
    must have the same size.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise DataError(
            "data source folder needs pillow, which is not installed: pip install 'sparsify-recipes[vision]'"
        ) from None
    classes = _list_classes(root / "train")
    if _list_classes(root / "test") != classes:
        raise DataError(
            f"{root}: train/ and test/ hold different classes ({_describe_difference(root, classes)})"
        )
    parts = [_list_files(root / part, classes) for part in ("train", "test")]
    gray = all(_find_mode(path) in _GRAY for files in parts for path, _ in files)
    return _read_examples(parts[0], gray, size), _read_examples(parts[1], gray, size)


def _list_visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _list_classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(
            f"data source folder: {folder} does not exist; "
            "expected train/<class>/ and test/<class>/ under data.root"
        )
    names = [p.name for p in _list_visible(folder) if p.is_dir()]
    if not names:
        raise DataError(
            f"{folder}: has no class folders; expected <class>/ with the images of one class each"
        )
    return names


def _describe_difference(root: Path, train: Sequence[str]) -> str:
    test = _list_classes(root / "test")
    only = [(part, sorted(set(a) - set(b))) for part, a, b in (("train", train, test), ("test", test, train))]
    return "; ".join(f"only in {part}/: {', '.join(names[:5])}" for part, names in only if names)


def _list_files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    files = []
    for number, name in enumerate(classes):
        members = _list_visible(folder / name)
        if not members:
            raise DataError(f"{folder / name}: the class has no images")
        files += [(path, number) for path in members]
    return files


def _read_examples(files: list[tuple[Path, int]], gray: bool, size: int | None) -> Examples:
    first = _read_pixels(files[0][0], gray, size)
    inputs = torch.empty((len(files), *first.shape), dtype=torch.uint8)
    for i, (path, _) in enumerate(files):
        pixels = _read_pixels(path, gray, size)
        if pixels.shape != first.shape:
            raise DataError(
                f"{path}: is {_describe_size(pixels)} pixels, {files[0][0]} is {_describe_size(first)}; "
                "set data.size to resize all images"
            )
        inputs[i] = pixels
    return Examples(inputs, torch.tensor([number for _, number in files]))


def _describe_size(pixels: Tensor) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]}"


def _find_mode(path: Path) -> str:
    with _open_image(path) as image:
        return image.mode


def _read_pixels(path: Path, gray: bool, size: int | None) -> Tensor:
    from PIL.Image import Resampling

    with _open_image(path) as image:
        image = image.convert("L" if gray else "RGB")
        if size is not None:
            image = image.resize((size, size), Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image))
    return pixels[None] if gray else pixels.permute(2, 0, 1)


@contextmanager
def _open_image(path: Path) -> "Iterator[Image]":
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not an image that pillow can read ({error})") from error
