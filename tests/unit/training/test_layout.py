"""The order of weights and images in memory: as asked during a stage, as before after it."""

from copy import deepcopy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.data import Datasets, Examples
from sparsify.errors import RecipeError, SparsifyError
from sparsify.training.accelerator import make_accelerator
from sparsify.training.stage import train_stage
from sparsify.training.stage_state import StageState
from sparsify_schemas.stage import Train

ADAM = {"kind": "adam", "lr": 0.01}


def is_last(tensor: Tensor) -> bool:
    format = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return tensor.is_contiguous(memory_format=format) and not tensor.is_contiguous()


class Net(nn.Module):
    """Notes the order of the images and of its weights in each pass: (training, images, weights)."""

    seen: ClassVar[list[tuple[bool, bool, bool]]] = []

    def __init__(self, dimensions: int = 2) -> None:
        super().__init__()
        kind, norm = (nn.Conv2d, nn.BatchNorm2d) if dimensions == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.first, self.norm, self.second = kind(3, 6, 3, padding=1), norm(6), kind(6, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(
            (self.training, is_last(x), is_last(self.first.weight) and is_last(self.second.weight))
        )
        hidden = self.second(self.norm(self.first(x)).relu())
        found: Tensor = self.head(hidden.flatten(2).mean(2))
        return found


class Views(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return super().forward(hidden.view(len(x), -1)[:, :192].view(len(x), 3, 8, 8))


@pytest.fixture(autouse=True)
def _unseen() -> None:
    Net.seen = []


def net(dimensions: int = 2) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(dimensions)


def make_data(dimensions: int = 2) -> Datasets:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, *(8,) * dimensions, generator=generator)
    given = Examples(x, torch.arange(40) % 3)
    return Datasets(given, given[:10], given[:10], 3)


def train(
    model: nn.Module, data: Datasets | None = None, restore: Any = None, **more: Any
) -> list[StageState]:
    """The moments after each epoch."""
    keys = {"kind": "train", "name": "learn", "epochs": 3, "batch": 16, "optimizer": ADAM}
    moments: list[StageState] = []
    train_stage(
        model,
        Train.model_validate({**keys, **more}),
        data or make_data(),
        None,
        seed=5,
        stage_index=0,
        accelerator=make_accelerator(),
        restore=restore,
        on_epoch=lambda moment: moments.append(deepcopy(moment)),
        teacher=net() if "distill" in more else None,
    )
    return moments


@pytest.mark.parametrize("dimensions", [2, 3])
def test_weights_and_images_are_in_that_order_during_the_stage_alone(dimensions: int) -> None:
    model, plain, data = net(dimensions), net(dimensions), make_data(dimensions)
    sgd = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
    train(model, data, layout="channels_last", optimizer=sgd)
    assert {images and weights for training, images, weights in Net.seen if training} == {True}
    assert not any(map(is_last, (model.first.weight, model.second.weight)))
    train(plain, data, optimizer=sgd)
    for own, wanted in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-4)
        assert own.stride() == wanted.stride()


def test_a_model_that_is_built_in_that_order_keeps_it_unless_told_otherwise() -> None:
    for layout in (None, "contiguous"):
        Net.seen = []
        model = net().to(memory_format=torch.channels_last)
        train(model, layout=layout)
        assert {weights for training, _, weights in Net.seen if training} == {layout is None}
        assert is_last(model.first.weight) and is_last(model.second.weight)


@pytest.mark.parametrize(
    "more", [{}, {"ema": 0.9}, {"distill": {}, "ends_with": "best"}, {"accumulate": 3}], ids=str
)
def test_going_on_from_a_moment_ends_with_the_same_bits(more: dict[str, Any]) -> None:
    whole, resumed = net(), net()
    moments = train(whole, layout="channels_last", **more)
    train(resumed, layout="channels_last", restore=moments[0], **more)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_teacher_is_in_that_order_as_well() -> None:
    train(net(), layout="channels_last", distill={}, epochs=1)
    validation = 1
    assert Net.seen.count((False, True, True)) == 3 and len(Net.seen) == 6 + validation


def recipe(build: str, **keys: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "title": "t",
        "model": {"build": build},
        "data": {"source": f"{__name__}:images"},
        "rules": [
            {"layers": "*", "group": "neuron" if build.endswith("flat") else "filter", "sparsity": "50%"}
        ],
        "stages": [
            {
                "kind": "train",
                "name": "learn",
                "epochs": 1,
                "optimizer": ADAM,
                "layout": "channels_last",
                **keys,
            },
            {"kind": "cut"},
        ],
    }


def images() -> Any:
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)).numpy()
    part = x, (torch.arange(40) % 3).numpy()
    return part, part


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            "flat",
            "'layout: channels_last' orders the weights of convolutions over images or volumes, and the "
            "model has none; leave it out",
        ),
        (
            "Views",
            "in 'layout: channels_last' the model does not take a batch of shape (2, 3, 8, 8): view size is "
            "not compatible with input tensor's size and stride (at least one dimension spans across two "
            "contiguous subspaces). Use .reshape(...) instead.; where the model says 'view', write "
            "'reshape', or leave the layout out",
        ),
    ],
)
def test_a_model_that_cannot_is_refused_before_the_first_epoch(
    build: str, message: str, tmp_path: Any
) -> None:
    with pytest.raises(SparsifyError) as caught:
        sparsify.apply(recipe(f"{__name__}.{build}"), from_scratch=True, out=tmp_path, timing=0.02)
    assert str(caught.value) == f"<recipe>: stages.0.layout: {message}"
    assert not list(tmp_path.iterdir())


def test_sharded_weights_keep_their_order() -> None:
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe(recipe(f"{__name__}.Net", shard=True))
    assert str(caught.value) == (
        "<recipe>: stages.0.layout: 'layout' does not go with 'shard'; leave one of them out"
    )
