"""Statistics of batch normalisation, taken anew, against means over batches written from the definition."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Normed(nn.Module):
    """A normalisation that runs, one that does not, and one behind a layer called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=0.3)
        self.drop, self.idle = nn.Dropout(0.5), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.norm(self.first(x)))
        return y


@pytest.mark.parametrize("examples", [128, 129, 150, 40])
def test_statistics_are_means_over_batches_of_64(examples: int) -> None:
    model, x = Normed(), 2 * draw(examples, 4) + 1
    assert sparsify.calibrate(model, [x]) == 1
    sizes = {128: [64, 64], 129: [64, 65], 150: [64, 64, 22], 40: [40]}[examples]
    parts = model.first(x).detach().split(sizes)
    mean = torch.stack([part.mean(0) for part in parts]).mean(0)
    variance = torch.stack([part.var(0, unbiased=True) for part in parts]).mean(0)
    assert torch.allclose(model.norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(model.norm.running_var, variance, atol=1e-5)


def test_each_module_keeps_its_mode_and_momentum_and_idle_norms_their_statistics() -> None:
    model = Normed().train()
    model.norm.eval()
    model.idle.running_mean.fill_(7)
    sparsify.calibrate(model, [draw(32, 4)])
    assert [m.training for m in (model, model.first, model.norm, model.drop)] == [True, True, False, True]
    assert model.norm.momentum == 0.3
    assert model.idle.running_mean.tolist() == [7, 7, 7]


@pytest.mark.parametrize("batch", [draw(100, 5), draw(1, 4)], ids=["another width", "a single example"])
def test_after_an_error_the_statistics_are_those_before(batch: Tensor) -> None:
    model = Normed()
    model.norm.running_mean.fill_(7)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((RuntimeError, ModelError)) as caught:
        sparsify.calibrate(model, [batch])
    if len(batch) == 1:
        assert str(caught.value) == "one example has no variance at a normalisation; calibrate needs two"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.norm.momentum == 0.3 and model.training


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        (draw(20, 4), "calibrate takes an iterable of batches, found Tensor; put a single batch in a list"),
        (
            [],
            "calibrate needs calibration examples, and the batches held none; "
            "pass unlabelled training examples",
        ),
        (["a"], "calibrate takes batches that are tensors, mappings of tensors or (x, y) pairs, found str"),
    ],
)
def test_messages_name_the_call(batches: Any, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        sparsify.calibrate(Normed(), batches)
    assert str(caught.value) == words
