"""The ONNX file of a cut network by its dense one's pattern: the same as exported, or not used."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsify.cost.measure import runtimes
from sparsify_schemas.target import Cpu

pytest.importorskip("onnxruntime")
TARGET = Cpu(kind="cpu", runtime="onnxruntime", batch=2)
IMAGE = (torch.randn(2, 3, 8, 8),)


class Net(nn.Module):
    """What writes widths into a graph: a depthwise convolution, a flattening, attention over heads of 4."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, groups=width)
        self.patches = nn.Conv2d(width, 12, 2, 2)
        self.q, self.v, self.out = (
            nn.Linear(12, heads * 4),
            nn.Linear(12, heads * 4),
            nn.Linear(heads * 4, hidden),
        )
        self.head = nn.Linear(9 * hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(self.depthwise(self.norm(self.first(x)).relu())).flatten(2).transpose(1, 2)
        q, v = (part(x).unflatten(2, (-1, 4)).transpose(1, 2) for part in (self.q, self.v))
        mixed = (q @ q.transpose(2, 3)).softmax(-1) @ v
        result: Tensor = self.head(self.out(mixed.transpose(1, 2).flatten(2)).flatten(1))
        return result


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that torch.onnx is made to follow."""
    seen: list[nn.Module] = []

    def pattern(model: nn.Module, inputs: Any) -> runtimes.Pattern:
        seen.append(model)
        return made(model, inputs)

    made = runtimes.make_pattern
    monkeypatch.setattr(runtimes, "make_pattern", pattern)
    return seen


@pytest.mark.parametrize("cut", [(8, 3, 10), (5, 3, 10), (8, 2, 10), (8, 3, 7), (3, 1, 4)])
def test_a_cut_network_runs_by_the_pattern_of_the_dense_one(
    cut: tuple[int, int, int], exports: list[nn.Module]
) -> None:
    torch.manual_seed(0)
    dense, thin = Net(8, 3, 10).eval(), Net(*cut).eval()
    call = runtimes.prepare(thin, IMAGE, TARGET, runtimes.make_shared_pattern(dense, IMAGE, TARGET))
    found: Any = call()
    assert exports == [dense]
    assert torch.allclose(torch.from_numpy(found[0]), thin(*IMAGE), atol=1e-5)


def test_a_network_that_computes_something_else_is_exported_anew(exports: list[nn.Module]) -> None:
    """Its weights have the same names and shapes, so that nothing but the outputs tells."""
    torch.manual_seed(0)
    dense, other = Net(8, 3, 10).eval(), Net(8, 3, 10).eval()
    other.norm.eps = 3.0
    call = runtimes.prepare(other, IMAGE, TARGET, runtimes.make_shared_pattern(dense, IMAGE, TARGET))
    found: Any = call()
    assert exports == [dense, other]
    assert torch.allclose(torch.from_numpy(found[0]), other(*IMAGE), atol=1e-5)


def test_a_network_with_other_weights_is_exported_anew(exports: list[nn.Module]) -> None:
    dense = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    shorter = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    runtimes.prepare(shorter, IMAGE, TARGET, runtimes.make_shared_pattern(dense, IMAGE, TARGET))()
    assert exports == [dense, shorter]
