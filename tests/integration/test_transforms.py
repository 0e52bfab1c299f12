"""Transforms of torchvision by name: the same with any number of workers, and masks move with their "
"images."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparsify
from sparsify.data import batches, load_data
from sparsify.errors import SparsifyError
from sparsify.events import EpochDone
from sparsify.runs.apply import apply
from sparsify.runs.save_load import verify_run

v2 = pytest.importorskip("torchvision.transforms.v2")

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),  # Python 3.12 on fork
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # torch on machines of one core
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(*transforms: dict[str, Any], task: Any = "classification", **data: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "title": "Transforms",
        "model": {"build": "sparsify.models.digits_cnn"},
        "data": {
            "source": "digits",
            "validation": "70%",
            "augment": {"transforms": list(transforms)},
            **data,
        },
        "task": task,
        "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%"}],
        "stages": [
            {
                "kind": "train",
                "name": "learn",
                "epochs": 2,
                "batch": 256,
                "optimizer": {"kind": "adam", "lr": 1e-3},
            },
            {"kind": "cut"},
        ],
    }


def first_batch(given: dict[str, Any], seed: int | None, **data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    spec = sparsify.load_recipe(given).recipe
    assert spec.data is not None
    loaded = load_data(spec.data, 0, spec.task)
    return next(iter(batches(loaded.train, 64, seed=seed, augment=spec.data.augment)))


MIRROR = {"use": "RandomHorizontalFlip", "args": {"p": 1.0}}
TURN = {"use": "RandomRotation", "args": {"degrees": 30}}
JITTER = {"use": "ColorJitter", "args": {"brightness": 0.5}}


def test_transforms_act_on_training_images_in_order() -> None:
    plain, y = first_batch(recipe(), seed=4)
    mirrored, other = first_batch(recipe(MIRROR), seed=4)
    assert torch.equal(mirrored, plain.flip(-1)) and torch.equal(other, y)
    assert torch.equal(first_batch(recipe(MIRROR, MIRROR), seed=4)[0], plain)
    unchanged = first_batch(recipe(), seed=None)[0]
    assert torch.equal(first_batch(recipe(MIRROR), seed=None)[0], unchanged), "in order and as they are"


def test_chance_follows_from_the_seed_and_leaves_global_states_alone() -> None:
    state = torch.get_rng_state()
    a = first_batch(recipe(TURN, JITTER), seed=4)[0]
    assert torch.equal(a, first_batch(recipe(TURN, JITTER), seed=4)[0])
    plain = first_batch(recipe(), seed=4)[0]
    assert all(not torch.equal(x, before) for x, before in zip(a, plain, strict=True))
    angles = {round(float((x - before).abs().sum()), 3) for x, before in zip(a, plain, strict=True)}
    assert len(angles) > 32, "each image is changed by itself"
    assert torch.equal(torch.get_rng_state(), state)


def test_runs_with_transforms_repeat_resume_and_do_not_depend_on_workers() -> None:
    def losses(run: Path) -> list[Any]:
        return [(row.loss, row.validation_loss) for row in verify_run(run).history]

    given = recipe(TURN, JITTER)
    alone = losses(apply(given, from_scratch=True, timing=0.02))
    assert losses(apply(recipe(TURN, JITTER, workers=2), from_scratch=True, timing=0.02)) == alone
    assert losses(apply(recipe(), from_scratch=True, timing=0.02)) != alone

    def stop(event: object) -> None:
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(given, from_scratch=True, out="stopped", timing=0.02, listener=stop)
    (folder,) = Path("stopped").iterdir()
    # What was logged and not saved is done again.
    assert losses(apply(resume=folder, timing=0.02)) == alone


def masked(*transforms: dict[str, Any]) -> dict[str, Any]:
    """Two kinds of squares, bytes of which the masks are the classes; one pixel counts for nothing."""
    generator = np.random.default_rng(0)
    masks = generator.integers(0, 2, size=(20, 8, 8))
    masks[:, 0, 0] = 255
    pixels = np.where(masks == 255, 7, masks * 100 + 50).astype(np.uint8)
    np.savez("m.npz", x_train=pixels, y_train=masks, x_test=pixels, y_test=masks)
    task = {"kind": "segmentation", "ignore": 255}
    return recipe(*transforms, task=task, source="m.npz")


def test_masks_move_with_their_images() -> None:
    quarter = {"use": "RandomRotation", "args": {"degrees": [90, 90]}}
    x, y = first_batch(masked(), seed=1)
    turned, moved = first_batch(masked(quarter), seed=1)
    assert torch.equal(turned, x.rot90(1, (-2, -1))) and torch.equal(moved, y.rot90(1, (-2, -1)))
    tilted, masks = first_batch(masked({"use": "RandomRotation", "args": {"degrees": [45, 45]}}), seed=1)
    outside = tilted[:, 0] == 0
    assert bool(outside[:, 0, 0].all()) and bool((masks[outside] == -100).all())
    counted = masks != -100
    assert torch.equal((tilted[:, 0] * 255).round()[counted], (masks * 100 + 50.0)[counted])


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "an unknown name": (
        [{"use": "RandomRotate"}],
        "data.augment.transforms.0: torchvision.transforms.v2 has no 'RandomRotate'; did you mean "
        "'RandomRotation'?",
    ),
    "wrong arguments": (
        [MIRROR, {"use": "RandomRotation", "args": {"angle": 5}}],
        "data.augment.transforms.1: 'RandomRotation' does not take these arguments: TypeError: "
        "RandomRotation.__init__() got an unexpected keyword argument 'angle'",
    ),
    "another size": (
        [{"use": "Resize", "args": {"size": [4, 4]}}],
        "data.augment.transforms.0: 'Resize' turns images of 1x8x8 float32 into 1x4x4 float32; images of the "
        "validation and test set stay as they are; leave it out, or set data.size",
    ),
    "a transform that fails": (
        [{"use": "RandomCrop", "args": {"size": 12}}],
        "data.augment.transforms.0: 'RandomCrop' failed on an image of 1x8x8 float32: ValueError: Required "
        "crop "
        "size (12, 12) is larger than input image size (8, 8).",
    ),
}


def complaint(given: dict[str, Any]) -> str:
    with pytest.raises(SparsifyError) as caught:
        apply(given, from_scratch=True, timing=0.02)
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_applied_is_said(case: str) -> None:
    transforms, message = REFUSED[case]
    assert complaint(recipe(*transforms)) == message


def test_targets_that_would_not_move_are_refused() -> None:
    assert complaint(recipe(MIRROR, task="regression")) == (
        "data.augment.transforms change images and masks of classes (examples, height, width); the targets "
        "are 1x8x8 float32; leave data.augment.transforms out"
    )
    np.savez("t.npz", x_train=np.zeros((9, 4)), y_train=[0] * 9, x_test=np.zeros((9, 4)), y_test=[0] * 9)
    assert complaint(recipe(MIRROR, source="t.npz")) == (
        "data.augment changes images (channels, height, width); the examples of 't.npz' are 4; leave it out"
    )


def test_a_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert complaint(recipe(MIRROR)) == (
        "data.augment.transforms needs torchvision, which is not installed: pip install torchvision"
    )
