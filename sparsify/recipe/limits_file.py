"""Replace `keep: {limits: limits.json}` by the limits in that file, which `sparsify sensitivity` writes."""

from dataclasses import dataclass, replace
from pathlib import Path as File

from pydantic import ValidationError

from sparsify.errors import Problem, RunError, first_line
from sparsify.files import explain_unreadable, read_bytes
from sparsify.recipe.from_python import from_python
from sparsify.recipe.nodes import Items, Leaf, Node, Path, Table
from sparsify_schemas.profile import Profile


@dataclass(frozen=True)
class Origin:
    """The limits file of a rule."""

    rule: int
    file: str
    """As the recipe names it."""
    profile: Profile

    @property
    def command(self) -> str:
        """The command that writes the file for another network."""
        by = "" if self.profile.by == "ablation" else f" --by {self.profile.by}"
        return _name_command(self.file, f"{by} --limits {self.profile.tolerance or '1pp'}")


def _name_command(file: str, asked: str = " --limits 1pp") -> str:
    return f"sparsify sensitivity RECIPE MODEL{asked} --out {file}"


@dataclass(frozen=True)
class Limited:
    """A recipe with the limits of each file in place of the file's name, or without limits."""

    root: Table
    origins: tuple[Origin, ...]
    problems: tuple[Problem, ...]
    """Problems of the files."""


def replace_limits(root: Table, wanted: bool) -> Limited:
    """Replace the names of limits files by their limits, or remove them where limits are not wanted."""
    rules, problems, origins = root.entries.get("rules"), list[Problem](), list[Origin]()
    if not isinstance(rules, Items):
        return Limited(root, (), ())
    items = tuple(_replace_in_rule(rule, i, problems, origins, wanted) for i, rule in enumerate(rules.items))
    same = all(a is b for a, b in zip(items, rules.items, strict=True))
    whole = root if same else replace(root, entries={**root.entries, "rules": replace(rules, items=items)})
    return Limited(whole, tuple(origins), tuple(problems))


def _replace_in_rule(
    rule: Node, index: int, problems: list[Problem], origins: list[Origin], wanted: bool
) -> Node:
    keep = rule.entries.get("keep") if isinstance(rule, Table) else None
    named = keep.entries.get("limits") if isinstance(keep, Table) else None
    if not (
        isinstance(rule, Table)
        and isinstance(keep, Table)
        and isinstance(named, Leaf)
        and isinstance(named.value, str)
    ):
        return rule
    profile = _read_profile(named, ("rules", index, "keep", "limits"), problems) if wanted else None
    if profile is None:
        kept = keep.without("limits")
    else:
        origins.append(Origin(index, named.value, profile))
        found = from_python({name: str(share) for name, share in profile.limits.items()})
        kept = replace(keep, entries={**keep.entries, "limits": replace(found, place=named.place)})
    return replace(rule, entries={**rule.entries, "keep": kept})


def _read_profile(named: Leaf, path: Path, problems: list[Problem]) -> Profile | None:
    recipe = File(named.place.file)
    # Relative to the recipe; to the current folder for a recipe without a file.
    folder = recipe.parent if recipe.is_file() else File()
    file = folder / str(named.value)
    make = _name_command(str(named.value))
    try:
        profile = Profile.model_validate_json(read_bytes(file))
    except RunError as error:
        problems.append(named.place.problem(path, str(error), f"'{make}' writes one"))
    except ValidationError as error:
        newer = explain_unreadable(file, error, "")
        other = f"{file} is not a sensitivity profile ({first_line(error)})"
        problems.append(named.place.problem(path, newer or other, "" if newer else f"'{make}' writes one"))
    else:
        if profile.limits:
            return profile
        problems.append(named.place.problem(path, f"{file} holds no limits", f"'{make}' sets them"))
    return None
