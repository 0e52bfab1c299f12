"""Auxiliary heads that run in train mode alone: with one example, and where train mode fails half way."""

import pytest
import torch
from torch import Tensor, nn

import sparsify

RULE = {"layers": "Conv2d", "group": "filter", "sparsity": "50%", "criterion": {"kind": "random"}}
RECIPE = {"version": 1, "title": "t", "rules": [RULE]}


class Auxiliary(nn.Module):
    """A head on a single place, as that of Inception: its normalisation trains on no single example."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fails = fails
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 4)
        self.aux, self.aux_norm, self.aux_head = nn.Conv2d(8, 12, 8), nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = torch.relu(self.norm(self.first(x)))
        output: Tensor = self.head(torch.relu(self.second(hidden)).mean((2, 3)))
        if not self.training:
            return output
        read = self.aux(hidden)
        if self.fails:
            raise RuntimeError("no training here")
        return output, self.aux_head(torch.relu(self.aux_norm(read)).flatten(1))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_head_on_a_single_place_is_cut_whatever_the_example_inputs(batch: int) -> None:
    model = Auxiliary().eval()
    plan = sparsify.make_plan(RECIPE, model, (torch.randn(batch, 3, 8, 8),))
    group = plan.map.by_name["aux"]
    assert {"aux_norm.weight", "aux_head.weight"} <= {part.tensor for part in group.slices}
    result = sparsify.cut(plan, model)
    assert result.model.get_submodule("aux").weight.shape[0] < 12  # type: ignore[union-attr, index]
    result.model.train()(torch.randn(3, 3, 8, 8))


def test_what_a_failed_call_in_train_mode_has_read_is_protected() -> None:
    model = Auxiliary(fails=True).eval()
    plan = sparsify.make_plan(RECIPE, model, (torch.randn(1, 3, 8, 8),))
    reason = "it is read in train mode alone, and the model does not run there with these inputs"
    assert plan.map.by_name["aux"].protected == reason
    result = sparsify.cut(plan, model)
    assert result.model.get_submodule("second").weight.shape[0] <= 6  # type: ignore[union-attr, index]
