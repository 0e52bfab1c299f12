"""Models that write into their own weights when they are called, beside copies that share these."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sparsify
from sparsify.forward.call_model import call_model
from sparsify.forward.scratch import borrow_model, make_scratch
from sparsify.graph import precision

RECIPE = {"version": 1, "title": "t", "rules": [{"layers": "a", "group": "neuron", "sparsity": "50%"}]}


class Codebook(nn.Module):
    """The nearest of some vectors, which follow the average of what they stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = nn.Parameter(torch.randn(20, 8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.entries).argmin(-1)
        found = self.entries[nearest]
        if self.training:
            taken = functional.one_hot(nearest, len(self.entries)).to(x.dtype)
            self.entries.data.mul_(0.9).add_(0.1 * (taken.T @ x.detach()))
        return found + x - x.detach()


class Clipped(nn.Linear):
    """Its weight is cut off at every call, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            torch.clamp(self.weight, -0.1, 0.1, out=self.weight)
        return super().forward(x)


class Faded(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.mul_(0.9)
        return super().forward(x)


class Between(nn.Module):
    """Two layers whose hidden units can go, and one that writes behind them."""

    def __init__(self, writes: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.writes, self.c = nn.Linear(8, 16), nn.Linear(16, 8), writes, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.writes(self.b(self.a(x).relu())))


def make_model(kind: str) -> Between:
    torch.manual_seed(0)
    return Between(Codebook() if kind == "codebook" else {"clipped": Clipped, "faded": Faded}[kind](8, 8))


@pytest.mark.parametrize("large", [1, 2**16])
@pytest.mark.parametrize("kind", ["codebook", "clipped", "faded"])
def test_a_cut_model_has_the_weights_that_the_dense_one_had(
    kind: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "LARGE", large)
    model, x = make_model(kind), torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = sparsify.cut(sparsify.make_plan(RECIPE, model, (x,)), model)
    assert result.verdicts[0].outcome == "equal"
    (width,) = (width for width in result.cuts.widths if width.group == "a")
    kept = [unit for start, end in width.keep for unit in range(start, end)]
    assert len(kept) == 8
    wanted = before | {
        "a.weight": before["a.weight"][kept],
        "a.bias": before["a.bias"][kept],
        "b.weight": before["b.weight"][:, kept],
    }
    found = result.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_what_a_borrowed_copy_writes_lasts_as_long_as_the_call() -> None:
    model = make_scratch(make_model("faded"))
    before = model.writes.weight.detach().clone()
    copy, seen = borrow_model(model).train(), list[Tensor]()
    copy.c.register_forward_pre_hook(lambda *_: seen.append(copy.writes.weight.detach().clone()))
    call_model(copy, (torch.ones(2, 8),))
    assert torch.equal(seen[0], before * 0.9)
    assert (
        torch.equal(model.writes.weight, before)
        and copy.writes.weight.data_ptr() == model.writes.weight.data_ptr()
    )


def test_a_repair_leaves_the_dense_model_that_writes_into_its_weights() -> None:
    model, x = make_model("clipped"), torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = sparsify.cut(sparsify.make_plan(RECIPE, model, (x[:4],)), model)
    repaired = sparsify.repair(result, [x])
    assert repaired.after.error < repaired.before.error
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    model(x)  # the user's own calls write as before
    assert (
        float(model.writes.weight.detach().abs().max()) < 0.101 < float(before["writes.weight"].abs().max())
    )
