"""A baseline in a loop of your own: a simpler choice, cut to the cost of a model that was cut already."""

from collections.abc import Callable
from typing import Any, get_args

from sparsify.errors import ModelError
from sparsify.objective.objective import Objective
from sparsify.pruning.cut import Result, cut, measure_left
from sparsify.pruning.planning.baseline_recipes import Cost, choose_cost, find_chooser, make_baseline_recipe
from sparsify.pruning.planning.compile import compile_plan
from sparsify.pruning.scoring import Batches
from sparsify_schemas.baseline import Baseline


def cut_baseline(
    result: Result,
    kind: Baseline,
    *,
    batches: Batches | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    objective: Objective | None = None,
) -> Result:
    """Cut the dense model by a simpler choice, to at most the cost of a cut model.

    Train both alike, and compare: that is what the choice was worth.

    Args:
        result: Of `sparsify.cut`.
        kind: `uniform_width` takes the same share of every layer, smallest units first; `random` takes random
            units; `magnitude` the smallest of all layers; `by_macs` the rules' own criterion, chosen by MACs.
        batches: Training batches, where the rules' own criterion looks at data (`by_macs` alone).
        loss: As in `cut`.
        objective: As in `cut`.

    Returns:
        The cut by that choice, proven like any other.

    Raises:
        ModelError: There is no such baseline, or the equal cost would be one of milliseconds, which
        `sparsify apply`
            compares.
        RecipeError: The choice cannot come down to that cost.

    Examples:
        >>> result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)
        >>> other = sparsify.cut_baseline(result, "random")
        >>> other.model[0].out_features <= result.model[0].out_features
        True
    """
    if kind not in get_args(Baseline):
        known = [name for name in get_args(Baseline) if name != "torch_pruning"]
        raise ModelError(f"there is no baseline '{kind}'; known: {', '.join(known)}")
    if kind == "torch_pruning":
        raise ModelError(
            "baseline 'torch_pruning' is another package's cut, which runs in a process of its own; name it "
            "under 'baselines' in a recipe of 'sparsify apply'"
        )
    what = choose_cost(result.plan.recipe.budget)
    if what.startswith("latency.") or what == "peak_memory":
        raise ModelError(
            "the recipe's budget counts what must be measured; 'baselines' in a recipe and 'sparsify apply' "
            "compare "
            "at equal milliseconds and peak memory"
        )
    cost = Cost(what, measure_left(result.plan, result.model, (result.cuts,))[what])
    plan = compile_plan(make_baseline_recipe(result.plan, kind, cost), result.plan.map)
    return cut(
        plan, result.dense, batches=batches, loss=loss, objective=objective, chooser=find_chooser(kind)
    )
