"""Lists of lengths that a forward call reads: to split by, with equal lengths among them, or to compare with.

Every cut is compared with tests/reference.py, which zeroes the logged indices in the dense model.
"""

import re
from collections.abc import Sequence
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import RecipeError
from sparsify.pruning.cut import Result

IMAGES = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)


class MixedKernels(nn.Module):
    """Depthwise convolutions with a kernel for each part, as in MixNet."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, sum(lengths), 1)
        self.parts = nn.ModuleList(
            nn.Conv2d(length, length, 2 * number + 1, padding=number, groups=length)
            for number, length in enumerate(lengths)
        )
        self.last = nn.Conv2d(sum(lengths), 4, 1)
        self.lengths = lengths

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.first(x).relu(), self.lengths, 1)
        made = [layer(part) for layer, part in zip(self.parts, parts, strict=True)]
        return self.last(torch.cat(made, 1).relu())


class SplitsTwice(MixedKernels):
    """Two tensors are split by one list."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__(lengths)
        self.second = nn.Conv2d(3, sum(lengths), 1)

    def forward(self, x: Tensor) -> Tensor:
        others = torch.split(self.second(x).relu(), self.lengths, 1)
        return super().forward(x) + sum(part.mean(1, keepdim=True) for part in others)


RULE = {"layers": "first", "group": "filter", "sparsity": "50%", "criterion": {"kind": "random"}}


def cut(model: nn.Module, keep: dict[str, list[int]] | None = None) -> Result:
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [RULE]}, model, IMAGES)
    chooser: Any = None if keep is None else lambda *_args, **_options: keep
    result = sparsify.cut(plan, model) if keep is None else sparsify.cut(plan, model, chooser=chooser)
    for seed, batch in ((1, 1), (2, 4)):
        assert reference.difference(result, model, reference.fresh(IMAGES, batch, seed)) <= 1e-9
    return result


def make(kind: type[MixedKernels], lengths: Sequence[int]) -> Any:
    torch.manual_seed(0)
    return kind(lengths).eval()


@pytest.mark.parametrize("container", [list, tuple])
def test_equal_parts_leave_together(container: Any) -> None:
    model = make(MixedKernels, container((8, 8)))
    thin: Any = cut(model).model
    assert thin.lengths == container((4, 4)) and model.lengths == container((8, 8))
    assert [layer.groups for layer in thin.parts] == [4, 4] and thin.first.out_channels == 8


def test_parts_of_which_some_are_equal_leave_one_by_one() -> None:
    kept = {"first": [0, 1, 2, 3, 4], "first#2": [1], "first#3": [0, 1, 3]}
    thin: Any = cut(make(MixedKernels, [8, 4, 4]), kept).model
    assert thin.lengths == [5, 1, 3] and [layer.groups for layer in thin.parts] == [5, 1, 3]


def test_a_list_that_two_tensors_are_split_by_stays() -> None:
    with pytest.raises(RecipeError, match=re.escape("got split_sizes=[8, 8]; select other layers")):
        cut(make(SplitsTwice, [8, 8]))


class OwnNorm(nn.Module):
    """A root mean square norm that reads its length from a tuple, as timm's does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalized_shape = (width,)
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, self.weight)


def test_a_tuple_of_one_length_that_a_norm_reads_follows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), OwnNorm(16), nn.Linear(16, 8), OwnNorm(8), nn.Linear(8, 3)).eval()
    rows = (torch.randn(2, 6),)
    rule = {"layers": ["0", "2"], "group": "neuron", "sparsity": "50%", "criterion": {"kind": "random"}}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, rows)
    result = sparsify.cut(plan, model)
    thin: Any = result.model
    assert thin[0].out_features < 16 and thin[1].normalized_shape == (thin[0].out_features,)
    assert thin[2].out_features < 8 and thin[3].normalized_shape == (thin[2].out_features,)
    for seed, batch in ((1, 1), (2, 4)):
        assert reference.difference(result, model, reference.fresh(rows, batch, seed)) <= 1e-9
