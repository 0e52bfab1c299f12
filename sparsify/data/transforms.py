"""Transforms of torchvision.transforms.v2 by name, on images and the masks and boxes that go with them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from sparsify.data.boxes import holds_boxes, list_boxes, move_boxes
from sparsify.data.chance import keep_random_states, seed_example
from sparsify.data.columns import IGNORED, leaves
from sparsify.data.examples import Examples
from sparsify.data.targets import describe, holds_pixels
from sparsify.errors import DataError, first_line
from sparsify_schemas.data import Transform

ChangeImage = Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor | None, Tensor | None]]
"""([C, H, W], class of each pixel [H, W] if any, boxes [objects, 4] if any) -> the same, changed at random"""


def make_transforms(specs: Sequence[Transform]) -> ChangeImage:
    """The transforms one after the other. Raises DataError where one is unknown or does not take its
    arguments."""
    v2, tv_tensors = _import_torchvision()
    steps = [_make_step(v2, spec, place) for place, spec in enumerate(specs)]

    def change(
        image: Tensor, mask: Tensor | None, boxes: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        parts = {"image": tv_tensors.Image(image)}
        if mask is not None:
            # What is moved in from outside is 0 in masks; shifted by one, that is what counts for nothing.
            parts["mask"] = tv_tensors.Mask(mask + 1)
        if boxes is not None:
            size = tuple(image.shape[-2:])
            parts["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)
        for place, step in enumerate(steps):
            try:
                parts = step(parts)
            except Exception as error:
                raise DataError(
                    f"data.augment.transforms.{place}: '{specs[place].use}' failed on an image of "
                    f"{describe(image)}: {type(error).__name__}: {first_line(error)}"
                ) from error
            _check_result(parts["image"], image, specs[place], place)
        plain = {name: part.as_subclass(Tensor) for name, part in parts.items()}
        classes = None if mask is None else torch.where(plain["mask"] == 0, IGNORED, plain["mask"] - 1)
        return plain["image"], classes, plain.get("boxes")

    return change


def transform_examples(
    examples: Examples, change: ChangeImage, numbers: Sequence[int], seed: int
) -> Examples:
    """Each image, the mask of its classes and the boxes of its objects, changed by chance that follows from
    its number and the seed."""
    masks, boxes = _find_masks(examples), _find_boxes(examples)
    changed = []
    with keep_random_states():
        for place, number in enumerate(numbers):
            seed_example(seed, number)
            own = None if boxes is None else boxes[place]
            changed.append(change(examples.inputs[place], None if masks is None else masks[place], own))
    images = torch.stack([image for image, _, _ in changed])
    targets = examples.targets
    if masks is not None:
        targets = torch.stack([mask for _, mask, _ in changed if mask is not None])
    if boxes is not None:
        moved = [own for _, _, own in changed if own is not None]
        height, width = examples.inputs.shape[-2:]
        targets = move_boxes(targets, lambda old, place: moved[place].to(old.dtype), (height, width))
    return replace(examples, inputs=images, targets=targets)


def try_transforms(examples: Examples, specs: Sequence[Transform]) -> None:
    """Change one example, before any epoch. Raises DataError."""
    change = make_transforms(specs)
    _refuse_pixel_targets(examples)
    transform_examples(examples[:1], change, [0], 0)


def _find_boxes(examples: Examples) -> list[Any] | None:
    """The boxes of each example's objects, of targets that are a mapping with them."""
    return list_boxes(examples.targets) if holds_boxes(examples.targets) else None


def _find_masks(examples: Examples) -> Tensor | None:
    """Targets that hold the number of a class for each pixel."""
    masks = examples.targets
    is_mask = holds_pixels(masks, examples.inputs.shape[-2:])
    return masks if is_mask and masks.dim() == 3 and masks.dtype == torch.int64 else None


def _refuse_pixel_targets(examples: Examples) -> None:
    if _find_masks(examples) is not None:
        return
    size = examples.inputs.shape[-2:]
    for leaf in leaves(examples.targets):
        if not isinstance(leaf, Tensor):
            continue
        if holds_pixels(leaf, size) or (leaf is examples.targets and leaf.dim() >= 3):
            raise DataError(
                "data.augment.transforms change images and masks of classes (examples, height, width); the "
                f"targets are {describe(leaf[0])}; leave data.augment.transforms out"
            )


def _import_torchvision() -> tuple[Any, Any]:
    try:
        from torchvision import tv_tensors
        from torchvision.transforms import v2
    except ModuleNotFoundError:
        raise DataError(
            "data.augment.transforms needs torchvision, which is not installed: pip install torchvision"
        ) from None
    except Exception as error:
        raise DataError(
            f"data.augment.transforms needs torchvision, which cannot be imported ({first_line(error)}); "
            "install the version that was made for this torch"
        ) from error
    return v2, tv_tensors


def _make_step(v2: Any, spec: Transform, place: int) -> Any:
    known = [name for name, value in vars(v2).items() if isinstance(value, type) and name[0].isupper()]
    where = f"data.augment.transforms.{place}"
    if spec.use not in known:
        near = get_close_matches(spec.use, known, 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise DataError(f"{where}: torchvision.transforms.v2 has no '{spec.use}'{hint}")
    try:
        return getattr(v2, spec.use)(**spec.args)
    except Exception as error:
        raise DataError(
            f"{where}: '{spec.use}' does not take these arguments: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error


def _check_result(found: Any, image: Tensor, spec: Transform, place: int) -> None:
    """Images that are not augmented stay as they are, so augmented ones must have their shape and type."""
    is_image = isinstance(found, Tensor) and (found.shape, found.dtype) == (image.shape, image.dtype)
    if not is_image:
        now = describe(found)
        raise DataError(
            f"data.augment.transforms.{place}: '{spec.use}' turns images of {describe(image)} into "
            f"{now}; images of the validation and test set stay as they are; leave it out, or set data.size"
        )
