"""Double precision without storing large weights in it."""

import pytest
import torch
from torch import Tensor, nn

from sparsify.forward.copies import copy_model
from sparsify.graph import precision
from sparsify.graph.precision import keep_double, widen_model


class Mixed(nn.Module):
    """Large weights as a table, in products, normalised, sliced, and as a plain factor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(90, 24)
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(24, 24))
        self.convolution = nn.Conv1d(24, 24, 3, padding=1)
        self.recurrent = nn.GRU(24, 24, batch_first=True)
        self.bare = nn.Parameter(torch.randn(48, 24))

    def forward(self, numbers: Tensor) -> Tensor:
        x = self.norm(self.table(numbers))
        x = self.convolution(x.transpose(1, 2)).transpose(1, 2)
        x, _ = self.recurrent(x.to(self.bare.dtype))
        x = x @ self.bare[:24] + torch.einsum("btc,dc->btd", x, self.bare[24:])
        return x @ self.table.weight.T * self.bare.float().norm()


@pytest.fixture(autouse=True)
def small_weights_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LARGE", 64)
    monkeypatch.setattr(precision, "PIECE", 24 * 24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_a_copy_in_double_precision_does(dtype: torch.dtype) -> None:
    model = Mixed().to(dtype).eval()
    numbers = torch.randint(0, 90, (2, 7), generator=torch.Generator().manual_seed(1))
    wide = widen_model(model)
    with torch.no_grad():
        with keep_double(wide):
            found = wide(numbers)
        double = copy_model(model).double()
        with keep_double(double):
            wanted = double(numbers)
    assert found.dtype == torch.float64
    assert float((found - wanted).abs().max()) <= 1e-12 * float(wanted.abs().max())
    assert wide.bare.data_ptr() == model.bare.data_ptr() and wide.bare.dtype == dtype
    assert model.bare.dtype == dtype and wide.recurrent.weight_hh_l0.dtype == torch.float64


def test_what_is_small_is_cast_and_apart() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 16)).eval()
    wide = widen_model(model)
    assert {p.dtype for p in (*wide[0].parameters(), *wide[1].buffers())} >= {torch.float64}
    with torch.no_grad():
        wide[0].weight.zero_()
    assert bool(model[0].weight.any())
