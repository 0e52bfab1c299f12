"""Which tensors a model holds, by their names."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sparsify.graph.held_constants import list_constants
from sparsify.graph.names import all_names, all_tensors, named_tensors


class Holder(nn.Module):
    """Holds tensors of every kind as plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.positions = torch.ones(5, 3)
        self.index = torch.arange(3)
        self.scale = torch.tensor(2.0)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.layer(x + self.positions)
        return self.kept


def test_constants_are_floating_tensors_with_places_that_nothing_computes() -> None:
    model = Holder()
    model(torch.zeros(5, 3))
    assert [name for name, _ in list_constants(model)] == ["positions"]
    assert [(name, saved) for name, _, saved in named_tensors(model)] == [
        ("layer.weight", True),
        ("layer.bias", True),
        ("positions", False),
    ]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_a_hook_computes_is_no_constant() -> None:
    masked = prune.l1_unstructured(nn.Linear(3, 4), "weight", 2)
    normed = nn.utils.weight_norm(nn.Linear(3, 4))
    for module in (masked, normed):
        with torch.no_grad():
            module(torch.zeros(3))  # makes the weight anew, as a leaf
        assert isinstance(vars(module)["weight"], Tensor) and not list(list_constants(module))


def test_a_constant_has_a_name_for_each_name_of_its_module() -> None:
    model = nn.ModuleDict({"one": Holder()})
    model["two"] = model["one"]
    assert [name for name in all_tensors(model) if "positions" in name] == ["one.positions", "two.positions"]


class Cached(nn.Module):
    """Computes its anchors when it first runs, as the heads of detectors do."""

    anchors = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sizes = nn.Linear(3, 4), torch.ones(4)

    def _apply(self, fn: object, recurse: bool = True) -> "Cached":
        self.sizes = fn(self.sizes)  # type: ignore[operator]
        return super()._apply(fn, recurse)  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        def fill() -> None:
            self.anchors = torch.ones(4)

        fill()
        return self.layer(x) * self.anchors * self.sizes


def test_what_a_forward_call_keeps_is_no_constant() -> None:
    model = Cached()
    model(torch.zeros(3))
    assert "anchors" in vars(model) and [name for name, _ in list_constants(model)] == ["sizes"]
    assert "sizes" not in all_names(model) and list(all_tensors(model))[-1] == "sizes"


class Filled(nn.Module):
    """Leaves to methods of its own what it has from the beginning, and fills a cache as it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self._fill()
        self._extend(5)
        self.reset()

    def _fill(self) -> None:
        self._place()
        self.sizes = torch.ones(4)

    def _place(self) -> None:
        self.positions = torch.ones(5, 3)

    def _extend(self, length: int) -> None:
        self.cache = torch.ones(length, 3)

    def reset(self) -> None:
        self.slopes = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > len(self.cache):
            self._extend(len(x))
        return self.layer(x + self.positions + self.cache[: len(x)]) * self.sizes * self.slopes


def test_private_methods_that_only_the_constructor_calls_belong_to_it() -> None:
    model = Filled()
    model(torch.zeros(5, 3))
    assert [name for name, _ in list_constants(model)] == ["positions", "sizes"]
