"""Laws that every member of a closed union obeys; a new member is tested without editing this file."""

import math
from typing import Any, get_args

import mixtures
import pytest
import torch
from pydantic import BaseModel, TypeAdapter
from torch import nn

import sparsify
from sparsify.cost import measure
from sparsify.cost.measure import availability
from sparsify.errors import ModelError, TargetError
from sparsify.graph.group_index import Layout, Part
from sparsify.graph.group_layouts import element_layout, layer_layout
from sparsify.pruning.criteria import scores as criterion_scores
from sparsify.recipe import schedules
from sparsify.training import penalties
from sparsify.training.optimizers import make_optimizer
from sparsify.training.penalties import Action
from sparsify_schemas import group
from sparsify_schemas.criterion import Criterion
from sparsify_schemas.penalty import Penalty
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.schedule import Constant, Schedule, Scheduled
from sparsify_schemas.stage import Optimizer
from sparsify_schemas.target import Target
from sparsify_schemas.written import to_written

EXAMPLES: dict[str, Any] = {
    "use": "RMSprop",
    "strength": 0.1,
    "value": 0.5,
    "from": 0.25,
    "to": 1.0,
    "at": ["2it"],
    "lr": 0.1,
    "importance": "MagnitudeImportance",
}


def members(union: Any) -> list[type[BaseModel]]:
    inner = get_args(union)[0]
    return list(get_args(inner)) or [inner]


def made(kind: type[BaseModel], **given: Any) -> Any:
    """A member with its required fields filled in from EXAMPLES."""
    values: dict[str, Any] = {"kind": get_args(kind.model_fields["kind"].annotation)[0], **given}
    for name, field in kind.model_fields.items():
        key = field.alias or name
        if field.is_required() and key not in values:
            example = EXAMPLES[key]
            values[key] = example[0] if key == "at" and kind.__name__ == "OneShot" else example
    return kind.model_validate(values)


def ids(union: Any) -> list[str]:
    return [kind.__name__ for kind in members(union)]


@pytest.mark.parametrize(
    "kind",
    [k for u in (Penalty, Criterion, Schedule, Optimizer, Target) for k in members(u)],
    ids=[i for u in (Penalty, Criterion, Schedule, Optimizer, Target) for i in ids(u)],
)
def test_every_member_is_documented(kind: type[BaseModel]) -> None:
    assert kind.__doc__ and len(kind.__doc__) > 10
    undocumented = [n for n, f in kind.model_fields.items() if n != "kind" and not f.description]
    assert not undocumented


@pytest.mark.parametrize(
    "kind",
    [k for u in (Penalty, Criterion, Schedule, Optimizer, Target) for k in members(u)],
    ids=[i for u in (Penalty, Criterion, Schedule, Optimizer, Target) for i in ids(u)],
)
def test_every_member_reads_back_as_it_is_written(kind: type[BaseModel]) -> None:
    """Defaults are written out into a run's recipe, so they must not be refused there."""
    spec = made(kind)
    adapter: TypeAdapter[Any] = TypeAdapter(Scheduled if kind is Constant else kind)
    assert adapter.validate_python(to_written(spec), by_alias=True, by_name=False) == spec


@pytest.mark.parametrize("kind", members(Schedule), ids=ids(Schedule))
def test_schedules(kind: type[BaseModel]) -> None:
    """Finite and not negative everywhere; constant before its window and after it; does not depend on when
    it is asked."""
    spec = made(kind)
    values = [schedules.value(spec, step, 5, 20) for step in range(40)]
    assert all(math.isfinite(v) and v >= 0 for v in values)
    assert values[20:] == [values[20]] * 20
    assert values == [schedules.value(spec, step, 5, 20) for step in range(40)]


def rows(weights: dict[str, torch.Tensor]) -> Layout:
    """One group per row of w, each with its scale of a normalisation."""
    plain = layer_layout([("w", 0)], weights)
    (part,) = plain.parts
    return Layout((part, Part("n.weight", part.axes)), plain.names, plain.count)


def action_of(kind: type[BaseModel], solver: str, weights: dict[str, torch.Tensor]) -> Action:
    """What a penalty does on `rows`; one that acts on chosen groups, on all of them."""
    spec = made(kind, **({"solver": solver} if "solver" in kind.model_fields else {}))
    layout = element_layout(weights, weights) if kind.__name__ == "VariationalDropout" else rows(weights)
    action = penalties.build(spec, [layout], weights, share=0.5)
    if "chosen" in action.state:
        action.state["chosen"].fill_(True)
    return action


def solvers(kind: type[BaseModel]) -> tuple[str, ...]:
    return get_args(kind.model_fields["solver"].annotation) if "solver" in kind.model_fields else ("its own",)


SOLVED = [(kind, solver) for kind in members(Penalty) for solver in solvers(kind)]


@pytest.mark.parametrize(
    ("kind", "solver"), SOLVED, ids=[f"{kind.__name__}-{solver}" for kind, solver in SOLVED]
)
class TestPenalties:
    def weights(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return {
            "w": torch.randn(4, 3, 2, 2, dtype=torch.float64),
            "n.weight": torch.randn(4, dtype=torch.float64),
        }

    def act(
        self,
        kind: type[BaseModel],
        solver: str,
        weights: dict[str, torch.Tensor],
        amount: float,
        loss: float = 0.0,
    ) -> torch.Tensor:
        """The groups as rows, after one step of gradient descent with learning rate 1 around which the
        penalty acts; the loss is `loss` * sum w^3 / 3."""
        action = action_of(kind, solver, weights)
        gradients = {name: loss * weight.square() for name, weight in weights.items()}
        assert any((action.before, action.gradient, action.after, action.proximal)), "it does something"
        if action.restore is not None:
            action.restore(weights, gradients, 1.0)
        if action.before is not None:
            action.before(weights, gradients, 1.0)
        if action.gradient is not None:
            action.gradient(weights, gradients, amount)
        for name in weights:
            weights[name] = weights[name] - gradients[name]
        if action.after is not None:
            action.after(weights, amount)
        if action.proximal is not None:
            action.proximal(weights, dict.fromkeys(weights, amount))
        if action.show is not None:
            action.show(weights, False)
        return self.flat(weights)

    def flat(self, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([weights["w"].flatten(1), weights["n.weight"][:, None]], 1)

    def test_strength_zero_changes_nothing(self, kind: type[BaseModel], solver: str) -> None:
        if kind.__name__ == "Dns":
            pytest.skip("it has no strength: what is small goes")
        assert torch.equal(self.act(kind, solver, self.weights(), 0.0), self.flat(self.weights()))

    def test_zero_weights_stay_zero(self, kind: type[BaseModel], solver: str) -> None:
        zeros = {name: torch.zeros_like(weight) for name, weight in self.weights().items()}
        assert bool((self.act(kind, solver, zeros, 0.1) == 0).all())

    def test_never_grows_and_never_flips_a_weight(self, kind: type[BaseModel], solver: str) -> None:
        before, after = (
            self.flat(self.weights()),
            self.act(
                kind,
                solver,
                self.weights(),
                {"Agp": 0.3, "VariationalDropout": 1e-5}.get(kind.__name__, 1e-3),
            ),
        )
        assert bool((after.abs() <= before.abs()).all()) and bool((after * before >= 0).all())
        assert bool((after.abs() < before.abs()).any()) == (kind.__name__ not in ("Gsm", "L0")), (
            "gsm leaves the shrinking to the optimizer's decay, and gates need many steps to close"
        )

    def test_groups_are_interchangeable(self, kind: type[BaseModel], solver: str) -> None:
        order = [2, 0, 3, 1]
        shuffled = {name: weight[order] for name, weight in self.weights().items()}
        wanted = self.act(kind, solver, self.weights(), 0.05, loss=0.1)[order]
        torch.testing.assert_close(
            self.act(kind, solver, shuffled, 0.05, loss=0.1), wanted, rtol=1e-12, atol=1e-12
        )

    def test_state_is_what_the_next_step_needs(self, kind: type[BaseModel], solver: str) -> None:
        """An action built anew and given the state goes on as the old one does."""
        first, second = (action_of(kind, solver, self.weights()) for _ in range(2))

        def step(action: Action, weights: dict[str, torch.Tensor]) -> torch.Tensor:
            gradients = {name: weight.cos() for name, weight in weights.items()}
            if action.restore is not None:
                action.restore(weights, gradients, 1.0)
            if action.before is not None:
                action.before(weights, gradients, 1.0)
            if action.after is not None:
                action.after(weights, 0.25)
            if action.show is not None:
                action.show(weights, True)
            return torch.cat([self.flat(weights), self.flat(gradients)])

        step(first, self.weights())
        for name, value in second.state.items():
            value.copy_(first.state[name])
        once, again = ({name: weight.flip(0) for name, weight in self.weights().items()} for _ in range(2))
        assert torch.equal(step(first, once), step(second, again))
        assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)


OF_MODELS = ("Reconstruction", "TorchPruning")
"""these look at a model: tests/unit/pruning/criteria has their laws"""
LAYOUT_CRITERIA = [kind for kind in members(Criterion) if kind.__name__ not in OF_MODELS]


@pytest.mark.parametrize("kind", LAYOUT_CRITERIA, ids=lambda kind: kind.__name__)
class TestCriteria:
    """On six groups: rows of a weight, each with its scale of a normalisation."""

    def scores(self, kind: type[BaseModel], weights: dict[str, torch.Tensor], seed: int = 0) -> torch.Tensor:
        def looks() -> Any:
            for scale in (1.0, 2.0):
                for weight in weights.values():
                    weight.grad = scale * torch.ones_like(weight)
                yield

        return criterion_scores.group_scores(made(kind), rows(weights), weights, looks, seed)

    def weights(self) -> dict[str, torch.Tensor]:
        own = torch.Generator().manual_seed(0)
        return {"w": torch.randn(6, 3, 2, 2, generator=own), "n.weight": torch.randn(6, generator=own)}

    def test_one_finite_score_per_group_not_negative(self, kind: type[BaseModel]) -> None:
        scores = self.scores(kind, self.weights())
        assert scores.shape == (6,) and bool(scores.isfinite().all()) and bool((scores >= 0).all())

    def test_the_same_seed_gives_the_same_scores(self, kind: type[BaseModel]) -> None:
        assert torch.equal(self.scores(kind, self.weights(), 3), self.scores(kind, self.weights(), 3))

    def test_a_dead_group_is_never_preferred(self, kind: type[BaseModel]) -> None:
        weights = self.weights()
        weights["w"][2], weights["n.weight"][2] = 0, 0
        if kind.__name__ not in ("Random", "Activation"):  # these do not look at the weights
            assert int(self.scores(kind, weights).argmin()) == 2

    def test_single_weights_are_scored_in_their_shape(self, kind: type[BaseModel]) -> None:
        weight = self.weights()["w"]

        def backward() -> Any:
            weight.grad = torch.ones_like(weight)
            yield

        if kind.__name__ in ("BnScale", "Fpgm"):
            with pytest.raises(
                ModelError,
                match=(
                    r"^criterion '(bn_scale' scores whole channels|fpgm' scores whole filters), "
                    r"not single weights$"
                ),
            ):
                criterion_scores.weight_scores(made(kind), weight, backward, 0)
        else:
            assert criterion_scores.weight_scores(made(kind), weight, backward, 0).shape == weight.shape


@pytest.mark.parametrize("kind", members(Optimizer), ids=ids(Optimizer))
def test_optimizers_take_a_step(kind: type[BaseModel]) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(made(kind), model)
    for settings in optimizer.param_groups:
        settings["lr"] = 0.1
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)


RUNTIMES = [
    (kind, runtime)
    for kind in members(Target)
    for runtime in get_args(kind.model_fields["runtime"].annotation)
]


@pytest.mark.parametrize(
    ("kind", "runtime"), RUNTIMES, ids=[f"{kind.__name__}-{runtime}" for kind, runtime in RUNTIMES]
)
def test_every_runtime_times_a_model_or_says_why_not(kind: type[BaseModel], runtime: str) -> None:
    target, net = made(kind, runtime=runtime), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    if availability.describe_state(target) != "here":
        with pytest.raises(TargetError, match=r"^target 'x' (runs|asks)"):
            measure.check_target("x", target)
    elif runtime != "compile":  # which takes a compiler ten seconds
        found = measure.measure_latency(net, net, (torch.randn(2, 4),), "x", target, seconds=0.05)
        assert found.dense_ms > 0 and runtime in found.description and found.measured


class Attention(nn.Module):
    """Two heads of three features each."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.q, self.k, self.v, self.out, self.last = (
            nn.Linear(i, o) for i, o in ((5, 6), (5, 6), (5, 6), (6, 5), (5, 3))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            p(x).view(*x.shape[:2], self.num_heads, 3).transpose(1, 2) for p in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.last(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


class Recurrent(nn.Module):
    """An LSTM of two layers and both directions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.last = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.rnn(x)[0][:, -1])


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inside(x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList(Around() for _ in range(4)), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.Flatten(),
        nn.Linear(5 * 16, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )


# Every group type: a network that has it, the layer to name, and what one forward call takes.
SHOWN: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "filter": (convolutional, "0", (2, 1, 8, 8)),
    "channel": (convolutional, "2", (2, 1, 8, 8)),
    "neuron": (convolutional, "4", (2, 1, 8, 8)),
    "weight": (convolutional, "2", (2, 1, 8, 8)),
    "head": (Attention, "q", (2, 4, 5)),
    "hidden": (Recurrent, "rnn", (2, 4, 5)),
    "expert": (lambda: mixtures.build(mixtures.Soft), "mix", mixtures.SHAPE),
    "depth": (Residual, "blocks.*", (2, 5)),
    "shape": (convolutional, "2", (2, 1, 8, 8)),
    "tap": (convolutional, "2", (2, 1, 8, 8)),
    "block": (convolutional, "4", (2, 1, 8, 8)),
    "n:m": (convolutional, "4", (2, 1, 8, 8)),
}
WRITTEN = {"block": "7x4", "n:m": "2:4"}
"""how a recipe says it, where that is not the type's name"""


@pytest.mark.parametrize("kind", group.KINDS)
def test_every_group_type_goes_through_a_plan_and_a_cut(kind: group.Kind) -> None:
    torch.manual_seed(0)
    assert kind in SHOWN, f"say in SHOWN which network has group '{kind}'"
    build, layer, shape = SHOWN[kind]
    model = build()
    asked = {} if kind == "n:m" else {"sparsity": "50%"}
    recipe = Recipe.model_validate(
        {"version": 1, "title": "t", "rules": [{"layers": layer, "group": WRITTEN.get(kind, kind), **asked}]}
    )
    assert recipe.rules[0].group is not None and group.kind_of(recipe.rules[0].group) == kind
    plan = sparsify.make_plan(recipe, model, (torch.randn(shape),))
    result = sparsify.cut(plan, model)
    if group.in_one_tensor(recipe.rules[0].group):
        (done,) = result.cuts.zeroed
        weight = model.get_parameter(f"{layer}.weight")
        assert done.weights == weight.numel() and done.zeros / done.weights == pytest.approx(0.5, abs=0.1)
        assert result.verdicts[0].outcome == (
            "equal" if result.cuts.executions and result.cuts.executions[0].form != "dense" else "nothing cut"
        )
    else:
        assert result.verdicts[0].outcome == "equal"
        assert sum(w.kept for w in result.cuts.widths) / sum(
            w.width for w in result.cuts.widths
        ) == pytest.approx(0.5, abs=0.08)
        assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert kind in group.MEANING


@pytest.mark.parametrize("kind", group.KINDS)
def test_a_lasso_reaches_every_group_type(kind: group.Kind) -> None:
    torch.manual_seed(0)
    build, layer, shape = SHOWN[kind]
    model, x = build(), torch.randn(shape)
    penalty = {"kind": "l1" if kind in ("weight", "n:m") else "group_lasso", "strength": 1e4, "every": 1}
    rule = {
        "layers": layer,
        "group": WRITTEN.get(kind, kind),
        "penalty": penalty,
        **({"sparsity": "50%"} if kind == "weight" else {}),
    }
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, (x,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sparsify.attach(plan, model, optimizer) as hooks:
        model(x).sum().backward()
        optimizer.step()
        assert hooks.sparsity() == 1.0


def test_constants_are_what_numbers_become() -> None:
    spec = (
        Recipe.model_validate(
            {
                "version": 1,
                "title": "t",
                "rules": [{"layers": "a", "group": "filter", "penalty": {"kind": "l1", "strength": 3}}],
            }
        )
        .rules[0]
        .penalty
    )
    assert spec is not None and spec.strength == Constant(kind="constant", value=3.0)
