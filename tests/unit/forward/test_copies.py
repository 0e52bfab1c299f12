"""Copies of models that keep tensors of a forward call, or functions written for themselves, through the
whole job."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm, weight_norm

import sparsify
from sparsify.errors import ModelError
from sparsify.forward.copies import copy_model
from sparsify.graph.model_map import UNREACHED

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")

RECIPE = {
    "version": 1,
    "title": "t",
    "targets": {"here": {"kind": "cpu", "threads": 1}},
    "rules": [
        {
            "layers": "a",
            "group": "filter",
            "sparsity": "50%",
            "penalty": {"kind": "group_lasso", "strength": 1e-3},
        }
    ],
}
X = (torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)


def plain(module: nn.Module) -> nn.Module:
    return module


class Net(nn.Module):
    """Two convolutions and a head; `keep` is called with the module and its activations in every forward
    call."""

    def __init__(
        self,
        wrap: Callable[[nn.Module], nn.Module] = plain,
        keep: Callable[[Any, Tensor], None] | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = wrap(nn.Conv2d(3, 8, 3, padding=1)), wrap(nn.Conv2d(8, 6, 3, padding=1))
        self.head = nn.Linear(6, 2)
        self.keep = keep
        self.seen: list[Tensor] = []
        self.named: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.keep is not None:
            self.keep(self, y)
        return self.head(self.b(y).relu().mean((2, 3)))


def last(net: Any, y: Tensor) -> None:
    net.last = y


def every(net: Any, y: Tensor) -> None:
    net.seen.append(y)


def by_name(net: Any, y: Tensor) -> None:
    net.named["a"] = (y, [y.sum()])


def in_an_object(net: Any, y: Tensor) -> None:
    net.state = SimpleNamespace(loss=y.square().mean(), views=[{"first": y[0]}])


def as_a_buffer(net: Any, y: Tensor) -> None:
    net.register_buffer("mean", y.mean(), persistent=False)


NETS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: Net(weight_norm),
    "spectral_norm": lambda: Net(spectral_norm),
    "last activation": lambda: Net(keep=last),
    "list of activations": lambda: Net(keep=every),
    "dictionary": lambda: Net(keep=by_name),
    "object": lambda: Net(keep=in_an_object),
    "buffer": lambda: Net(keep=as_a_buffer),
    "two of them": lambda: Net(weight_norm, keep=every),
}


def trained(model: nn.Module, steps: int = 1) -> torch.optim.Optimizer:
    """Leaves in the model what a forward call with gradients leaves."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X[0]).square().mean().backward()
        optimizer.step()
    model(X[0])
    return optimizer


@pytest.mark.parametrize("name", NETS)
def test_a_model_with_tensors_of_a_forward_call_goes_all_the_way(name: str, tmp_path: Path) -> None:
    """make_plan, attach, train, cut, train on, save_run, load_run; the dense model is still the caller's
    own."""
    model = NETS[name]()
    optimizer = trained(model)
    plan = sparsify.make_plan(RECIPE, model, X)
    assert dict(plan.preview) == {"a": 4}
    with sparsify.attach(plan, model, optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            model(X[0]).square().mean().backward()
            optimizer.step()
    before = model(X[0])
    result = sparsify.cut(plan, model, optimizer=optimizer, follow=[model])
    assert result.verdicts[0].outcome in ("equal", "statistics change") and result.model.a.out_channels == 4
    assert torch.equal(result.model(X[0]), result.followers[0](X[0]))
    for p in model.parameters():  # the copy holds nothing of the dense model
        p.data.zero_()
    thin = result.model(X[0])
    assert (
        thin.grad_fn is not None and thin.abs().sum() > 0 and not torch.equal(thin, torch.zeros_like(before))
    )
    trained(result.model)  # and it trains on

    fresh = NETS[name]()
    trained(fresh)
    result = sparsify.cut(sparsify.make_plan(RECIPE, fresh, X), fresh)
    trained(result.model)
    run = sparsify.save_run(result, tmp_path / "run", inputs=X, timing=0.01)
    again = sparsify.load_run(run, build=NETS[name])
    torch.testing.assert_close(again(X[0]), result.model.eval()(X[0]))


def test_what_a_copy_keeps_of_a_forward_call_has_its_numbers_and_no_history() -> None:
    model = Net(keep=in_an_object)
    trained(model)
    model.same = [model.state.views[0]["first"], model.state.views[0]["first"]]
    result = sparsify.cut(sparsify.make_plan(RECIPE, model, X), model)
    kept = result.dense.state
    assert kept.loss.grad_fn is not None  # the caller's own is as it was
    made = result.model.state
    assert made.loss.grad_fn is None and made.views[0]["first"].grad_fn is None
    assert result.model.same[0] is result.model.same[1] is not model.same[0]


class Closures(nn.Module):
    """Its layers are called by functions that were written with the module at hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)
        self.first = lambda x: self.a(x).relu()
        self.steps = [self.first, lambda x, layer=self.b: layer(x)]
        own = self.head

        def last(x: Tensor, *, layer: nn.Module = self.head) -> Tensor:
            return own(x) + 0 * layer(x)

        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.last(x.mean((2, 3)))


def test_functions_that_a_module_holds_use_the_layers_of_the_copy() -> None:
    model = Closures()
    plan = sparsify.make_plan(RECIPE, model, X)
    assert {c.name: c.protected for c in plan.map.coupled if c.name in "ab"} == {"a": None, "b": UNREACHED}
    result = sparsify.cut(plan, model)
    wanted = result.model(X[0])
    assert result.verdicts[0].outcome == "equal" and result.model.a.out_channels == 4
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(result.model(X[0]), wanted) and wanted.abs().sum() > 0


def test_hooks_share_what_lies_outside_the_model_and_use_what_lies_inside_the_copy() -> None:
    seen: list[tuple[int, ...]] = []
    model = Net()

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(tuple(model.a.weight.shape))

    model.a.register_forward_hook(note)
    result = sparsify.cut(sparsify.make_plan(RECIPE, model, X), model)
    seen.clear()
    result.model(X[0])
    model(X[0])
    assert seen == [(4, 3, 3, 3), (8, 3, 3, 3)]


def test_what_cannot_be_copied_is_named() -> None:
    model = Net()
    model.stream = (i for i in range(3))
    with pytest.raises(ModelError) as caught:
        sparsify.make_plan(RECIPE, model, X)
    assert str(caught.value) == (
        "the model cannot be copied: cannot pickle 'generator' object; "
        "copy.deepcopy must be able to copy what it holds"
    )


class KeepsScales(nn.Module):
    """Computes its scales from a parameter once in eval mode; they are dropped where a mode is set."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.weight = nn.Parameter(torch.randn(8))
        self.scales: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "KeepsScales":
        super().train(mode)
        self.scales = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.b(self.a(x) * self.weight.exp()[:, None, None])
        if "cpu" not in self.scales:
            self.scales["cpu"] = self.weight.exp()[:, None, None].detach()
        return self.b(self.a(x) * self.scales["cpu"])


def test_what_a_module_computed_and_keeps_is_computed_anew_in_copies_and_cut_models() -> None:
    model = KeepsScales().eval()
    model.b.train()
    model(X[0])
    copy: Any = copy_model(model)
    assert not copy.scales and model.scales
    assert [module.training for module in copy.modules()] == [False, False, True]
    result = sparsify.cut(sparsify.make_plan(RECIPE, model, X), model)
    assert result.model.a.out_channels == 4
    assert reference.difference(result, model, reference.fresh(X, 2, 1)) <= 1e-9
    assert model.scales["cpu"].shape == (8, 1, 1) and model.b.training


class CannotBeTrained(KeepsScales):
    def train(self, mode: bool = True) -> "CannotBeTrained":
        raise NotImplementedError


def test_a_module_whose_modes_cannot_be_set_is_copied_as_it_is() -> None:
    model = CannotBeTrained()
    model.training = False
    model(X[0])
    copy: Any = copy_model(model)
    assert not copy.training and torch.equal(copy.scales["cpu"], model.scales["cpu"])
    assert copy.scales["cpu"] is not model.scales["cpu"]
