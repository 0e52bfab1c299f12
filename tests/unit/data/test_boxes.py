"""Boxes move with their images: the reference paints each object into its image, and looks where it is
afterwards."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify.data import batches
from sparsify.data.boxes import holds_boxes
from sparsify.data.columns import Varied
from sparsify.data.examples import Examples
from sparsify_schemas.data import Augment

SIZE = (20, 24)


def draw_objects(examples: int, seed: int = 0) -> list[list[tuple[int, int, int, int]]]:
    """Boxes of each image, of up to three objects that do not touch: each in a third of the width."""
    generator = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    found = []
    for _ in range(examples):
        own = []
        for third in range(1 + below(3)):
            left, top = 8 * third + below(3), below(12)
            own.append((left, top, left + 1 + below(5), top + 1 + below(8)))
        found.append(own)
    return found


def paint(objects: list[list[tuple[int, int, int, int]]]) -> Tensor:
    """Object number k of an image has the value k + 1 in it."""
    images = torch.zeros(len(objects), 1, *SIZE)
    for image, own in zip(images, objects, strict=True):
        for number, (left, top, right, bottom) in enumerate(own):
            image[0, top:bottom, left:right] = number + 1
    return images


def make_examples(objects: list[list[tuple[int, int, int, int]]]) -> Examples:
    boxes = Varied(tuple(torch.tensor(own, dtype=torch.float32) for own in objects))
    labels = Varied(tuple(torch.arange(len(own)) for own in objects))
    targets = {"boxes": boxes, "labels": labels, "image_id": torch.arange(len(objects))[:, None]}
    return Examples(paint(objects), targets, pads_targets=False)


def look(image: Tensor) -> dict[int, list[float]]:
    """Object -> its box, of those that are seen."""
    found = {}
    for number in range(3):
        rows, columns = (image[0] == number + 1).nonzero(as_tuple=True)
        if len(rows):
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            found[number] = [float(edge) for edge in edges]
    return found


@pytest.mark.parametrize(
    "augment",
    [
        {"flip": True},
        {"crop": 6},
        {"flip": True, "crop": 6},
        {"transforms": [{"use": "RandomHorizontalFlip"}]},
        {"transforms": [{"use": "RandomCrop", "args": {"size": list(SIZE), "padding": 6}}]},
    ],
    ids=["flip", "crop", "both", "torchvision-flip", "torchvision-crop"],
)
def test_boxes_lie_where_their_objects_are(augment: dict[str, Any]) -> None:
    if "transforms" in augment:
        pytest.importorskip("torchvision.transforms.v2")
    objects = draw_objects(40)
    examples, spec = make_examples(objects), Augment.model_validate(augment)
    moved = gone = 0
    for images, targets in batches(examples, 8, seed=3, augment=spec):
        for place, image in enumerate(images):
            number = int(targets["image_id"][place])
            seen = look(image)
            labels = targets["labels"][place].tolist()
            assert labels == list(seen)
            assert targets["boxes"][place].tolist() == list(seen.values())
            moved += any(seen[at] != list(map(float, objects[number][at])) for at in seen)
            gone += len(objects[number]) - len(seen)
    assert moved > 10
    assert gone > 0 or "crop" not in str(augment).lower()


def test_objects_of_one_number_stay_in_one_tensor() -> None:
    """Rows without area fill up examples; an object that is gone becomes one."""
    boxes = torch.tensor([[[0, 0, 2, 3], [5, 5, 9, 9]], [[4, 4, 8, 6], [-1, -1, -1, -1]]])
    images = torch.zeros(2, 1, *SIZE)
    examples = Examples(images, {"boxes": boxes, "labels": torch.tensor([[1, 2], [3, -1]])})
    for seed in range(12):
        (_, targets) = next(iter(batches(examples, 2, seed=seed, augment=Augment(flip=True, crop=5))))
        order = [0, 1] if int(targets["labels"][0, 0]) == 1 else [1, 0]
        assert targets["boxes"].shape == (2, 2, 4) and targets["boxes"].dtype == torch.int64
        assert targets["boxes"][order[1], 1].tolist() == [-1, -1, -1, -1]
        sides = targets["boxes"][..., 2:] - targets["boxes"][..., :2]
        assert bool((sides >= 0).all()) and bool((targets["boxes"][order[0]] >= 0).all())


def test_what_boxes_are() -> None:
    boxes = Varied((torch.zeros(2, 4), torch.zeros(0, 4)))
    assert holds_boxes({"boxes": boxes, "labels": torch.zeros(2)})
    assert not holds_boxes({"labels": torch.zeros(2)})
    assert not holds_boxes({"boxes": torch.zeros(2, 4)})  # one row of each example is no list of boxes
    assert not holds_boxes(torch.zeros(2, 3, 4))
    assert not holds_boxes({"boxes": Varied((torch.zeros(2, 5),))})
