"""Units told by rows: the cut tensors are sliced by hand, in any order, and changed."""

import pytest
import torch
from torch import Tensor, nn

from sparsify.graph import build_map
from sparsify.graph.adoption.unit_matching import Match, find_strays, match_units, sort_tensors


class Pair(nn.Module):
    """Two convolutions with norms, their maps concatenated, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()
        both = torch.cat([y, self.second(y).relu()], 1)
        return self.head(both.mean((2, 3)))


INPUTS = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
FIRST = [9, 2, 7, 0, 4, 11, 5]
SECOND = [6, 1, 3]


def make_dense() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {name: tensor.clone() for name, tensor in Pair().eval().state_dict().items()}


def cut_by_hand(dense: dict[str, Tensor], first: list[int], second: list[int]) -> dict[str, Tensor]:
    """What somebody's own script would leave, in the script's own order of units."""
    cut = dict(dense)
    norm = [f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    for name in ("first.weight", "first.bias", *norm):
        cut[name] = dense[name][first]
    cut["second.weight"] = dense["second.weight"][second][:, first]
    cut["second.bias"] = dense["second.bias"][second]
    cut["head.weight"] = dense["head.weight"][:, [*first, *(12 + unit for unit in second)]]
    return cut


MAP = build_map.build_map(Pair().eval(), INPUTS, {})
WIDTHS = {"first": len(FIRST), "second": len(SECOND)}


def test_equal_rows_tell_units_in_any_order() -> None:
    dense = make_dense()
    cut = cut_by_hand(dense, FIRST, SECOND)
    found = match_units(MAP, WIDTHS, dense, cut)
    assert found == {"first": Match(tuple(FIRST), exact=True), "second": Match(tuple(SECOND), exact=True)}
    ordered = sort_tensors(MAP, found, dense, cut)
    wanted = cut_by_hand(dense, sorted(FIRST), sorted(SECOND))
    assert all(torch.equal(ordered[name], wanted[name]) for name in wanted)
    assert find_strays(MAP, found, dense, cut) == {}


def test_a_fresh_norm_tells_nothing_and_the_convolution_does() -> None:
    """All rows of a new BatchNorm are equal: they must not decide."""
    dense = make_dense()
    assert len(dense["norm.weight"].unique()) == 1
    assert match_units(MAP, WIDTHS, dense, cut_by_hand(dense, FIRST, SECOND))["first"].units == tuple(FIRST)


def test_equal_units_are_told_apart_by_nothing_and_the_first_are_taken() -> None:
    dense = make_dense()
    for name in ("first.weight", "first.bias"):
        dense[name][[1, 8]] = dense[name][2].clone()
    dense["second.weight"][:, [1, 8]] = dense["second.weight"][:, [2]]
    dense["head.weight"][:, [1, 8]] = dense["head.weight"][:, [2]]
    keep = [0, 2, 4, 5, 7, 9, 11]
    found = match_units(MAP, WIDTHS, dense, cut_by_hand(dense, keep, [1, 3, 6]))
    assert found["first"].units == (0, 1, 4, 5, 7, 9, 11) and found["first"].distance == 0
    assert found["second"] == Match((1, 3, 6), exact=True)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
def test_trained_rows_are_matched_by_likeness(noise: float) -> None:
    dense = make_dense()
    first, second = sorted(FIRST), sorted(SECOND)
    torch.manual_seed(8)
    cut = {
        name: value + noise * value.std() * torch.randn_like(value) if value.numel() > 1 else value
        for name, value in cut_by_hand(dense, first, second).items()
    }
    found = match_units(MAP, WIDTHS, dense, cut)
    assert found["first"].units == tuple(first) and found["second"].units == tuple(second)
    assert not found["first"].exact and 0 < found["first"].distance < 2 * noise


def test_the_likest_rows_are_the_best_of_all_ascending_choices() -> None:
    """Dynamic programming against every choice, on rows that are like nothing."""
    from itertools import combinations

    from sparsify.graph.adoption.unit_matching import _align_rows, _Rows

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        dense, found = torch.randn(7, 3, generator=generator), torch.randn(4, 3, generator=generator)
        units, distance = _align_rows([_Rows("t", dense, found)])
        costs = {
            choice: float((dense[list(choice)] - found).double().square().sum())
            for choice in combinations(range(7), 4)
        }
        best = min(costs, key=lambda choice: costs[choice])
        assert units == best
        assert distance == pytest.approx((costs[best] / float(found.double().square().sum())) ** 0.5)


def test_a_consumer_of_other_units_is_named() -> None:
    """The layer behind lost other inputs than the layer before lost outputs: shapes fit, numbers do not."""
    dense = make_dense()
    cut = cut_by_hand(dense, sorted(FIRST), sorted(SECOND))
    wrong = [0, 1, 2, 3, 4, 5, 6]
    cut["second.weight"] = dense["second.weight"][sorted(SECOND)][:, wrong]
    found = match_units(MAP, WIDTHS, dense, cut)
    assert found["first"].units == tuple(sorted(FIRST))
    assert find_strays(MAP, found, dense, cut) == {"second.weight": "first"}
