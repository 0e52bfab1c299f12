"""Operators on tensors without values: results as torch makes them, and numbers that keep their values."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.forward.call_model import move_inputs_to_meta
from sparsify.forward.opaque import without_compiling
from sparsify.graph.copy import copy_to_meta
from sparsify.graph.trace.meta_kernels import FastMeta, KnownResults

CALLS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "broadcast": lambda x, y: x * y[:1] + 2.0,
    "transposed": lambda x, y: (x.transpose(1, 2) * 2).softmax(-1),
    "sliced": lambda x, y: -x[..., 2:],
    "product": lambda x, y: x @ y.transpose(1, 2),
    "joined": lambda x, y: torch.cat([x, y], 1).mean(1),
    "two results": lambda x, y: x.max(1),
    "in place": lambda x, y: x.clone().add_(y),
    "view": lambda x, y: x.view(2, -1).unsqueeze(1),
    "normalised": lambda x, y: F.layer_norm(x, (6,)),
    "half": lambda x, y: (x.half() * y).float(),
}


def describe(value: object) -> object:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    assert isinstance(value, tuple)
    return tuple(map(describe, value))


@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_torch_also_when_they_are_known_already(name: str) -> None:
    x, y = (torch.empty(2, 5, 6, device="meta") for _ in range(2))
    wanted = describe(CALLS[name](x, y))
    real = describe(CALLS[name](torch.ones(2, 5, 6), torch.ones(2, 5, 6)))
    known: KnownResults = {}
    with torch.no_grad(), without_compiling(), FastMeta(known):
        found = [describe(CALLS[name](x, y)) for _ in range(2)]
    assert found == [wanted, wanted] and wanted == real


def test_other_shapes_strides_types_and_numbers_are_other_operators() -> None:
    x = torch.empty(4, 6, device="meta")
    with torch.no_grad(), without_compiling(), FastMeta({}):
        assert (x * 1.0).stride() == (6, 1) and (x.t() * 1.0).stride() == (1, 6)
        assert (x.double() * 1.0).dtype == torch.float64
        assert x.sum(0).shape == (6,) and x.sum(1).shape == (4,)
        assert x.sum(0, keepdim=True).shape == (1, 6)


class Branching(nn.Module):
    """Looks tokens up, branches on a mask, and makes positions on the device of its activations."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.places = nn.Embedding(7, 8)
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)
        self.register_buffer("order", torch.arange(7).flip(0))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        places = torch.arange(ids.shape[1], device=x.device)
        if bool((places == 0).all()):
            raise AssertionError("the positions were lost")
        order: Tensor = self.order  # type: ignore[assignment]
        mask = torch.ones(len(places), len(places), dtype=torch.bool, device=x.device).tril()
        if bool(mask.all()):
            raise AssertionError("the mask was lost")
        x = x + self.places(order[: len(places)] * 1)
        weights = mask.to(x.dtype) / mask.sum(1, keepdim=True)
        return self.b(self.a(weights @ x).relu())


def test_numbers_keep_their_values_where_tensors_have_none() -> None:
    model = Branching().eval()
    ids = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))
    bare = copy_to_meta(model)
    assert torch.equal(bare.get_buffer("order"), model.get_buffer("order"))
    (moved,) = move_inputs_to_meta((ids,))
    with torch.no_grad(), without_compiling(), FastMeta({}):
        out = bare(moved)
    assert out.is_meta and out.shape == (2, 5, 3)
    rule = {"layers": "a", "group": "neuron", "sparsity": "50%"}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, (ids,))
    result = sparsify.cut(plan, model)
    assert result.verdicts[0].outcome == "equal" and result.model.a.out_features == 3


def test_a_model_on_meta_that_looks_at_its_numbers_is_planned() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Branching())
    model[0].order = torch.arange(7).flip(0)
    ids = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))
    rule = {"layers": "0.a", "group": "neuron", "sparsity": "50%"}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, (ids,))
    assert plan.map.by_name["0.a"].protected is None and plan.map.by_name["0.a"].width == 6
