"""`keep: {limits: limits.json}`: what `sparsify sensitivity` wrote, in place of the file's name."""

from dataclasses import replace
from pathlib import Path as File

from pydantic import ValidationError

from sparsify.errors import Problem, RunError, first_line
from sparsify.load.given import from_python
from sparsify.load.tree import Items, Leaf, Node, Path, Table
from sparsify.reading import read
from sparsify_schemas.profile import Profile


def limited(root: Table, wanted: bool) -> tuple[Table, list[Problem]]:
    """The recipe with the limits of each file in place of its name, or with none, and what is wrong with files that were named."""
    rules, problems = root.entries.get("rules"), list[Problem]()
    if not isinstance(rules, Items):
        return root, problems
    items = tuple(_rule(rule, i, problems, wanted) for i, rule in enumerate(rules.items))
    same = all(a is b for a, b in zip(items, rules.items, strict=True))
    return (root if same else replace(root, entries={**root.entries, "rules": replace(rules, items=items)})), problems


def _rule(rule: Node, index: int, problems: list[Problem], wanted: bool) -> Node:
    keep = rule.entries.get("keep") if isinstance(rule, Table) else None
    named = keep.entries.get("limits") if isinstance(keep, Table) else None
    if not (isinstance(rule, Table) and isinstance(keep, Table) and isinstance(named, Leaf) and isinstance(named.value, str)):
        return rule
    found = _read(named, ("rules", index, "keep", "limits"), problems) if wanted else None
    kept = keep.without("limits") if found is None else replace(keep, entries={**keep.entries, "limits": found})
    return replace(rule, entries={**rule.entries, "keep": kept})


def _read(named: Leaf, path: Path, problems: list[Problem]) -> Node | None:
    beside = File(named.place.file)  # of a recipe that has no file: the working folder
    file = (beside.parent if beside.is_file() else File()) / str(named.value)
    make = f"sparsify sensitivity RECIPE MODEL --limits 1% --out {named.value}"
    try:
        profile = Profile.model_validate_json(read(file))
    except RunError as error:
        problems.append(named.place.problem(path, str(error), f"'{make}' writes one"))
    except ValidationError as error:
        problems.append(named.place.problem(path, f"{file} holds no profile of a network ({first_line(error)})", f"'{make}' writes one"))
    else:
        if profile.limits:
            return replace(from_python({name: str(share) for name, share in profile.limits.items()}), place=named.place)
        problems.append(named.place.problem(path, f"{file} holds no limits", f"have them set: {make}"))
    return None
