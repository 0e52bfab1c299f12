"""Images that a user's own callable makes batches of: normalised and augmented like all others."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify
from sparsify.data import Datasets, batches, load_data
from sparsify.errors import SparsifyError
from sparsify.events import EpochDone
from sparsify.runs.apply import apply
from sparsify.runs.save_load import verify_run

MODULE = """
import numpy as np
import torch
from torch import nn


class Pictures(torch.utils.data.Dataset):
    '''Noise as bytes, arrays or tensors; where it is bright is class 1.'''

    def __init__(self, count, seed, sizes=(8,), as_arrays=False, masks="int64"):
        self.count, self.sizes, self.as_arrays, self.masks = count, sizes, as_arrays, masks
        self.seed = seed

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number >= self.count:
            raise IndexError(number)
        size = self.sizes[number * len(self.sizes) // self.count]
        drawn = np.random.default_rng([self.seed, number]).integers(0, 256, (1, size, size))
        image, mask = drawn.astype(np.uint8), (drawn[0] > 127).astype(self.masks)
        return (image, mask) if self.as_arrays else (torch.from_numpy(image), torch.from_numpy(mask))


class Described(Pictures):
    '''The mask is one of several targets by name.'''

    def __getitem__(self, number):
        image, mask = super().__getitem__(number)
        return image, {"mask": mask, "number": number}


def tensors(): return Pictures(40, 0), Pictures(10, 1)
def arrays(): return Pictures(40, 0, as_arrays=True), Pictures(10, 1, as_arrays=True)
def sizes(): return Pictures(40, 0, (8, 8, 12)), Pictures(10, 1, (8, 8, 12))
def late(): return Pictures(40, 0, (8,) * 9 + (12,)), Pictures(10, 1)
def bytes_of_masks(): return Pictures(40, 0, masks="uint8"), Pictures(10, 1, masks="uint8")
def described(): return Described(40, 0), Described(10, 1)


def collate(examples):
    images = [torch.as_tensor(x) for x, _ in examples]
    images = [x if x.is_floating_point() else x.float() for x in images]
    return torch.stack(images), torch.stack([torch.as_tensor(y) for _, y in examples]).long()


def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets["mask"], ignore_index=-100)
"""
SEGMENTATION = {"kind": "segmentation", "collate": "pictures:collate"}
NORMALIZE = {"mean": [0.5], "std": [0.25]}


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "pictures", raising=False)
    monkeypatch.chdir(tmp_path)


def recipe(name: str = "tensors", task: Any = SEGMENTATION, **data: Any) -> dict[str, Any]:
    adam = {"kind": "adam", "lr": 0.01}
    return {
        "version": 1,
        "title": "Pictures",
        "model": {"build": "pictures.net"},
        "data": {"source": f"pictures:{name}", "validation": "25%", "split": "last", **data},
        "task": task,
        "rules": [{"layers": "0", "group": "filter", "sparsity": "50%"}],
        "stages": [
            {"kind": "train", "name": "learn", "epochs": 2, "batch": 8, "optimizer": adam},
            {"kind": "cut"},
        ],
    }


def loaded(given: dict[str, Any]) -> tuple[Datasets, Any]:
    spec = sparsify.load_recipe(given).recipe
    assert spec.data is not None
    return load_data(spec.data, 0, spec.task), spec.data.augment


def complaint(given: dict[str, Any]) -> str:
    with pytest.raises(SparsifyError) as caught:
        apply(given, from_scratch=True, timing=0.02)
    return str(caught.value)


@pytest.mark.parametrize("name", ["tensors", "arrays"])
@pytest.mark.parametrize("lazy", [False, True])
def test_batches_of_ones_own_are_normalised(name: str, lazy: bool) -> None:
    data, _ = loaded(recipe(name, normalize=NORMALIZE, lazy=lazy))
    import pictures

    expected = torch.stack([torch.as_tensor(pictures.Pictures(40, 0)[i][0]) for i in range(5)]).double()
    inputs, targets = data.train[:5].batch()
    torch.testing.assert_close(inputs.double(), (expected / 255 - 0.5) / 0.25, rtol=0, atol=1e-6)
    assert torch.equal(targets, (expected[:, 0] > 127).long())
    plain, _ = loaded(recipe(name, lazy=lazy))
    assert torch.equal(plain.train[:5].batch()[0].double(), expected), "as the data hold them"


@pytest.mark.parametrize("name", ["tensors", "arrays"])
@pytest.mark.parametrize("lazy", [False, True])
def test_masks_of_ones_own_batches_move_with_their_images(name: str, lazy: bool) -> None:
    data, augment = loaded(recipe(name, augment={"flip": True, "crop": 2}, lazy=lazy))
    inputs, targets = next(iter(batches(data.train, 30, seed=3, augment=augment)))
    inside = targets != -100
    assert not bool(inside.all()), "something was moved in from outside"
    assert torch.equal(inputs[:, 0][inside] > 127, targets[inside] == 1)
    assert bool((inputs[:, 0][~inside] == 0).all())


def test_masks_among_several_targets_move() -> None:
    task = {"loss": "pictures:loss"}
    given = recipe("described", task, augment={"flip": True, "crop": 1})
    data, augment = loaded(given)
    inputs, targets = next(iter(batches(data.train, 30, seed=3, augment=augment)))
    inside = targets["mask"] != -100
    assert not bool(inside.all())
    assert torch.equal((inputs[:, 0] * 255).round()[inside] > 127, targets["mask"][inside] == 1)
    assert sorted(targets["number"].tolist()) == list(range(30))
    given["data"]["augment"] = {"transforms": ["RandomHorizontalFlip"]}
    assert complaint(given) == (
        "data.augment.transforms change images and masks of classes (examples, height, width); the targets "
        "are 8x8 int64; leave data.augment.transforms out"
    )


@pytest.mark.nightly
def test_a_killed_run_goes_on_to_the_same_numbers() -> None:
    def losses(run: Path) -> list[Any]:
        return [(row.loss, row.validation_loss) for row in verify_run(run).history]

    given = recipe(
        normalize=NORMALIZE, augment={"flip": True, "crop": 1, "transforms": ["RandomVerticalFlip"]}
    )
    alone = losses(apply(given, from_scratch=True, timing=0.02))

    def stop(event: object) -> None:
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(given, from_scratch=True, out="stopped", timing=0.02, listener=stop)
    (folder,) = Path("stopped").iterdir()
    assert losses(apply(resume=folder, timing=0.02)) == alone


@pytest.mark.parametrize("task", [SEGMENTATION, "segmentation"])
def test_images_of_several_sizes_are_not_augmented(task: Any) -> None:
    augment = {"flip": True}
    assert complaint(recipe("sizes", task, augment=augment)) == (
        "data.augment acts on one tensor of images; the examples of 'pictures:sizes' are of varying shape; "
        "give all images one size, or leave data.augment out"
    )
    for changes in (augment, {"transforms": ["RandomHorizontalFlip"]}):
        given = recipe("late", task, augment=changes, lazy=True, validation="0%")
        given["stages"][0]["batch"] = 40
        assert complaint(given) == (
            "data.augment changes images (channels, height, width) of one size, and the examples of a batch "
            "are 1x12x12 uint8, 1x8x8 uint8; give all of them one size, or leave data.augment out"
        )


def test_masks_that_cannot_hold_what_counts_for_nothing() -> None:
    given = recipe("bytes_of_masks", augment={"crop": 1})
    assert complaint(given) == (
        "data.augment.crop fills masks with -100, which uint8 cannot hold; return masks as int64"
    )
    loaded(recipe("bytes_of_masks", "segmentation", augment={"crop": 1}))


def test_targets_are_no_masks_because_their_numbers_are_those_of_pixels() -> None:
    """As many examples in a batch as pixels in a column: [N, W] is no mask."""
    pairs = torch.rand(8, 1, 8, 8), torch.arange(64.0).view(8, 8)
    examples = sparsify.data.Examples(*pairs)
    change = sparsify.load_recipe(recipe(augment={"flip": True, "crop": 1})).recipe.data
    assert change is not None
    _, targets = next(iter(batches(examples, 8, seed=1, augment=change.augment)))
    assert sorted(row.tolist() for row in targets) == [row.tolist() for row in pairs[1]]
