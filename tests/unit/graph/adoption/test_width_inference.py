"""Widths told by shapes: the shapes come from tensors that are sliced by hand."""

import pytest
import torch
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.graph import build_map
from sparsify.graph.adoption.width_inference import infer_widths


class Branches(nn.Module):
    """Two convolutions side by side, concatenated, a sum with a shortcut, and maps flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.right = nn.Conv2d(3, 10, 3, padding=1)
        self.mix = nn.Conv2d(16, 8, 1)
        self.back = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(torch.cat([self.left(x), self.right(x)], 1).relu())
        return self.head((y + self.norm(self.back(y).relu())).flatten(1))


INPUTS = (torch.randn(2, 3, 4, 4),)
WHOLE = {name: tuple(tensor.shape) for name, tensor in Branches().state_dict().items()}
CUT = WHOLE | {
    "left.weight": (4, 3, 3, 3),
    "left.bias": (4,),
    "right.weight": (5, 3, 3, 3),
    "right.bias": (5,),
    "mix.weight": (7, 9, 1, 1),
    "mix.bias": (7,),
    "back.weight": (7, 7, 3, 3),
    "back.bias": (7,),
    **{f"norm.{name}": (7,) for name in ("weight", "bias", "running_mean", "running_var")},
    "head.weight": (5, 7 * 16),
}


def test_widths_follow_from_shapes() -> None:
    model_map = build_map.build_map(Branches().eval(), INPUTS, {})
    assert infer_widths(model_map, CUT) == {"left": 4, "right": 5, "mix": 7}
    assert infer_widths(model_map, WHOLE) == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"left.weight": (8, 3, 3, 3)},
            "'left': dimension 0 of 'left.weight' has 8 of 6: it is wider than the dense model",
        ),
        (
            {"left.weight": (6, 2, 3, 3)},
            "'left': dimension 1 of 'left.weight' has 2 of 3, and no unit of the model holds a part of it",
        ),
        (
            {"head.weight": (5, 7 * 16 - 3)},
            "'head': dimension 1 of 'head.weight' has 109 of 128: units of 'mix' hold 16 each, and leave as "
            "a whole",
        ),
        (
            {"norm.weight": (8,)},
            "'norm': dimension 0 of 'norm.weight' has 8 of 8: the layers that are coupled with it kept other "
            "widths",
        ),
        (
            {"head.weight": (4, 7 * 16), "head.bias": (4,)},
            "'head' has 4 of 5 units, and it feeds the network's output",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, tuple[int, ...]], said: str) -> None:
    model_map = build_map.build_map(Branches().eval(), INPUTS, {})
    with pytest.raises(ModelError) as caught:
        infer_widths(model_map, CUT | changes)
    first, *lines = str(caught.value).splitlines()
    assert first == "the file is not a cut of the dense model that can be told:"
    assert f"- {said}" in lines


def test_another_rank_is_another_model() -> None:
    model_map = build_map.build_map(Branches().eval(), INPUTS, {})
    with pytest.raises(ModelError) as caught:
        infer_widths(model_map, CUT | {"left.weight": (4, 27)})
    assert str(caught.value) == (
        "'left.weight' has 2 dimensions in the file and 4 in the dense model; it is not a cut of this model"
    )


def test_a_sum_of_two_unknowns_is_not_guessed() -> None:
    """Only the layer behind a concatenation is in the file: how much each part lost cannot be told."""
    model_map = build_map.build_map(Branches().eval(), INPUTS, {})
    with pytest.raises(ModelError) as caught:
        infer_widths(model_map, {"mix.weight": (8, 9, 1, 1), "mix.bias": (8,)})
    assert str(caught.value).splitlines()[1] == (
        "- 'mix': dimension 1 of 'mix.weight' has 9 of 16, and how much of it belongs to 'left' and 'right' "
        "cannot be told"
    )
