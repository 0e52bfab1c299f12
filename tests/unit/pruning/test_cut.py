"""make_plan and cut: what is theirs to change, and what a caller may get wrong."""

import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.errors import ModelError, RecipeError
from sparsify.pruning.cut import Result

RECIPE = {"version": 1, "title": "t", "rules": [{"layers": "a", "group": "neuron", "sparsity": "50%"}]}
X = (torch.randn(3, 6, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Restless(Net):
    """Counts its calls, draws random numbers in eval mode as well, and changes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        return super().forward(F.dropout(x.sub_(0.5), 0.1))


class Odd(Net):
    """Takes pixels and a number without any dimension."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return super().forward(x.to(self.a.weight.dtype)) * scale


def cut(net: nn.Module, inputs: Any = X, recipe: Mapping[str, Any] = RECIPE) -> Result:
    return sparsify.cut(sparsify.make_plan(recipe, net, inputs), net)


def test_model_inputs_and_random_numbers_are_left_as_they_were() -> None:
    net = Restless()
    net.b.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    inputs, generator = (X[0].clone(),), torch.get_rng_state()
    plan = sparsify.make_plan(RECIPE, net, inputs)
    result = sparsify.cut(plan, net, inputs=inputs)
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.equal(inputs[0], X[0])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert (net.seen, net.training, net.b.training) == (0, True, False)
    assert result.dense is net


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (X[0], r"inputs is a single tensor; pass a tuple, \(x,\)"),
        ((), "inputs is empty"),
        (
            (X[0], 3j),
            (
                r"inputs holds a complex \('1'\); an argument can be a tensor, a number, text, true, "
                r"false, None, or a list"
            ),
        ),
        (
            (X[0], 3),
            (
                r"a forward call with inputs 3x6, 3 failed: TypeError: "
                r"Net.forward\(\) takes 2 positional arguments"
            ),
        ),
        ((X[0][:0],), r"the first input has shape \(0, 6\); its first dimension must be a batch"),
        (
            (torch.tensor(1.0),),
            (
                "a forward call with inputs  failed: RuntimeError: "
                "both arguments to linear need to be at least 1D"
            ),
        ),
    ],
)
def test_inputs_that_are_none_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        sparsify.make_plan(RECIPE, Net(), inputs)


def test_a_result_shows_itself_in_a_line() -> None:
    shown = repr(cut(Net()))
    assert shown.startswith(
        "<Result: 50.0 % of the MACs, 51.4 % of the parameters; cut verified: "
        "equal to the masked model (difference "
    )
    assert shown.count("\n") == 0


def test_names_and_version_without_importing_torch() -> None:
    code = (
        "import sparsify, sys; print(sparsify.__version__, 'torch' in sys.modules, "
        "set(sparsify.__all__) <= set(dir(sparsify)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == [version("sparsify-recipes"), "False", "True"]


def test_a_lazy_layer_is_named_until_it_has_its_shape() -> None:
    net = Net()
    net.a = nn.LazyLinear(8)
    with pytest.raises(
        ModelError, match=r"^'a\.weight' has no shape yet, as its layer is lazy; run the model once"
    ):
        sparsify.make_plan(RECIPE, net, X)
    net(X[0])
    assert cut(net).verdicts[0].outcome == "equal"


def test_inputs_of_any_type_and_rank_are_drawn_again_for_the_proof() -> None:
    result = cut(Odd(), (torch.randint(0, 255, (3, 6), dtype=torch.uint8), torch.tensor(2.0)))
    assert [v.outcome for v in result.verdicts] == ["equal"]
    (call,) = result.plan.map.inputs
    assert call.method == "forward"
    assert [(a.tensor.shape, a.tensor.dtype, a.tensor.batch) for a in call.arguments if a.tensor] == [
        ((3, 6), "uint8", 0),
        ((), "float32", None),
    ]


def test_a_plan_cuts_only_the_model_that_it_was_made_of() -> None:
    result = cut(Net())
    with pytest.raises(
        ModelError, match=r"the plan was made of another model: 'a.weight' was \(8, 6\), it is \(4, 6\) now"
    ):
        sparsify.cut(result.plan, result.model)
    with pytest.raises(ModelError, match=r"'a.weight' was \(8, 6\), there is none now"):
        sparsify.cut(result.plan, nn.Sequential(nn.Linear(6, 8)))


def test_a_model_that_keeps_its_activations_is_cut_all_the_same() -> None:
    net = Net()
    net.last = net(X[0])
    assert [v.outcome for v in cut(net).verdicts] == ["equal"]
    net.several = [net(X[0])]
    assert [v.outcome for v in cut(net).verdicts] == ["equal"]
    net.lock = Lock()
    with pytest.raises(ModelError) as caught:
        cut(net)
    assert str(caught.value) == (
        "the model cannot be copied: cannot pickle '_thread.lock' object; "
        "copy.deepcopy must be able to copy what it holds"
    )


def test_scores_of_half_precision_do_not_overflow() -> None:
    net = Net().half()
    with torch.no_grad():
        net.a.weight.mul_(1000)  # the sum of squares of a row passes 65504
    assert dict(sparsify.make_plan(RECIPE, net, (X[0].half(),)).preview) == {"a": 4}


def test_batches_given_to_cut_stand_in_for_data_of_the_recipe() -> None:
    """Inputs 0 and 1 alone carry something, so the units that read nothing else are worth nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    rule = {"layers": "0", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "taylor"}}
    weight, bias = model.get_parameter("0.weight").data, model.get_parameter("0.bias").data
    weight.fill_(0.1)
    bias.fill_(0.0)
    weight[::2, :2] = 0.0
    weight[::2, 2:] = 9.0
    x = torch.tensor([[1.0, 2.0, 0.0, 0.0]]).repeat(8, 1)
    batches = [(x, torch.arange(8) % 2)] * 2
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, (x,))
    result = sparsify.cut(plan, model, batches=batches)
    assert torch.equal(result.model.get_parameter("0.weight"), weight[1::2])
    with pytest.raises(ModelError) as caught:
        sparsify.cut(plan, model)
    assert str(caught.value) == (
        "criterion 'taylor' looks at training data: pass batches, an iterable of (x, y) training batches, "
        "to cut"
    )


def test_a_model_of_shapes_alone_can_be_planned() -> None:
    with torch.device("meta"):
        net = nn.Sequential(
            nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)
        )
    recipe = {
        "version": 1,
        "title": "t",
        "budget": {"macs": "30%"},
        "rules": [{"layers": ["0", "2"], "group": "neuron"}],
    }
    plan = sparsify.make_plan(recipe, net, (torch.empty(2, 64, device="meta"),))
    assert (
        plan.assignments[0].coupled == ("0", "2")
        and plan.preview == ()
        and plan.map.params == sum(p.numel() for p in net.parameters())
    )
    assert plan.notes[-1].startswith("the model has shapes and no weights")
    with pytest.raises(RecipeError, match="cannot be reached"):
        sparsify.make_plan(
            {**recipe, "budget": {"macs": "0.0001%"}}, net, (torch.empty(2, 64, device="meta"),)
        )
