"""The table of layer classes says of each what torch's own layers say of themselves."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import sparsify
from sparsify.graph.class_names import class_names
from sparsify.graph.layer_types import (
    FOREIGN,
    OTHER,
    TABLE,
    attributes,
    layer_type,
    layer_type_of,
    layer_widths,
)
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.nn.gathered import gather_inputs

Made = Callable[[], nn.Module]


def gathered(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> nn.Module:
    columns = [0, 2]
    with torch.no_grad():
        layer.weight = nn.Parameter(layer.weight.flatten(1)[:, columns])
    gather_inputs(layer, columns)
    return layer


MADE: dict[str, Made] = {
    "Conv1d": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "Conv2d": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "Conv3d": lambda: nn.Conv3d(4, 6, 3),
    "GatheredConv1d": lambda: gathered(nn.Conv1d(4, 6, 3)),
    "GatheredConv2d": lambda: gathered(nn.Conv2d(4, 6, 3)),
    "GatheredConv3d": lambda: gathered(nn.Conv3d(4, 6, 3)),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 8, 3, groups=4),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(4, 6, 3),
    "Linear": lambda: nn.Linear(4, 6),
    "GatheredLinear": lambda: gathered(nn.Linear(4, 6)),
    "Bilinear": lambda: nn.Bilinear(4, 5, 6),
    "Embedding": lambda: nn.Embedding(4, 6),
    "EmbeddingBag": lambda: nn.EmbeddingBag(4, 6),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
    "RNNBase": lambda: nn.RNNBase("LSTM", 4, 6, 2),
    "RNN": lambda: nn.RNN(4, 6),
    "LSTM": lambda: nn.LSTM(4, 6, 2, bidirectional=True),
    "GRU": lambda: nn.GRU(4, 6),
    "RNNCellBase": lambda: nn.RNNCellBase(4, 6, True, 3),
    "RNNCell": lambda: nn.RNNCell(4, 6),
    "LSTMCell": lambda: nn.LSTMCell(4, 6),
    "GRUCell": lambda: nn.GRUCell(4, 6),
    "_BatchNorm": lambda: nn.modules.batchnorm._BatchNorm(4),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4, affine=False),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "BatchNorm3d": lambda: nn.BatchNorm3d(4),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "_InstanceNorm": lambda: nn.modules.instancenorm._InstanceNorm(4, affine=True),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, affine=True),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "InstanceNorm3d": lambda: nn.InstanceNorm3d(4, affine=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "LayerNorm": lambda: nn.LayerNorm((2, 4)),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "PReLU": lambda: nn.PReLU(4),
}


@pytest.mark.parametrize("name", TABLE)
def test_widths_are_those_that_the_layer_was_made_with(name: str) -> None:
    module = MADE[name]()
    assert type(module).__name__ == name
    found = attributes(module)
    assert found and found == {attribute: getattr(module, attribute) for attribute in found}
    assert layer_type(module) is layer_type_of(name) is TABLE[name]


WIDTHS: dict[str, tuple[int, int]] = {
    "Conv2d": (4, 8),
    "Linear": (4, 6),
    "Bilinear": (4, 6),
    "LSTM": (4, 6),
    "Embedding": (4, 6),
    "MultiheadAttention": (4, 4),
    "BatchNorm2d": (4, 4),
    "InstanceNorm1d": (0, 0),
    "PReLU": (0, 0),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_widths_of_inputs_and_outputs(name: str) -> None:
    assert layer_widths(MADE[name]()) == WIDTHS[name]


@pytest.mark.parametrize("name", TABLE)
def test_outputs_lie_along_the_dimension_that_the_row_names(name: str) -> None:
    module, row = MADE[name](), TABLE[name]
    weights = dict(module.named_parameters())
    weight = weights.get("weight", weights.get("q_proj_weight"))
    if row.outputs is not None and weight is not None:
        groups = getattr(module, "groups", 1) if "transposed" in row.family else 1
        assert weight.shape[row.outputs] * groups == layer_widths(module)[1]
    if row.hidden is not None:
        assert weights[row.hidden].shape[1] == module.hidden_size


def test_a_class_derived_from_torchs_has_its_row() -> None:
    class Mine(nn.Conv2d):
        pass

    assert layer_type(Mine(4, 6, 3)) is layer_type_of(class_names(Mine(4, 6, 3))[-1]) is TABLE["Conv2d"]


def test_a_class_of_that_name_that_is_not_torchs_has_none() -> None:
    class Linear(nn.Module):
        pass

    assert layer_type(Linear()) is OTHER and attributes(Linear()) == {} and layer_widths(Linear()) == (0, 0)


def test_a_class_of_another_package_is_known_by_its_name_and_attributes() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 6))

    module = Conv1D()
    assert layer_type(module) is OTHER
    module.nf = 6
    assert layer_type(module) is FOREIGN["Conv1D"] is layer_type_of("Conv1D") and attributes(module) == {
        "nf": 6
    }


def test_a_spectral_norm_in_train_mode_keeps_its_estimate_through_a_cut() -> None:
    """Reading the weight of such a layer takes a step of the power iteration, which changes its buffers."""
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 12))
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), normed, nn.ReLU(), nn.Linear(12, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = {"version": 1, "title": "t", "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%"}]}
    result = sparsify.cut(sparsify.make_plan(recipe, model, (torch.randn(4, 8),)), model)
    again = replay_cuts(model, result.cuts)
    assert model.training and result.model.training and model[2].parametrizations.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found = result.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in again.state_dict().items())
    assert found["2.parametrizations.weight.original"].shape == (12, 8)
    assert torch.equal(found["2.parametrizations.weight.0._u"], before["2.parametrizations.weight.0._u"])
