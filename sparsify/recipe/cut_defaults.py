"""What `apply` does about a cut where the recipe does not say it: which criterion chooses, and the repair
behind it."""

from dataclasses import replace

from sparsify.recipe import Loaded
from sparsify.recipe.nodes import Path
from sparsify_schemas.budget import Budget
from sparsify_schemas.criterion import Reconstruction
from sparsify_schemas.group import kind_of
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.rule import Rule
from sparsify_schemas.stage import Cut, Repair, goal

SCORED = ("filter", "channel", "neuron", "head", "expert", "depth")
"""groups that `reconstruction` scores by default"""
BATCHES = 8
"""training batches that it looks at by default"""


def add_defaults(loaded: Loaded) -> Loaded:
    """The recipe of a new run, with the defaults of its cut.

    Places in the file move along with the stages.
    """
    recipe = with_defaults(loaded.recipe)
    if recipe is loaded.recipe:
        return loaded
    positions = loaded.positions
    if len(recipe.stages) > len(loaded.recipe.stages):
        added = next(index for index, stage in enumerate(recipe.stages) if isinstance(stage, Repair))
        places = {_moved(path, added): place for path, place in positions.places.items()}
        positions = replace(positions, places=places)
    return replace(loaded, recipe=recipe, positions=positions)


def with_defaults(recipe: Recipe) -> Recipe:
    """The recipe with a repair by least squares right after its cut, and the criterion that fits it.

    The repair: the recipe has data, cuts once, by a stage that does not say `repair: false`, and has no
    repair of its own. The criterion: the only cut is repaired by least squares, and a rule says neither
    criterion nor penalty. Any other stays as it is.
    """
    return _with_criteria(_with_repair(recipe))


def _with_repair(recipe: Recipe) -> Recipe:
    cutting = [index for index, stage in enumerate(recipe.stages) if goal(stage) is not None]
    repairs = any(isinstance(stage, Repair) for stage in recipe.stages)
    if recipe.data is None or repairs or len(cutting) != 1:
        return recipe
    (index,) = cutting
    cut = recipe.stages[index]
    if not isinstance(cut, Cut) or not cut.repair:
        return recipe
    taken = {stage.name for stage in recipe.stages}
    name = "repair" if "repair" not in taken else f"repair of {cut.name}"
    repair = Repair(kind="repair", name=name, required=False)
    stages = (*recipe.stages[: index + 1], repair, *recipe.stages[index + 1 :])
    return recipe.model_copy(update={"stages": stages})


def _with_criteria(recipe: Recipe) -> Recipe:
    cutting = [index for index, stage in enumerate(recipe.stages) if goal(stage) is not None]
    if recipe.data is None or len(cutting) != 1 or cutting[0] + 1 >= len(recipe.stages):
        return recipe
    cut, behind = recipe.stages[cutting[0]], recipe.stages[cutting[0] + 1]
    fits = isinstance(behind, Repair) and behind.method == "least_squares"
    if not isinstance(cut, Cut) or not fits:
        return recipe
    rules = tuple(_with_criterion(rule, recipe.budget) for rule in recipe.rules)
    return recipe if rules == recipe.rules else recipe.model_copy(update={"rules": rules})


def _with_criterion(rule: Rule, budget: Budget) -> Rule:
    if not _is_open(rule, budget):
        return rule
    chosen = Reconstruction(kind="reconstruction", batches=BATCHES, required=False)
    return rule.model_copy(update={"criterion": chosen})


def _is_open(rule: Rule, budget: Budget) -> bool:
    """Whether a rule leaves its criterion open, and something is chosen by it."""
    said = {"criterion", "penalty"} & rule.model_fields_set
    chooses = rule.sparsity is not None or budget != Budget()
    return not said and chooses and rule.group is not None and kind_of(rule.group) in SCORED


def _moved(path: Path, added: int) -> Path:
    if len(path) > 1 and path[0] == "stages" and isinstance(path[1], int) and path[1] >= added:
        return (path[0], path[1] + 1, *path[2:])
    return path
