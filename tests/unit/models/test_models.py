import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from sparsify import models
from sparsify.cost.measure import count_macs
from sparsify.data import batches, load_data
from sparsify.recipe.builders import find_problem, list_builders
from sparsify_schemas.data import Data

ROOT = Path(os.environ.get("SPARSIFY_DATA", "~/.cache/sparsify")).expanduser()

FACTS: list[tuple[Callable[[], nn.Module], tuple[int, ...], int]] = [
    (models.lenet5, (1, 28, 28), 431_080),
    (models.lenet_300_100, (1, 28, 28), 266_610),
    (models.ssl_mlp, (784,), 545_810),
    (models.ssl_convnet, (3, 32, 32), 89_578),
    (models.digits_cnn, (1, 8, 8), 24_698),
    (models.cifar_resnet20, (3, 32, 32), 269_722),
    (models.cifar_resnet32, (3, 32, 32), 464_154),
    (models.cifar_resnet44, (3, 32, 32), 658_586),
    (models.cifar_resnet56, (3, 32, 32), 853_018),
    (lambda: models.cifar_resnet20("B"), (3, 32, 32), 272_474),
    (lambda: models.cifar_resnet56("B"), (3, 32, 32), 855_770),
    (models.cifar_vgg16, (3, 32, 32), 14_991_946),
    (models.alexnet, (3, 224, 224), 61_100_840),
    (models.resnet18, (3, 224, 224), 11_689_512),
    (models.mlp, (784,), 79_510),
    (models.unet, (3, 64, 64), 117_378),
    (models.autoencoder, (1, 28, 28), 176_945),
]
SHAPES = {
    models.alexnet: (2, 1000),
    models.resnet18: (2, 1000),
    models.unet: (2, 2, 64, 64),
    models.autoencoder: (2, 1, 28, 28),
}
"""what comes out of two examples; ten logits each where nothing is said"""
OTHER_ARGUMENTS = ("autoencoder", "cifar_resnet", "detector", "hugging_face", "mlp")
"""builders whose last parameter has no length of the number of classes"""


@pytest.mark.parametrize(("build", "shape", "parameters"), FACTS, ids=lambda v: getattr(v, "__name__", None))
def test_every_builder_has_the_parameters_its_docstring_states(
    build: Callable[[], nn.Module], shape: tuple[int, ...], parameters: int
) -> None:
    model = build().eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    if build.__doc__:
        assert f"{parameters:,} parameters" in build.__doc__
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == SHAPES.get(build, (2, 10))


def test_a_detector_returns_a_map_for_each_stride() -> None:
    model = models.detector(classes=7).eval()
    assert sum(p.numel() for p in models.detector().parameters()) == 205_074
    assert "205,074 parameters" in " ".join((models.detector.__doc__ or "").split())
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 64, 96))
    assert [one.shape for one in maps] == [(2, 39, 16, 24), (2, 39, 8, 12), (2, 39, 4, 6)]
    chances = maps[0][:, 32:].sigmoid()
    assert float(chances.max()) < 0.1  # before training, no cell claims a class


def test_an_mlp_has_the_widths_that_are_asked() -> None:
    model = models.mlp((10, 6, 3, 1))
    assert model(torch.randn(4, 10)).shape == (4, 1)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [(6, 10), (3, 6), (1, 3)]
    with pytest.raises(ValueError, match="an mlp needs the widths of its inputs and outputs at least"):
        models.mlp((10,))


def test_lenet5_in_either_order_of_memory_computes_the_same() -> None:
    plain, last = models.lenet5().eval(), models.lenet5(channels_last=True).eval()
    last.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 28, 28)
    assert last.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x), plain(x))


def test_multiply_accumulates_are_the_published_ones() -> None:
    assert count_macs(models.lenet5(), (torch.zeros(1, 1, 28, 28),))[0] == 2_293_000
    assert count_macs(models.alexnet(), (torch.zeros(1, 3, 224, 224),))[0] == 714_188_480
    assert count_macs(models.resnet18(), (torch.zeros(1, 3, 224, 224),))[0] == 1_814_073_344


def test_resnet18_computes_what_torchvisions_does() -> None:
    import torchvision

    torch.manual_seed(0)
    theirs, ours = torchvision.models.resnet18(num_classes=7).eval(), models.resnet18(classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 48, 64)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", [n for n in models.__all__ if n not in OTHER_ARGUMENTS])
def test_classes_is_an_argument_of_every_builder(name: str) -> None:
    assert list(getattr(models, name)(classes=7).parameters())[-1].shape == (7,)


@pytest.mark.parametrize(
    "name", [n for n in models.__all__ if n not in ("cifar_resnet", "alexnet", "hugging_face")]
)
def test_builders_seed_nothing_and_take_the_seed_that_is_set(name: str) -> None:
    torch.manual_seed(5)
    first = getattr(models, name)().state_dict()
    second = getattr(models, name)().state_dict()
    torch.manual_seed(5)
    again = getattr(models, name)().state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], second[k]) for k in first)


def test_lenet5_has_no_activation_between_its_convolutions() -> None:
    model = models.lenet5()
    calls: list[str] = []
    for name, module in model.named_children():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(torch.zeros(1, 1, 28, 28))
    assert calls == ["conv1", "pool1", "conv2", "pool2", "fc1", "relu1", "fc2"]


@pytest.mark.parametrize(("depth", "shortcut"), [(21, "A"), (2, "A"), (20, "C")])
def test_cifar_resnet_refuses_what_there_is_not(depth: int, shortcut: Literal["A", "B"]) -> None:
    with pytest.raises(ValueError, match=r"depth is 6n \+ 2|shortcut is 'A'"):
        models.cifar_resnet(depth, shortcut)


def test_digits_cnn_learns_the_digits_in_six_epochs() -> None:
    pytest.importorskip("sklearn")
    data = load_data(Data(source="digits"), seed=0)
    torch.manual_seed(0)
    model = models.digits_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(6):
        for x, y in batches(data.train, 64, seed=epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(data.test.ready()).argmax(1) == data.test.targets).double().mean()
    assert accuracy >= 0.97


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.skipif(
    not (ROOT / "cifar-10-batches-bin/test_batch.bin").is_file(), reason="CIFAR-10 is not on this machine"
)
@pytest.mark.parametrize(
    ("name", "build", "normalize", "rightly"),
    [
        ("cifar_resnet20", models.cifar_resnet20, IMAGENET, 915),
        ("cifar_resnet56b", lambda: models.cifar_resnet56("B"), None, 945),
    ],
)
def test_published_weights_load_and_classify(
    name: str, build: Callable[[], nn.Module], normalize: dict[str, list[float]] | None, rightly: int
) -> None:
    """On the first thousand test images; 0.9173 and 0.9320 on all ten thousand."""
    weights = ROOT / "weights" / f"{name}.pt"
    if not weights.is_file():
        pytest.skip(f"{name} is not on this machine")
    model = build().eval()
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    test = load_data(Data.model_validate({"source": "cifar10", "normalize": normalize}), seed=0).test[
        slice(0, 1000)
    ]
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches(test, 250))
    assert abs(right - rightly) <= 2


def test_validate_knows_every_builder_without_importing_it() -> None:
    assert [find_problem(f"sparsify.models.{name}") for name in models.__all__] == [("", "")] * len(
        models.__all__
    )
    assert (
        find_problem("sparsify.models.lenet:lenet5")
        == find_problem("torchvision.models.resnet18")
        == ("", "")
    )
    assert find_problem("sparsify.models.lenet.lenet6")[0] == "module 'sparsify.models.lenet' has no 'lenet6'"
    assert {name.rpartition(".")[2] for name in list_builders()} == set(models.__all__)
