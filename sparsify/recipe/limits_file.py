"""`keep: {limits: limits.json}`: what `sparsify sensitivity` wrote, in place of the file's name."""

from dataclasses import dataclass, replace
from pathlib import Path as File

from pydantic import ValidationError

from sparsify.errors import Problem, RunError, first_line
from sparsify.files import read
from sparsify.recipe.from_python import from_python
from sparsify.recipe.nodes import Items, Leaf, Node, Path, Table
from sparsify_schemas.profile import Profile


@dataclass(frozen=True)
class Origin:
    """Where a rule has its limits from."""

    rule: int
    file: str
    """as the recipe names it"""
    profile: Profile

    @property
    def command(self) -> str:
        """What writes them anew, of another network."""
        by = "" if self.profile.by == "ablation" else f" --by {self.profile.by}"
        return _command(self.file, f"{by} --limits {self.profile.tolerance or '1pp'}")


def _command(file: str, asked: str = " --limits 1pp") -> str:
    return f"sparsify sensitivity RECIPE MODEL{asked} --out {file}"


@dataclass(frozen=True)
class Limited:
    """A recipe with the limits of each file in place of its name, or with none."""

    root: Table
    origins: tuple[Origin, ...]
    problems: tuple[Problem, ...]
    """what is wrong with files that were named"""


def limited(root: Table, wanted: bool) -> Limited:
    """What files of limits hold, in place of their names; none of it where that is not wanted."""
    rules, problems, origins = root.entries.get("rules"), list[Problem](), list[Origin]()
    if not isinstance(rules, Items):
        return Limited(root, (), ())
    items = tuple(_rule(rule, i, problems, origins, wanted) for i, rule in enumerate(rules.items))
    same = all(a is b for a, b in zip(items, rules.items, strict=True))
    whole = root if same else replace(root, entries={**root.entries, "rules": replace(rules, items=items)})
    return Limited(whole, tuple(origins), tuple(problems))


def _rule(rule: Node, index: int, problems: list[Problem], origins: list[Origin], wanted: bool) -> Node:
    keep = rule.entries.get("keep") if isinstance(rule, Table) else None
    named = keep.entries.get("limits") if isinstance(keep, Table) else None
    if not (
        isinstance(rule, Table)
        and isinstance(keep, Table)
        and isinstance(named, Leaf)
        and isinstance(named.value, str)
    ):
        return rule
    profile = _read(named, ("rules", index, "keep", "limits"), problems) if wanted else None
    if profile is None:
        kept = keep.without("limits")
    else:
        origins.append(Origin(index, named.value, profile))
        found = from_python({name: str(share) for name, share in profile.limits.items()})
        kept = replace(keep, entries={**keep.entries, "limits": replace(found, place=named.place)})
    return replace(rule, entries={**rule.entries, "keep": kept})


def _read(named: Leaf, path: Path, problems: list[Problem]) -> Profile | None:
    beside = File(named.place.file)  # of a recipe that has no file: the working folder
    file = (beside.parent if beside.is_file() else File()) / str(named.value)
    make = _command(str(named.value))
    try:
        profile = Profile.model_validate_json(read(file))
    except RunError as error:
        problems.append(named.place.problem(path, str(error), f"'{make}' writes one"))
    except ValidationError as error:
        problems.append(
            named.place.problem(
                path, f"{file} holds no profile of a network ({first_line(error)})", f"'{make}' writes one"
            )
        )
    else:
        if profile.limits:
            return profile
        problems.append(named.place.problem(path, f"{file} holds no limits", f"have them set: {make}"))
    return None
