"""Baselines: the recipes by which simpler choices come to the same cost and get
the same training after the cut."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.selection import Chooser, choose, choose_by_macs, choose_evenly
from sparsify_schemas.baseline import Baseline
from sparsify_schemas.budget import Budget
from sparsify_schemas.criterion import Criterion, Magnitude
from sparsify_schemas.criterion import Random as AtRandom
from sparsify_schemas.group import in_one_tensor, removes_branches
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.rule import Rule
from sparsify_schemas.stage import Cut, Repair, Stage, Train, goal
from sparsify_schemas.units import Amount, Share, Size

_HAIR = 1 + 1e-12
_SHARED = ("macs", "params", "bytes", "peak_memory")


@dataclass(frozen=True)
class Cost:
    """What the cut model costs, which no baseline may exceed."""

    what: str
    """macs, params, bytes, peak_memory, or latency.<target>"""
    value: float
    """a count; of a latency the share of the dense model's, as measured"""

    @property
    def budget(self) -> Budget:
        """At most this, a hair above for rounding."""
        match self.what:
            case "macs" | "params":
                return Budget.model_validate({self.what: Amount(self.value * _HAIR / 1e3, "k")})
            case "bytes" | "peak_memory":
                return Budget.model_validate({self.what: Size(self.value * _HAIR, "B")})
            case _:
                return Budget(
                    latency={self.what.removeprefix("latency."): Share(min(100 * self.value, 100.0), "%")}
                )


def choose_cost(budget: Budget) -> str:
    """What equal cost means: the first latency that is limited, else the first count that is, else MACs."""
    target = next(iter(budget.latency), None)
    if target is not None:
        return f"latency.{target}"
    return next((what for what in _SHARED if getattr(budget, what) is not None), "macs")


def find_first_cut(recipe: Recipe) -> int:
    """Index of the first stage that cuts, at which each baseline begins."""
    return next(i for i, stage in enumerate(recipe.stages) if goal(stage) is not None)


def list_training_stages(recipe: Recipe, random: bool) -> tuple[tuple[Train, ...], tuple[Train, ...]]:
    """The stages that the baselines' dense model is trained through,
    and those of each baseline after its cut.

    random: the run begins with random weights. A stage that cuts between its epochs counts as after the cut.
    """
    first = find_first_cut(recipe)
    before = _drop_penalties(recipe.stages[:first]) if random else ()
    return before, _drop_penalties(recipe.stages[first:])


def _drop_penalties(stages: tuple[Stage, ...]) -> tuple[Train, ...]:
    return tuple(
        s.model_copy(update={"penalties": False, "cuts": None}) for s in stages if isinstance(s, Train)
    )


def _drop_penalties_and_cuts(stages: tuple[Stage, ...]) -> Iterator[Train | Repair]:
    """Trained without penalties, and repaired where the run is."""
    for stage in stages:
        match stage:
            case Repair():
                yield stage
            case Train():
                yield from _drop_penalties((stage,))
            case Cut():
                pass
            case _:
                assert_never(stage)


def shares_dense_model(recipe: Recipe) -> bool:
    """Whether the run itself trains, up to its cut, without penalties and without cutting."""
    first = find_first_cut(recipe)
    penalised = any(rule.penalty is not None for rule in recipe.rules)
    return isinstance(recipe.stages[first], Cut) and not (
        penalised and any(isinstance(s, Train) and s.penalties for s in recipe.stages[:first])
    )


def make_dense_recipe(recipe: Recipe) -> Recipe:
    """For the dense model of the baselines of a run from random weights."""
    before, _ = list_training_stages(recipe, True)
    stages = tuple(s.model_copy(update={"name": f"baselines: {s.name}"}) for s in before)
    return recipe.model_copy(
        update={"title": f"{recipe.title}: dense", "stages": stages, "budget": Budget(), "baselines": ()}
    )


def make_baseline_recipe(plan: Plan, kind: Baseline, cost: Cost) -> Recipe:
    """The recipe with this choice in place of the rules' own,
    nothing asked for but the cost, and the cut at once.

    Stages before the cut keep their places and are not gone through,
    so that after one cut examples come in the run's own order.
    """
    recipe = plan.recipe
    multiples = {a.rule: a.multiple for a in plan.assignments}
    rules = []
    for index, rule in enumerate(recipe.rules):
        has_no_width = kind == "uniform_width" and removes_branches(rule.group)
        if rule.protect:
            rules.append(rule)
        elif not in_one_tensor(rule.group) and not has_no_width:
            rules.append(_make_rule(rule, kind, multiples.get(index, 1)))
    first = find_first_cut(recipe)
    before, after = recipe.stages[:first], tuple(_drop_penalties_and_cuts(recipe.stages[first:]))
    if kind == "torch_pruning":  # a repair goes by coupled groups, which that cut need not follow
        after = tuple(stage for stage in after if isinstance(stage, Train))
    stages = (
        *before,
        Cut(kind="cut", name=f"{kind}: cut"),
        *(s.model_copy(update={"name": f"{kind}: {s.name}"}) for s in after),
    )
    changes = {
        "title": f"{recipe.title}: {kind}",
        "rules": tuple(rules),
        "stages": stages,
        "budget": cost.budget,
        "baselines": (),
    }
    return recipe.model_copy(update=changes)


def _make_rule(rule: Rule, kind: Baseline, multiple: int) -> Rule:
    """Widths that pay and floors stay; limits found by looking at accuracy are part of what is compared.
    Of what goes by MACs the widths are part of that, and nothing else."""
    if removes_branches(rule.group):
        keep = rule.keep
    elif kind == "by_macs":
        own = rule.keep.multiple_of
        keep = rule.keep.model_copy(update={"multiple_of": own if isinstance(own, int) else 1})
    else:
        keep = rule.keep.model_copy(update={"multiple_of": multiple, "limits": {}})
    if rule.penalty is not None and keep.uniform is None:
        keep = keep.model_copy(update={"uniform": False})  # as in the run, where the penalty decides
    return rule.model_copy(
        update={
            "penalty": None,
            "sparsity": None,
            "criterion": _choose_criterion(kind, rule.criterion),
            "keep": keep,
        }
    )


def _choose_criterion(kind: Baseline, own: Criterion) -> Criterion:
    match kind:
        case "by_macs" | "torch_pruning":
            return own
        case "uniform_width" | "magnitude":
            return Magnitude(kind="magnitude")
        case "random":
            return AtRandom(kind="random")
        case _:
            assert_never(kind)


def find_chooser(kind: Baseline) -> Chooser:
    """How units are chosen, given their scores."""
    match kind:
        case "uniform_width":
            return choose_evenly
        case "by_macs":
            return choose_by_macs
        case "random" | "magnitude" | "torch_pruning":  # the last chooses for itself, elsewhere
            return choose
        case _:
            assert_never(kind)
