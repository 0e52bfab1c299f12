"""MACs of torch's attention follow its heads and its stream."""

import pytest
import torch
from torch import Tensor, nn

from sparsify.cost import measure
from sparsify.cost.cost_model import Costs
from sparsify.graph import build_map
from sparsify.graph.surgery import operations


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.k = nn.Linear(6, 16), nn.Linear(6, 16)
        self.att, self.fc = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        keys = self.k(y)
        return self.fc(self.att(self.a(x), keys, keys)[0].mean(1))


PAIR = (torch.randn(2, 5, 6), torch.randn(2, 7, 6))


@pytest.mark.parametrize(
    "keep",
    [{"att": [0, 2]}, {"a": list(range(5))}, {"att": [1], "a": [3, 4], "att.out_proj": [0, 9, 11]}],
    ids=str,
)
def test_the_prediction_is_what_is_counted(keep: dict[str, list[int]]) -> None:
    model = Net()
    total, macs = measure.count_macs(model, PAIR)
    map = build_map.build_map(model, PAIR, macs)
    thin, _ = operations.cut(model, map, keep, "test")
    gone = {
        name: tuple(sorted(set(range(map.by_name[name].width)) - set(kept))) for name, kept in keep.items()
    }
    assert Costs(map).dense["macs"] == total
    assert Costs(map).of(gone)["macs"] == measure.count_macs(thin, PAIR)[0]
