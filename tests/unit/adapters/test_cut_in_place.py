"""A module that is cut in place and the copy of the dense one each compute with their own weights."""

from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

import sparsify
from sparsify.adapters.cut_in_place import cut_in_place
from sparsify.pruning.cut import Result

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Accelerate keeps its precision for the whole process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def make() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def leave(net: Net) -> None:
    pass


def prepare_bf16(net: Net) -> None:
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    assert accelerator.prepare_model(net) is net and "forward" in vars(net)


def bind_method(net: Net) -> None:
    net.forward = MethodType(Net.forward, net)  # type: ignore[method-assign]


def bind_partial(net: Net) -> None:
    """As hooks of Accelerate do."""
    net.forward = partial(Net.forward, net)  # type: ignore[method-assign]


def wrap_function(net: Net) -> None:
    inner = net.forward

    def forward(x: Tensor) -> Tensor:
        return inner(x)

    net.forward = forward  # type: ignore[method-assign]


def compile_it(net: Net) -> None:
    net.compile(backend="eager")
    net(X)


def cut_net(net: Net) -> Result:
    rules = [{"layers": "first", "group": "neuron", "sparsity": "50%"}]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, make(), (X[:2],))
    return cut_in_place(plan, net, torch.optim.SGD(net.parameters(), 0.1), None)


def compute(net: Any, x: Tensor) -> Tensor:
    """From the definition: what the weights of a module say."""
    hidden = torch.relu(x @ net.first.weight.T + net.first.bias)
    found: Tensor = hidden @ net.last.weight.T + net.last.bias
    return found


CHANGES = (leave, prepare_bf16, bind_method, bind_partial, wrap_function, compile_it)


@pytest.mark.filterwarnings("ignore")  # of Accelerate and of the compiler
@pytest.mark.parametrize(
    "change", [leave, prepare_bf16, bind_method, bind_partial, wrap_function, compile_it]
)
def test_each_computes_with_its_own_weights(change: Callable[[Net], None]) -> None:
    net = make()
    change(net)
    result = cut_net(net)
    assert result.model is net and net.first.out_features == 4 and result.dense.first.out_features == 8  # type: ignore[comparison-overlap]
    close = {"rtol": 0.05, "atol": 0.02} if change is prepare_bf16 else {"rtol": 1e-5, "atol": 1e-6}
    with torch.no_grad():
        torch.testing.assert_close(net(X), compute(net, X), **close)
        torch.testing.assert_close(result.dense(X), compute(make(), X), **close)
    assert not torch.equal(net(X), result.dense(X))
    assert "layers refitted" in repr(sparsify.repair(result, [(X,)]))
    with torch.no_grad():
        net.last.bias += 1  # goes on being trained
        torch.testing.assert_close(net(X), compute(net, X), **close)


@pytest.mark.filterwarnings("ignore")
def test_a_module_that_was_prepared_is_unwrapped_to_itself() -> None:
    net = make()
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    accelerator.prepare_model(net)
    result = cut_net(net)
    for one in (net, result.dense):
        assert accelerator.unwrap_model(one, keep_fp32_wrapper=False) is one
        with torch.no_grad():
            torch.testing.assert_close(one(X), compute(one, X))
