"""The repair that follows a cut by default."""

from dataclasses import replace

from sparsify.recipe import Loaded, Positions
from sparsify.recipe.nodes import Path
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.stage import Cut, Repair, goal


def add_default_repair(loaded: Loaded) -> Loaded:
    """The recipe of a new run: with a repair after its cut where that is the default.

    Places in the file move along with the stages.
    """
    recipe = with_default_repair(loaded.recipe)
    if recipe is loaded.recipe:
        return loaded
    added = next(index for index, stage in enumerate(recipe.stages) if isinstance(stage, Repair))
    places = {_moved(path, added): place for path, place in loaded.positions.places.items()}
    positions: Positions = replace(loaded.positions, places=places)
    return replace(loaded, recipe=recipe, positions=positions)


def with_default_repair(recipe: Recipe) -> Recipe:
    """The recipe with a repair by least squares right after its cut.

    It has data, cuts once, by a stage that does not say `repair: false`, and has no repair of its own. Any
    other stays as it is.
    """
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


def _moved(path: Path, added: int) -> Path:
    if len(path) > 1 and path[0] == "stages" and isinstance(path[1], int) and path[1] >= added:
        return (path[0], path[1] + 1, *path[2:])
    return path
