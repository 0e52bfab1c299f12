"""Read an image or a mask from a file, with the values that it holds.

8 bits                   bytes; a batch has x / 255
16 bits                  x / 65535, as float32
real, or 32 bits         x, as float32
.npy, [H, W] or [C, H, W]   the same, by the type of the array
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparsify.data.columns import divide_by_65535
from sparsify.errors import DataError, find_refusal

if TYPE_CHECKING:
    from PIL.Image import Image

_CHANNELS = {"1": 1, "L": 1, "I": 1, "F": 1, "LA": 2, "La": 2, "RGBA": 4, "RGBa": 4, "PA": 4}
"""of pillow's modes; 1 in those of 16 bits, 3 in all others"""
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Kind:
    """What a file holds, as its header says."""

    channels: int
    bits: int
    """8, 16, or 0 for values that are taken as they are"""
    is_array: bool = False


def read_kind(path: Path) -> Kind:
    """Channels and bits of a file. Raises DataError where pillow would lose some of them."""
    if path.suffix == ".npy":
        array = _read_array(path, mapped=True)
        return Kind(1 if array.ndim == 2 else array.shape[0], _count_bits(array.dtype), is_array=True)
    with _open_image(path) as image:
        return _find_kind(image, path)


def _find_kind(image: "Image", path: Path) -> Kind:
    _refuse_loss(image, path)
    is_deep = image.mode == "F" or (image.mode == "I" and not _has_16_bits(image))
    is_16 = image.mode.startswith("I;16") or (image.mode == "I" and not is_deep)
    return Kind(_count_channels(image), 0 if is_deep else 16 if is_16 else 8)


def _count_channels(image: "Image") -> int:
    if image.mode.startswith("I;16"):
        return 1
    if image.mode == "P":
        return 4 if "transparency" in image.info else 3
    return _CHANNELS.get(image.mode, 3)


def _has_16_bits(image: "Image") -> bool:
    """Whether the file has 16 bits a channel, by what pillow reads it with: 'RGB;16B'."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _refuse_loss(image: "Image", path: Path) -> None:
    if not image.mode.startswith("I") and _has_16_bits(image):
        raise DataError(
            f"{path}: has 16 bits in each of several channels, of which pillow keeps 8; save it as a .npy of "
            "uint16 (channels, height, width)"
        )
    pages = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and pages > 1:
        raise DataError(
            f"{path}: holds {pages} pages, of which pillow reads one; save it as a .npy of (channels, "
            "height, "
            "width)"
        )


def _count_bits(dtype: "np.dtype[Any]") -> int:
    return 8 * dtype.itemsize if dtype.kind == "u" and dtype.itemsize <= 2 else 0


def read_image(path: Path, channels: int, size: int | None) -> Tensor:
    """[channels, H, W] uint8, or float32 where the file has more than 8 bits. Raises DataError.

    size: resize to size x size by bilinear interpolation.
    """
    if path.suffix == ".npy":
        return _resize_array(_read_channels(path), size)
    with _open_image(path) as image:
        kind = _find_kind(image, path)
        if kind.bits == 8:
            pixels = _resize_image(image.convert(_MODES[channels]), size)
            return _move_channels_first(np.array(pixels))
        values = np.array(image).astype(np.float32)
        gray = _resize_array(_scale_values(values[None], kind.bits), size)
        return gray if channels == 1 else _repeat_channels(gray, channels, path)


def _repeat_channels(gray: Tensor, channels: int, path: Path) -> Tensor:
    if channels != 3:
        raise DataError(f"{path}: is gray with more than 8 bits, and has no {channels} channels")
    return gray.expand(3, -1, -1).contiguous()


def _resize_image(image: "Image", size: int | None) -> "Image":
    from PIL.Image import Resampling

    return image if size is None else image.resize((size, size), Resampling.BILINEAR)


def _move_channels_first(pixels: "np.ndarray[Any, Any]") -> Tensor:
    """[H, W] or [H, W, C] -> [C, H, W]"""
    tensor = torch.from_numpy(pixels)
    return tensor[None] if tensor.dim() == 2 else tensor.permute(2, 0, 1)


def _scale_values(values: "np.ndarray[Any, Any]", bits: int) -> "np.ndarray[Any, Any]":
    if bits == 16:
        return divide_by_65535(torch.from_numpy(values)).numpy()
    return values if bits == 8 else values.astype(np.float32)


def _read_channels(path: Path) -> "np.ndarray[Any, Any]":
    array = _read_array(path)
    if array.ndim == 3 and array.shape[2] <= 4 < array.shape[0]:
        shape = "x".join(map(str, array.shape))
        raise DataError(f"{path}: has its channels last ({shape}); transpose it to (channels, height, width)")
    return _scale_values(array if array.ndim == 3 else array[None], _count_bits(array.dtype))


def _read_array(path: Path, mapped: bool = False) -> "np.ndarray[Any, Any]":
    try:
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = find_refusal(error) or f"cannot be read as an .npy of numbers ({error})"
        raise DataError(f"{path}: {why}") from error
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf":
        shape = "x".join(map(str, array.shape)) or "a single number"
        raise DataError(
            f"{path}: holds {shape} {array.dtype}; expected (height, width) or (channels, height, width)"
        )
    return array if mapped else array.astype(array.dtype.newbyteorder("="), copy=False)


def _resize_array(array: "np.ndarray[Any, Any]", size: int | None) -> Tensor:
    """[C, H, W], each channel by itself."""
    if size is None:
        return torch.from_numpy(array)
    from PIL import Image

    channels = [np.array(_resize_image(Image.fromarray(channel), size)) for channel in array]
    return torch.from_numpy(np.stack(channels))


def read_mask(path: Path, size: int | None) -> Tensor:
    """[H, W] int64, the number of a class in each pixel: gray values, or places in a palette.

    size: resize to size x size by the nearest pixel. Raises DataError.
    """
    if path.suffix == ".npy":
        values = _read_array(path)
        is_mask = values.ndim == 2 and values.dtype.kind in "biu"
        found = f"{values.ndim} dimensions of {values.dtype}"
        mask = torch.from_numpy(values.astype(np.int64)) if is_mask else None
    else:
        with _open_image(path) as image:
            is_mask = image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16")
            found = f"the colours of mode {image.mode}"
            mask = torch.from_numpy(np.array(image).astype(np.int64)) if is_mask else None
    if mask is None:
        raise DataError(f"{path}: a mask holds the number of a class in each pixel; it has {found}")
    return mask if size is None else _resize_mask(mask, size)


def _resize_mask(mask: Tensor, size: int) -> Tensor:
    height, width = mask.shape
    down = (torch.arange(size) + 0.5) * height / size
    right = (torch.arange(size) + 0.5) * width / size
    return mask[down.long()][:, right.long()]


@contextmanager
def _open_image(path: Path) -> "Iterator[Image]":
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = find_refusal(error) or f"not an image that pillow can read ({error})"
        raise DataError(f"{path}: {why}") from error
