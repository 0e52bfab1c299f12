"""Scenes: handwritten digits of many sizes and colours on cluttered images, with boxes, masks or labels.

Each function returns (train, test) and is named by recipes as `data.source`. The digits are those of MNIST,
of its training part for training and of its test part for testing. The functions that begin with `few_` take
scikit-learn's digits, which need no download, and make small sets for a try.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sparsify.data import digits, idx

Random = np.random.Generator
Digits = tuple[Tensor, Tensor]
"""images [N, H, W] in 0..1 and their classes [N]"""
Boxes = list[dict[str, Tensor]]
"""for each scene, `boxes` [objects, 4] as x1, y1, x2, y2 in pixels, and `labels` [objects]"""


@dataclass(frozen=True)
class Scenes:
    """N scenes and all that is known of them."""

    images: Tensor
    """[N, 3, size, size], bytes"""
    masks: Tensor
    """[N, size, size]: 0 is background, 1 + digit a digit"""
    objects: Boxes

    @property
    def labels(self) -> Tensor:
        """[N, 10], 1 where a digit occurs."""
        found = torch.zeros(len(self.images), 10)
        for place, scene in enumerate(self.objects):
            found[place, scene["labels"]] = 1
        return found


def digit_boxes() -> tuple[tuple[Tensor, Boxes], tuple[Tensor, Boxes]]:
    """5,000 and 1,000 scenes of 64x64 pixels with one to four digits, and their boxes."""
    train, test = _draw(_mnist, (5000, 1000), 64, (1, 4), (14, 28))
    return (train.images, train.objects), (test.images, test.objects)


def digit_masks() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """2,000 and 500 scenes of 64x64 pixels with one to four digits, and a class for each pixel: 0 is
    background, 1 + digit a digit."""
    train, test = _draw(_mnist, (2000, 500), 64, (1, 4), (14, 28))
    return (train.images, train.masks), (test.images, test.masks)


def digit_labels() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """6,000 and 1,000 scenes of 32x32 pixels with one to three digits, and 1 for each digit that occurs."""
    train, test = _draw(_mnist, (6000, 1000), 32, (1, 3), (12, 18))
    return (train.images, train.labels), (test.images, test.labels)


def few_digit_boxes() -> tuple[tuple[Tensor, Boxes], tuple[Tensor, Boxes]]:
    """80 and 20 scenes of 32x32 pixels with one or two digits of scikit-learn, and their boxes."""
    train, test = _draw(_small, (80, 20), 32, (1, 2), (10, 16))
    return (train.images, train.objects), (test.images, test.objects)


def few_digit_masks() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """80 and 20 scenes of 32x32 pixels with one or two digits of scikit-learn, and a class for each pixel."""
    train, test = _draw(_small, (80, 20), 32, (1, 2), (10, 16))
    return (train.images, train.masks), (test.images, test.masks)


def few_digit_labels() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """80 and 20 scenes of 32x32 pixels with one or two digits of scikit-learn, and 1 for each that occurs."""
    train, test = _draw(_small, (80, 20), 32, (1, 2), (10, 16))
    return (train.images, train.labels), (test.images, test.labels)


def _mnist() -> tuple[Digits, Digits]:
    root = Path(os.environ.get("SPARSIFY_DATA") or "~/.cache/sparsify").expanduser()
    train, test = idx.read_idx(root, "MNIST")
    return (train.inputs[:, 0].float() / 255, train.targets), (test.inputs[:, 0].float() / 255, test.targets)


def _small() -> tuple[Digits, Digits]:
    train, test = digits.read_digits()
    return (train.inputs[:, 0], train.targets), (test.inputs[:, 0], test.targets)


def _draw(
    read: Callable[[], tuple[Digits, Digits]],
    counts: tuple[int, int],
    size: int,
    objects: tuple[int, int],
    heights: tuple[int, int],
) -> tuple[Scenes, Scenes]:
    """Training and test scenes, the same each time.

    counts: of scenes; size: of their sides; objects, heights: fewest and most digits in a scene, their least
    and largest height in pixels.
    """
    parts = zip(read(), counts, (0, 1), strict=True)
    train, test = (
        draw_scenes(source, count, size, objects, heights, np.random.default_rng(seed))
        for source, count, seed in parts
    )
    return train, test


def draw_scenes(
    source: Digits, count: int, size: int, objects: tuple[int, int], heights: tuple[int, int], random: Random
) -> Scenes:
    """Paste digits and clutter on `count` images of size x size pixels."""
    scenes = [_draw_scene(source, size, objects, heights, random) for _ in range(count)]
    images = torch.from_numpy(np.stack([image for image, _, _ in scenes]))
    masks = torch.from_numpy(np.stack([mask for _, mask, _ in scenes]))
    return Scenes(images, masks, [found for _, _, found in scenes])


def _draw_scene(
    source: Digits, size: int, objects: tuple[int, int], heights: tuple[int, int], random: Random
) -> tuple[Any, Any, dict[str, Tensor]]:
    """(image [3, size, size] of bytes, mask [size, size], boxes and labels of the digits)."""
    image = _background(size, random)
    for _ in range(int(random.integers(4, 9))):
        _add_fragment(image, source, random)
    mask = np.zeros((size, size), dtype=np.int64)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    wanted = int(random.integers(objects[0], objects[1] + 1))
    for _ in range(20 * wanted):  # places are drawn until one is free; a crowded scene has fewer digits
        if len(boxes) == wanted:
            break
        number = int(random.integers(len(source[0])))
        ink = _scaled(source[0][number], int(random.integers(heights[0], heights[1] + 1)))
        ink = ink[:size, :size]
        top, left = (int(random.integers(0, size - side + 1)) for side in ink.shape)
        box = (left, top, left + ink.shape[1], top + ink.shape[0])
        if any(_touch(box, other) for other in boxes):
            continue
        _paste(image, ink, top, left, _colour(random))
        label = int(source[1][number])
        area = mask[top : box[3], left : box[2]]
        area[ink > 0.4] = 1 + label
        boxes.append(box)
        labels.append(label)
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
    noise = random.normal(0, 0.03, image.shape)
    return (255 * (image + noise).clip(0, 1)).astype(np.uint8), mask, found


def _background(size: int, random: Random) -> Any:
    """[3, size, size], a dark colour that changes slowly."""
    corners = torch.from_numpy(random.uniform(0, 0.4, (1, 3, 3, 3)))
    return functional.interpolate(corners, (size, size), mode="bilinear", align_corners=True)[0].numpy()


def _add_fragment(image: Any, source: Digits, random: Random) -> None:
    """Paste a piece of a digit, too small to be one."""
    ink = _scaled(source[0][int(random.integers(len(source[0])))], int(random.integers(14, 25)))
    part = int(random.integers(4, 8))
    top, left = (int(random.integers(0, max(side - part, 0) + 1)) for side in ink.shape)
    piece = ink[top : top + part, left : left + part]
    size = image.shape[1]
    down, right = (int(random.integers(0, size - side + 1)) for side in piece.shape)
    _paste(image, piece, down, right, _colour(random))


def _colour(random: Random) -> Any:
    return random.uniform(0.5, 1.0, (3, 1, 1))


def _paste(image: Any, ink: Any, top: int, left: int, colour: Any) -> None:
    area = image[:, top : top + ink.shape[0], left : left + ink.shape[1]]
    area[:] = area * (1 - ink) + colour * ink


def _scaled(digit: Tensor, height: int) -> Any:
    """The ink of a digit, cut out and scaled so that its longer side has `height` pixels."""
    rows, columns = ((digit > 0.2).any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    cut = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = height / max(cut.shape)
    shape = [max(2, round(factor * side)) for side in cut.shape]
    found = functional.interpolate(cut[None, None], shape, mode="bilinear", antialias=True)
    return found[0, 0].numpy().clip(0, 1)


def _touch(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
