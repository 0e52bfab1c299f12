"""Make the path in `distill: {teacher: FILE}` absolute, so that a run goes on from anywhere."""

from dataclasses import replace
from pathlib import Path

from sparsify.recipe.nodes import Items, Leaf, Node, Table, find_child


def resolve_teachers(root: Table) -> Table:
    """The recipe with each teacher's path absolute: relative to the file that names it, to the current folder
    for a recipe without a file."""
    stages = root.entries.get("stages")
    if not isinstance(stages, Items):
        return root
    items = tuple(map(_resolve_in_stage, stages.items))
    return replace(root, entries={**root.entries, "stages": replace(stages, items=items)})


def _resolve_in_stage(stage: Node) -> Node:
    distill = find_child(stage, "distill")
    named = find_child(distill, "teacher")
    if not (isinstance(stage, Table) and isinstance(distill, Table) and isinstance(named, Leaf)):
        return stage
    if not isinstance(named.value, str) or named.value in ("", "dense"):
        return stage
    recipe = Path(named.place.file)
    folder = recipe.parent if recipe.is_file() else Path()
    path = replace(named, value=str((folder / named.value).resolve()))
    changed = replace(distill, entries={**distill.entries, "teacher": path})
    return replace(stage, entries={**stage.entries, "distill": changed})
