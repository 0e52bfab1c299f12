"""Images in folders: <root>/train/<class>/* and <root>/test/<class>/*, or, for a segmentation, images/* and
masks/* in train/ and test/."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparsify.data.columns import Varied
from sparsify.data.examples import Examples
from sparsify.data.images import Kind, read_image, read_kind, read_mask
from sparsify.data.targets import convert_targets
from sparsify.errors import DataError
from sparsify.forward.free_memory import check_memory
from sparsify_schemas.task import Task

_MASK_BYTES = 8
"""of a pixel: the number of its class in int64"""


def read_folder(
    root: Path, size: int | None, channels: int | None = None, task: Task | None = None
) -> tuple[Examples, Examples]:
    """Read training and test examples. Classes are numbered in the order of their names.

    Images have as many channels as the richest of them: 1 gray, 3 colours, 4 with opacity; or as `channels`
    says. size: resize to size x size; otherwise all images must have the same size, except for tasks that
    ignore what is padded.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise DataError(
            "data source folder needs pillow, which is not installed: pip install 'sparsify-recipes[vision]'"
        ) from None
    task = task or Task()
    if task.kind == "segmentation":
        return _read_masked(root, size, channels, task)
    classes = _list_classes(root / "train")
    if _list_classes(root / "test") != classes:
        raise DataError(
            f"{root}: train/ and test/ hold different classes ({_describe_difference(root, classes)})"
        )
    parts = [_list_files(root / part, classes) for part in ("train", "test")]
    form = _find_form([path for files in parts for path, _ in files], size, channels)
    may_vary = task.kind == "own" or task.collate is not None

    def examples(files: list[tuple[Path, int]]) -> Examples:
        images = _read_images([path for path, _ in files], form, may_vary)
        return Examples(images, torch.tensor([number for _, number in files]))

    return examples(parts[0]), examples(parts[1])


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


# --- segmentation


def _read_masked(root: Path, size: int | None, channels: int | None, task: Task) -> tuple[Examples, Examples]:
    parts = [_list_masked_files(root / part) for part in ("train", "test")]
    form = _find_form([image for files in parts for image, _ in files], size, channels)

    def examples(files: list[tuple[Path, Path]]) -> Examples:
        images = _read_images([image for image, _ in files], form, may_vary=True)
        if size is not None:
            what = f"{len(files)} masks of {size}x{size}"
            check_memory(len(files) * size**2 * _MASK_BYTES, what, "set a smaller data.size", DataError)
        masks = [read_mask(mask, size) for _, mask in files]
        for (path, mask_path), pixels, mask in zip(files, _list_images(images), masks, strict=True):
            if pixels.shape[1:] != mask.shape:
                raise DataError(
                    f"{mask_path}: the mask is {_describe_size(mask)} pixels, and {path} is "
                    f"{_describe_size(pixels)}"
                )
        targets = torch.stack(masks) if isinstance(images, Tensor) else Varied(tuple(masks))
        return Examples(images, convert_targets(targets, images, task, str(root)))

    return examples(parts[0]), examples(parts[1])


def _list_images(column: Tensor | Varied) -> Sequence[Tensor]:
    """The images of a column, one by one."""
    return column.items if isinstance(column, Varied) else list(column)


def _list_masked_files(folder: Path) -> list[tuple[Path, Path]]:
    """Each image with its mask, which has the same name up to its last dot."""
    images, masks = folder / "images", folder / "masks"
    if not images.is_dir() or not masks.is_dir():
        raise DataError(
            f"data source folder: {folder} has no images/ and masks/; a segmentation needs train/images/, "
            "train/masks/, test/images/ and test/masks/ under data.root"
        )
    by_name: dict[str, Path] = {}
    for path in _list_visible(masks):
        other = by_name.setdefault(path.stem, path)
        if other != path:
            raise DataError(f"{path}: is a second mask beside {other.name}; leave one of them out")
    files = []
    for path in _list_visible(images):
        if path.stem not in by_name:
            raise DataError(f"{path}: has no mask; expected {masks / path.stem} with any ending")
        files.append((path, by_name.pop(path.stem)))
    if by_name:
        raise DataError(f"{next(iter(by_name.values()))}: is a mask without an image in {images}")
    if not files:
        raise DataError(f"{images}: has no images")
    return files


# --- images


@dataclass(frozen=True)
class _Form:
    """What all images of a data set are converted to."""

    channels: int
    is_real: bool
    """float32 in place of bytes"""
    size: int | None


def _find_form(paths: Sequence[Path], size: int | None, wanted: int | None) -> _Form:
    """Raises DataError where the values of the images have no common scale."""
    kinds = [(path, read_kind(path)) for path in paths]
    scaled = next(((path, kind) for path, kind in kinds if kind.bits), None)
    unscaled = next((path for path, kind in kinds if not kind.bits), None)
    if scaled is not None and unscaled is not None:
        raise DataError(
            f"{unscaled}: holds values without a known range, and {scaled[0]} has {scaled[1].bits} bits; "
            "save "
            "all images in one form"
        )
    is_real = any(kind.bits != 8 for _, kind in kinds)
    if any(kind.is_array for _, kind in kinds):
        return _Form(_count_channels(kinds, wanted), is_real, size)
    counts = {kind.channels for _, kind in kinds}
    richest = 4 if {2, 3} <= counts else max(counts)
    return _Form(wanted or richest, is_real, size)


def _count_channels(kinds: Sequence[tuple[Path, Kind]], wanted: int | None) -> int:
    """Channels of arrays are never converted, so all images must have as many."""
    first, kind = kinds[0]
    expected = wanted or kind.channels
    other = next(((path, k) for path, k in kinds if k.channels != expected), None)
    if other is None:
        return expected
    beside = "data.channels says" if wanted is not None else f"{first} has"
    raise DataError(f"{other[0]}: has {other[1].channels} channels, and {beside} {expected}")


def _read_images(paths: Sequence[Path], form: _Form, may_vary: bool) -> Tensor | Varied:
    """[N, C, H, W], bytes where all are; a list where sizes differ and may."""
    if form.size is not None:
        size = len(paths) * form.channels * form.size**2 * (4 if form.is_real else 1)
        what = f"{len(paths)} images of {form.channels}x{form.size}x{form.size}"
        check_memory(size, what, "set a smaller data.size", DataError)
    images = [read_image(path, form.channels, form.size) for path in paths]
    if form.is_real:
        images = [image.float() / 255 if image.dtype == torch.uint8 else image for image in images]
    for path, image in zip(paths, images, strict=True):
        if image.is_floating_point() and not bool(image.isfinite().all()):
            raise DataError(f"{path}: {int((~image.isfinite()).sum())} values are NaN or infinite")
        if image.shape != images[0].shape and not may_vary:
            raise DataError(
                f"{path}: is {_describe_size(image)} pixels, {paths[0]} is {_describe_size(images[0])}; "
                "set data.size to resize all images"
            )
    is_stack = len({image.shape for image in images}) == 1
    return torch.stack(images) if is_stack else Varied(tuple(images))


def _describe_size(pixels: Tensor) -> str:
    return f"{pixels.shape[-1]}x{pixels.shape[-2]}"
