"""Criterion reconstruction on experts, against mixtures written out with experts that are not there."""

from collections.abc import Callable, Sequence

import mixtures
import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.pruning.criteria.expert_errors import count_runs
from sparsify.pruning.criteria.reconstruction import CannotScoreError, reconstruction_scores
from sparsify.pruning.planning.plan import Plan

EXPERTS = 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Maps(nn.Module):
    """Each image goes to two of several convolutions, by its mean."""

    def __init__(self, off: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.router = nn.Linear(12, EXPERTS)
        self.experts = nn.ModuleList(nn.Conv2d(12, 12, 1) for _ in range(EXPERTS))
        self.off = off

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x.mean((2, 3)))
        scores[..., list(self.off)] = -torch.inf
        best, places = scores.topk(2, -1)
        shares = torch.zeros_like(scores).scatter(-1, places, best.softmax(-1))
        made = torch.stack([one(x) for one in self.experts], 1)
        return (shares[:, :, None, None, None] * made).sum(1)


class Network(nn.Module):
    """A mixture, and a linear layer on the mean over its places."""

    def __init__(self, mix: nn.Module, axis: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 12, 1) if axis == 1 else nn.Linear(6, 12)
        self.mix, self.head, self.axis = mix, nn.Linear(12, 3), axis

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.mix(self.stem(x)).movedim(self.axis, -1).flatten(1, -2).mean(1))
        return made


def plan_of(model: nn.Module, x: Tensor, **rule: object) -> Plan:
    rules = [{"layers": "mix", "group": "expert", "sparsity": "20%", **rule}]
    return sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model.eval(), (x[:2],))


def score(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    plan = plan_of(model, batches[0])
    (name,) = (name for assignment in plan.assignments for name in assignment.coupled)
    pairs = [(x, x[:, 0]) for x in batches]
    return reconstruction_scores(model, plan.map, [name], pairs, 0.01, 7)[name]


@torch.no_grad()
def compute_error(model: Network, x: Tensor, gone: tuple[int, ...]) -> float:
    """Squared change at each place of the mixture along what the outputs feel of it, mean over examples.

    <outputs, v> with centred outputs has the gradient (v - mean v) W / places, W of the last layer.
    """
    v = draw(len(x), 3, seed=7)
    felt = (v - v.mean(1, keepdim=True)) @ model.head.weight  # [examples, channels]
    arriving = model.stem(x)
    dense = model.mix(arriving)
    model.mix.off = gone
    changed = model.mix(arriving)
    model.mix.off = ()
    change = (changed - dense).movedim(model.axis, -1).flatten(1, -2)  # [examples, places, channels]
    along = torch.einsum("nc,npc->np", felt, change) / change.shape[1]
    return float(along.double().square().sum() / len(x))


@pytest.mark.parametrize(
    ("make", "axis", "shape"), [(mixtures.Cosine, -1, (12, 5, 6)), (Maps, 1, (60, 6, 3, 2))]
)
def test_experts_go_by_the_change_that_the_outputs_feel(
    make: Callable[[], nn.Module], axis: int, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(3)
    model, x = Network(make(), axis), draw(*shape)
    found = score(model, [x])
    gone: tuple[int, ...] = ()
    errors = [0.0]
    while len(gone) < EXPERTS - 2:  # two are chosen for every place
        left = [expert for expert in range(EXPERTS) if expert not in gone]
        trials = {expert: compute_error(model, x, (*gone, expert)) for expert in left}
        cheapest = min(left, key=lambda expert: trials[expert])
        gone = (*gone, cheapest)
        errors.append(trials[cheapest])
    assert tuple(found.argsort()[: len(gone)].tolist()) == gone
    # What is taken from the curve's hull adds up to its end.
    assert float(found[list(gone)].sum()) == pytest.approx(errors[-1], rel=1e-4)
    stay = [expert for expert in range(EXPERTS) if expert not in gone]
    assert bool((found[stay] > found[list(gone)].max()).all())


def test_of_two_experts_that_do_the_same_one_goes_however_large_they_are() -> None:
    torch.manual_seed(3)
    mix = mixtures.TopTwo(EXPERTS, top_k=1)
    model, x = mixtures.Net(mix), draw(32, 5, 6)
    with torch.no_grad():
        for own, other in zip(mix.experts[4].parameters(), mix.experts[1].parameters(), strict=True):
            other.mul_(2)
            own.copy_(other)
        mix.gate.weight[4] = mix.gate.weight[1] * 1.001
        mix.experts[4][0].bias += 1e-6  # so that both can be told apart
    biases = [one[0].bias.detach() for one in mix.experts]
    gone = {}
    for kind in ("magnitude", "reconstruction"):
        plan = plan_of(model, x, criterion={"kind": kind})
        result = sparsify.cut(plan, model, batches=[(x, x[:, 0])])
        left = [one[0].bias for one in result.model.get_submodule("mix.experts").children()]
        gone[kind] = {at for at, one in enumerate(biases) if not any(map(one.equal, left))}
    assert gone["reconstruction"] < {1, 4} and not gone["magnitude"] & {1, 4}


def test_a_mixture_that_is_not_called_as_a_module_is_refused() -> None:
    class Apart(mixtures.Net):
        """Calls the parts of its mixture by themselves."""

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            made = torch.stack([one(y) for one in self.mix.experts], -2)
            y = y + (self.mix.router(y).softmax(-1)[..., None] * made).sum(-2)
            out: Tensor = self.head(y.mean(1))
            return out

    torch.manual_seed(3)
    message = (
        "criterion 'reconstruction' cannot score a group: 'mix', which holds the experts and the router of "
        "'mix', is not called as a module; use magnitude or taylor there"
    )
    with pytest.raises(CannotScoreError, match=f"^{message}$"):
        score(Apart(mixtures.Soft()), [draw(8, 5, 6)])


@pytest.mark.parametrize(
    ("width", "least", "runs"), [(8, 2, 8 + 7 + 6 + 5 + 4 + 3), (2, 2, 0), (17, 1, 17 + sum(range(2, 16)))]
)
def test_how_often_a_mixture_runs_is_known_before(width: int, least: int, runs: int) -> None:
    assert count_runs(width, least) == runs
