"""A pruner of torch-pruning in its process, at a cost, rebuilt and checked."""

from pathlib import Path
from typing import Any

import networks
import pytest
import reference
import table
import torch
from torch import Tensor, nn

from sparsify.graph.build_map import build_map
from sparsify.peers.limited_process import PeerError, ask_process
from sparsify.peers.pruner_baseline import PeerCut, cut_by_peer, list_ignored
from sparsify.peers.requests import CutRequest, Limits

LIMITS = Limits(60.0, 4e9)
ZOO = {**networks.micro(), **networks.own()}


def make_request(net: nn.Module, inputs: Any, **given: Any) -> CutRequest:
    map = build_map(net, inputs, {})
    body: dict[str, Any] = {
        "model": net,
        "inputs": inputs,
        "ignored": list_ignored(net, map, [name for name, _ in net.named_modules()]),
        "pruner": "MetaPruner",
        "args": {},
        "importance": "MagnitudeImportance",
        "importance_args": {},
        "gradients": None,
        "squares": None,
        "what": "macs",
        "share": 0.6,
        "seed": 0,
    }
    return CutRequest(**{**body, **given})


def cut_net(net: nn.Module, inputs: Any, fresh: Any, limits: Limits = LIMITS, **given: Any) -> PeerCut:
    map = build_map(net, inputs, {})
    return cut_by_peer(net, map, make_request(net, inputs, **given), limits, "plan", [fresh])


def draw(seed: int, *shape: int) -> tuple[Tensor]:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)),)


def make_plain(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        norm or nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.Flatten(),
        nn.Linear(64, 4),
    ).eval()


IMAGES, FRESH = draw(0, 2, 3, 6, 6), draw(1, 3, 3, 6, 6)


@pytest.mark.parametrize("what", ["macs", "params", "bytes"])
@pytest.mark.parametrize("share", [0.3, 0.75])
def test_the_cost_is_met_and_no_larger_than_it_must_be(what: str, share: float) -> None:
    net = make_plain()
    made = cut_net(net, IMAGES, FRESH, what=what, share=share)

    def count(model: nn.Module) -> float:
        if what == "macs":
            convs = [
                (m, 16 if i == 0 else 4) for i, m in enumerate(m for m in model if isinstance(m, nn.Conv2d))
            ]
            return sum(m.weight.numel() * places for m, places in convs) + model[5].weight.numel()
        tensors = [*model.parameters()]
        if what == "bytes":
            return sum(4 * t.numel() for t in tensors) + sum(
                t.numel() * t.element_size() for t in model.buffers()
            )
        return sum(t.numel() for t in tensors)

    left = count(made.model) / count(net)
    assert left <= share
    assert left > share - 0.2  # one channel of eight is the least step
    assert made.verdict.outcome == "equal" and made.verdict.difference <= 1e-12 < made.verdict.control


def test_the_cut_equals_an_independent_reference() -> None:
    """Of the tests, which replays the log on indices."""
    net = make_plain()
    made = cut_net(net, IMAGES, FRESH)
    assert reference.difference(reference.CutModel(made.model, made.log), net, IMAGES) <= 1e-9
    assert [(w.group, w.width) for w in made.log.widths] == [("0", 8), ("3", 16)]


def test_the_dense_model_stays_as_it_is() -> None:
    net = make_plain().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cut_net(net, IMAGES, FRESH)
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_statistics_of_a_normalisation_are_told_apart() -> None:
    made = cut_net(make_plain(nn.GroupNorm(1, 8)), IMAGES, FRESH)
    assert made.verdict.outcome == "statistics change"
    assert made.verdict.difference <= 1e-12


@pytest.mark.parametrize("name", ["micro.channel shuffle", "micro.rolled", "micro.permute, then flatten"])
def test_silently_wrong_cuts_of_the_zoo_are_called_wrong(name: str) -> None:
    entry = ZOO[name]
    torch.manual_seed(0)
    net, inputs = entry.build().eval(), entry.inputs()
    table.perturb(net, inputs)
    made = cut_net(net, inputs, entry.fresh(3, 1))
    assert made.verdict.outcome == "wrong"
    assert made.verdict.difference > 1e-2
    assert reference.difference(reference.CutModel(made.model, made.log), net, inputs) > 1e-2


# no result


class Slow(nn.Module):
    """Never ends where gradients are followed, as a graph is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        while self.fc.weight.requires_grad and torch.is_grad_enabled():
            pass
        return self.fc(x)


class Large(Slow):
    """Takes a gigabyte there."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            x = x + torch.zeros(2**28).sum()
        return self.fc(x)


class Kills(Slow):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            import os

            os.kill(os.getpid(), 9)
        return self.fc(x)


class Split(nn.Module):
    """Cuts that take no notice of a view break it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(-1, 2, 4).flip(1).reshape(-1, 8))


ROWS = draw(0, 2, 4)


@pytest.mark.parametrize(
    ("net", "limits", "said"),
    [
        (Slow(), Limits(0.5, 4e9), "timed out after 0.5 s"),
        (Large(), Limits(60.0, 2.0**28), "raised: it takes more than 256 MiB of memory"),
        (Kills(), LIMITS, "raised: its process ended with signal 9, as where memory ends"),
    ],
    ids=["slow", "large", "killed"],
)
def test_limits_end_the_process(net: nn.Module, limits: Limits, said: str) -> None:
    request = CutRequest(
        net, ROWS, (), "MetaPruner", {}, "MagnitudeImportance", {}, None, None, "params", 0.5, 0
    )
    with pytest.raises(PeerError) as caught:
        ask_process(request, limits)
    assert str(caught.value) == said


def test_what_the_pruner_raises_is_one_sentence() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(PeerError) as caught:
        cut_net(net, ROWS, ROWS, importance="BNScaleImportance", args={"round_to": "eight"})
    assert str(caught.value) == ("raised: no ratio comes down to 60.0 % of the MACs: the least is 100 %")
    with pytest.raises(PeerError) as caught:
        cut_net(net, ROWS, ROWS, args={"round_to": "eight"})
    assert str(caught.value) == ("raised: TypeError: unsupported operand type(s) for %: 'int' and 'str'")


def test_a_cut_model_that_does_not_run() -> None:
    with pytest.raises(PeerError) as caught:
        cut_net(Split(), ROWS, ROWS)
    assert str(caught.value).startswith(
        "raised: its cut model does not run, at ratio 0.1: RuntimeError: shape "
    )


def test_a_new_process_where_there_is_no_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_plain()
    request = make_request(net, IMAGES)
    assert ask_process(request, LIMITS, forks=False) == ask_process(request, LIMITS, forks=True)
    net[2].register_forward_hook(lambda *_: None)
    with pytest.raises(PeerError) as caught:
        ask_process(make_request(net, IMAGES), LIMITS, forks=False)
    assert str(caught.value).startswith("raised: the model cannot be handed over: ")


def test_layers_that_stay_are_instances_of_the_copy() -> None:
    net = make_plain()
    map = build_map(net, IMAGES, {})
    assert list_ignored(net, map, ["0", "3", "5"]) == ("5",), "the output's layer"
    assert list_ignored(net, map, ["0"]) == ("3", "5")
    made = cut_net(net, IMAGES, FRESH, ignored=("3", "5"))
    assert (made.model[0].out_channels < 8, made.model[3].out_channels) == (True, 16)


@pytest.mark.parametrize("pruner", ["GroupNormPruner", "BNScalePruner", "GrowingRegPruner"])
def test_every_pruner_takes_the_arguments(pruner: str) -> None:
    made = cut_net(make_plain(), IMAGES, FRESH, pruner=pruner, args={"global_pruning": True})
    assert made.verdict.outcome == "equal" and made.model[0].out_channels < 8


OWN = """
import torch_pruning

class Halves(torch_pruning.pruner.BasePruner):
    def __init__(self, *args, pruning_ratio, **given):
        super().__init__(*args, pruning_ratio=0.5, **given)
"""


def test_a_pruner_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pruners.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = cut_net(make_plain(), IMAGES, FRESH, pruner="own_pruners:Halves")
    assert (made.model[0].out_channels, made.model[3].out_channels) == (4, 8)


def test_gradients_reach_its_importance() -> None:
    """With gradients that are zero for all channels but two, the others go."""
    net = make_plain()
    gradients = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    gradients["0.weight"][[2, 5]] = 1.0
    made = cut_net(
        net,
        IMAGES,
        FRESH,
        share=0.3,
        ignored=("3", "5"),
        importance="TaylorImportance",
        gradients=gradients,
    )
    (kept,) = (width.keep for width in made.log.widths if width.group == "0")
    assert kept == ((2, 3), (5, 6))


def test_squares_reach_obdc() -> None:
    net = make_plain()
    squares = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    squares["0.weight"][[1, 7]] = 1.0
    gradients = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    made = cut_net(
        net,
        IMAGES,
        FRESH,
        share=0.3,
        ignored=("3", "5"),
        importance="OBDCImportance",
        gradients=gradients,
        squares=squares,
    )
    (kept,) = (width.keep for width in made.log.widths if width.group == "0")
    assert kept == ((1, 2), (7, 8))
