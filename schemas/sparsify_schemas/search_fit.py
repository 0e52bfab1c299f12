"""Whether the search of a recipe fits the rest of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsify_schemas.base import AtKey
from sparsify_schemas.search import COSTS, Search
from sparsify_schemas.stage import Train
from sparsify_schemas.task import LOSS, Facts, deciding_metric, metrics_of

if TYPE_CHECKING:
    from sparsify_schemas.recipe import Recipe


def check_search(recipe: "Recipe") -> None:
    """Raises AtKey where the recipe's search cannot be carried out."""
    search = recipe.search
    if search is None:
        return
    if recipe.data is None or recipe.data.validation.value == 0:
        raise AtKey("search", "trials are judged on validation data; write 'data' with 'validation' above 0%")
    _check_objective(recipe, search)
    if search.early_stopping == "asha":
        _check_early_stopping(recipe, search)
    if search.sampler == "grid":
        endless = next((name for name, one in search.parameters.items() if not one.is_finite), None)
        if endless is not None:
            raise AtKey(
                ("search", "parameters", endless),
                "sampler 'grid' tries every value, and a range without 'step' has no end of them; write "
                "{range: [...], step: ...} or {choices: [...]}",
            )


def list_metrics(recipe: "Recipe") -> list[str]:
    """The metrics that a trial can be judged by, the deciding one first."""
    return [metric.facts().name for metric in metrics_of(recipe.task)] or [LOSS.name]


def find_judge(recipe: "Recipe") -> Facts:
    """What is known of the metric that trials are judged by."""
    assert recipe.search is not None
    name = recipe.search.objective.metric
    facts = [metric.facts() for metric in metrics_of(recipe.task)]
    return next((one for one in facts if one.name == name), deciding_metric(recipe.task))


def _check_objective(recipe: "Recipe", search: Search) -> None:
    metric, cost = search.objective.metric, search.objective.cost
    known = list_metrics(recipe)
    if metric is not None and metric not in known:
        raise AtKey(
            ("search", "objective", "metric"),
            f"'{metric}' is no metric of the task; known: {', '.join(known)}",
        )
    costs = list_costs(list(recipe.targets))
    if cost is not None and cost not in costs:
        raise AtKey(
            ("search", "objective", "cost"),
            f"'{cost}' is no cost; known: {', '.join(costs)}, and latency.TARGET of the recipe's targets",
        )


def list_costs(targets: Sequence[str]) -> list[str]:
    """The costs of a front."""
    return [*COSTS, *(f"latency.{name}" for name in targets)]


def _check_early_stopping(recipe: "Recipe", search: Search) -> None:
    at = ("search", "early_stopping")
    if search.objective.cost is not None:
        raise AtKey(
            at,
            "'asha' compares trials by one figure, and 'objective.cost' makes a front of two; write "
            "'early_stopping: none', or leave 'objective.cost' out",
        )
    decides = deciding_metric(recipe.task).name
    if search.objective.metric not in (None, decides):
        raise AtKey(
            at,
            f"'asha' goes by the curves of '{decides}', and the objective is '{search.objective.metric}'; "
            f"write '{search.objective.metric}' first in task.metrics, or 'early_stopping: none'",
        )
    if recipe.budget.accuracy_drop is not None:
        raise AtKey(
            at,
            "budget.accuracy_drop trains several times in one trial, so there is no one curve; write "
            "'early_stopping: none'",
        )
    if not any(isinstance(stage, Train) for stage in recipe.stages):
        raise AtKey(at, "'asha' stops training early, and no stage trains; write 'early_stopping: none'")
