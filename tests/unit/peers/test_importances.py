"""Importances of torch-pruning on our groups, against the same importances on its own groups."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError, RecipeError
from sparsify.peers.channel_groups import make_channel_group
from sparsify.peers.importances import score_units
from sparsify.pruning.scoring import score_units as score_plan

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 4


class Net(nn.Module):
    """A residual block, a depthwise convolution and a flatten: a channel of d is nine columns of the head."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6)
        self.b, self.m = nn.Conv2d(6, 6, 3, padding=1, bias=bias), nn.BatchNorm2d(6)
        self.c = nn.Conv2d(6, 6, 3, groups=6, bias=bias)
        self.d = nn.Conv2d(6, 5, 2, bias=bias)
        self.head = nn.Linear(5 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n(self.a(x)).relu()
        x = (x + self.m(self.b(x))).relu()
        return self.head(self.d(self.c(x)).relu().flatten(1))


def make_net(**given: Any) -> Net:
    torch.manual_seed(0)
    net = Net(**given).eval()
    for norm in (net.n, net.m):
        nn.init.normal_(norm.weight)
    return net


def make_recipe(importance: str = "MagnitudeImportance", **given: Any) -> dict[str, Any]:
    criterion = {"kind": "torch_pruning", "importance": importance, **given}
    rule = {"layers": "Conv2d", "group": "filter", "sparsity": "50%", "criterion": criterion}
    return {"version": 1, "title": "t", "rules": [rule]}


def their_scores(net: Net, importance: Any, name: str) -> Tensor:
    """Of its own dependency graph's group, which begins at the layer that ours is named after."""
    graph = torch_pruning.DependencyGraph().build_dependency(net, (X,))
    layer = net.get_submodule(name)
    channels = list(range(layer.weight.shape[0]))
    group = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, channels)
    return importance(group).double()


NAMES = ("MagnitudeImportance", "TaylorImportance", "LAMPImportance", "FPGMImportance", "BNScaleImportance")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("group", ["a", "d"])
def test_scores_are_those_of_its_own_groups(name: str, group: str) -> None:
    net = make_net()
    nn.functional.cross_entropy(net(X), Y).backward()
    if name == "BNScaleImportance" and group == "d":
        pytest.skip("d has no normalisation")
    wanted = their_scores(net, getattr(torch_pruning.importance, name)(), group)
    map = sparsify.make_plan(make_recipe(), net, (X,)).map
    found = score_units(name, {}, net, map, [group], 0)[group]
    assert torch.allclose(found, wanted, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_obdc_finds_what_its_own_steps_gather() -> None:
    """Without biases, with which they fail: ours from one backward pass an example, theirs from hooks."""
    net = make_net()
    theirs = torch_pruning.importance.OBDCImportance(num_classes=4)
    for layer in (net.a, net.d):
        theirs.modules.append(layer)
        layer.register_forward_pre_hook(theirs._save_input)
        layer.register_full_backward_hook(theirs._save_grad_output)
    for x, y in ((X[:4], Y[:4]), (X[4:], Y[4:])):
        nn.functional.cross_entropy(net(x), y).backward()
        theirs.step()
    wanted = their_scores(net, theirs, "d")
    net = make_net()
    plan = sparsify.make_plan(make_recipe("OBDCImportance"), net, (X,))
    scores, _, _ = score_plan(
        plan, net, [(X[:4], Y[:4]), (X[4:], Y[4:])], sparsify.make_objective("classification")
    )
    assert torch.allclose(torch.tensor(scores["d"], dtype=torch.float64), wanted, rtol=1e-4)


def test_taylor_finds_the_mean_gradient_of_the_batches() -> None:
    net = make_net()
    plan = sparsify.make_plan(make_recipe("TaylorImportance"), net, (X,))
    batches = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    scores, _, _ = score_plan(plan, net, batches, sparsify.make_objective("classification"))
    nn.functional.cross_entropy(net(X), Y).backward()
    wanted = their_scores(net, torch_pruning.importance.TaylorImportance(), "a")
    assert torch.allclose(torch.tensor(scores["a"], dtype=torch.float64), wanted, rtol=1e-4)


def test_units_of_several_channels_get_the_mean() -> None:
    """b is grouped in two, so that filters n and n + 3 leave together."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 2, 6))
    map = sparsify.make_plan(make_recipe(), net, (X,)).map
    (name,) = (c.name for c in map.coupled if c.width == 3 and any(s.tensor == "0.weight" for s in c.slices))
    found = score_units("MagnitudeImportance", {"normalizer": None}, net, map, [name], 0)[name]
    rows = net[0].weight.square().sum((1, 2, 3))
    columns = net[2].weight.square().sum((0, 2, 3)).repeat(2)
    wanted = ((rows + columns) / 2).view(2, 3).mean(0)
    assert torch.allclose(found, wanted.double(), rtol=1e-6)


def test_the_group_is_one_of_torch_pruning() -> None:
    map = sparsify.make_plan(make_recipe(), net := make_net(), (X,)).map
    made = make_channel_group(net, map.by_name["a"])
    assert isinstance(made.group, torch_pruning.dependency.Group)
    found = [(dep.target.name.split()[0], dep.handler.__name__) for dep, _ in made.group]
    assert found[0] == ("a", "prune_out_channels")
    assert sorted(found) == [
        ("a", "prune_out_channels"),
        ("b", "prune_in_channels"),
        ("b", "prune_out_channels"),
        ("c", "prune_out_channels"),
        ("d", "prune_in_channels"),
        ("m", "prune_out_channels"),
        ("n", "prune_out_channels"),
    ]
    assert made.group[0].root_idxs == list(range(6))


# what cannot be scored

OWN = """
import torch
class Squares:
    def __init__(self, power=2): self.power = power
    def __call__(self, group):
        dep, channels = group[0]
        return dep.layer.weight[channels].abs().pow(self.power).flatten(1).sum(1)
class Short(Squares):
    def __call__(self, group): return super().__call__(group)[1:]
class Nan(Squares):
    def __call__(self, group): return super().__call__(group) * float("nan")
class Pair(Squares):
    def __call__(self, group): return (1, 2)
class Fails(Squares):
    def __call__(self, group): raise KeyError("no such layer")
class NoCall: pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_importances.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_importances", None)


def test_a_class_of_ones_own(own: None) -> None:
    net = make_net()
    plan = sparsify.make_plan(make_recipe("own_importances:Squares", args={"power": 1}, batches=0), net, (X,))
    result = sparsify.cut(plan, net)
    rows = net.d.weight.abs().flatten(1).sum(1)
    (kept,) = (w.keep for w in result.cuts.widths if w.group == "d")
    assert [i for first, end in kept for i in range(first, end)] == sorted(rows.topk(2).indices.tolist())


@pytest.mark.parametrize(
    ("importance", "given", "said"),
    [
        (
            "own_importances:Short",
            {},
            "importance 'own_importances:Short' returned scores of shape (5,) for 'a', whose first layer "
            "has 6 channels; return one score a channel",
        ),
        (
            "own_importances:Nan",
            {},
            "importance 'own_importances:Nan' returned scores for 'a' that are not finite; use other "
            "arguments, or magnitude there",
        ),
        (
            "own_importances:Pair",
            {},
            "importance 'own_importances:Pair' returned a tuple for 'a'; return a tensor with one score a "
            "channel",
        ),
        (
            "own_importances:Fails",
            {},
            "importance 'own_importances:Fails' failed on 'a': KeyError: 'no such layer'",
        ),
        (
            "own_importances:NoCall",
            {},
            "importance 'own_importances:NoCall' makes a NoCall, which cannot be called with a group; name a "
            "class with __call__(self, group)",
        ),
        (
            "own_importances:Nothing",
            {},
            "importance 'own_importances:Nothing': module 'own_importances' has no 'Nothing'",
        ),
        (
            "BNScaleImportance",
            {},
            "importance 'BNScaleImportance' gives 'd' no score: it looks at none of its layers (Conv2d, "
            "Linear); use another importance or magnitude there",
        ),
        (
            "LAMPImportance",
            {"args": {"q": 1}},
            "importance 'LAMPImportance' could not be made as LAMPImportance(q=1): TypeError: "
            "LAMPImportance.__init__() got an unexpected keyword argument 'q'",
        ),
    ],
)
def test_what_cannot_be_scored_is_told_at_its_line(
    importance: str, given: dict[str, Any], said: str, own: None, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    args = "".join(f", {key}: {value}" for key, value in given.items())
    file.write_text(
        "version: 1\ntitle: t\nrules:\n"
        "  - layers: Conv2d\n    group: filter\n    sparsity: 50%\n"
        f"    criterion: {{kind: torch_pruning, importance: '{importance}'{args}}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        sparsify.make_plan(file, make_net(), (X,))
    assert str(caught.value) == f"{file}:7:16: rules.0.criterion: {said}"


def test_layers_that_it_does_not_know_are_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    net = nn.Sequential(Scaled(), nn.ReLU(), Scaled())
    net[2].weight = nn.Parameter(torch.randn(2, 6))
    map = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "*", "protect": True}]}, net, (torch.randn(4, 3),)
    ).map
    with pytest.raises(ModelError) as caught:
        make_channel_group(net, map.coupled[0])
    name = map.coupled[0].name
    assert str(caught.value) == (
        f"torch-pruning knows none of the layers of '{name}' (0, 2); use magnitude there"
    )


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        (
            {"importance": "GroupHessianImportance"},
            "rules.0.criterion.importance: GroupHessianImportance keeps the gradients of the last example "
            "alone: its dictionary has parameters as keys and is asked for names; use 'kind: fisher', which "
            "looks at every example",
        ),
        (
            {"importance": "ActivationImportance"},
            "rules.0.criterion.importance: ActivationImportance keeps what the last batch sent alone; use "
            "'kind: activation', which takes the mean over the batches",
        ),
        (
            {"importance": "MagnitudImportance"},
            "rules.0.criterion.importance: torch-pruning has no importance 'MagnitudImportance' that can be "
            "used; did you mean 'MagnitudeImportance'?",
        ),
        (
            {"importance": "MagnitudeImportance", "batches": 2},
            "rules.0.criterion.batches: MagnitudeImportance looks at the weights alone; leave 'batches' out",
        ),
        (
            {"importance": "TaylorImportance", "batches": 0},
            "rules.0.criterion.batches: TaylorImportance looks at gradients; write at least one batch",
        ),
    ],
)
def test_the_language_refuses(criterion: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe(make_recipe(**criterion))
    assert str(caught.value) == f"<recipe>: {said}"


@pytest.mark.parametrize("group", ["depth", "tap", "weight"])
def test_groups_that_are_no_channels_are_refused(group: str) -> None:
    recipe = make_recipe()
    recipe["rules"][0]["group"] = group
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe(recipe)
    assert str(caught.value) == (
        f"<recipe>: rules.0.criterion: criterion 'torch_pruning' cannot act on group '{group}': an "
        "importance of torch-pruning scores whole channels; use magnitude"
    )


def test_a_cut_without_batches_says_what_is_missing() -> None:
    plan = sparsify.make_plan(make_recipe("TaylorImportance"), net := make_net(), (X,))
    with pytest.raises(ModelError) as caught:
        sparsify.cut(plan, net)
    assert str(caught.value) == (
        "criterion 'torch_pruning' looks at training data: pass batches, an iterable of (x, y) training "
        "batches, to cut"
    )
