"""`sparsify validate`: check recipes, without a model and without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from sparsify.errors import Problem, RecipeError
from sparsify.formatting.numbers import count_noun
from sparsify.pruning.planning.no_ops import IDLE, list_certain_no_ops
from sparsify.recipe import load
from sparsify.recipe.cut_defaults import with_defaults
from sparsify_cli.options import Overrides
from sparsify_cli.output import write_result
from sparsify_cli.render import say, show_json
from sparsify_schemas.group import facts_of
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.rule import Rule
from sparsify_schemas.search import Search
from sparsify_schemas.stage import Stage, Train
from sparsify_schemas.written import to_written


def command(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE", help="One or more recipe files.", show_default=False)
    ],
    overrides: Overrides = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Make it an error where a part of the recipe has no effect.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="The resolved recipe and its warnings, or the problems, as JSON; of several recipes a list.",
        ),
    ] = False,
) -> None:
    """Check recipes, without a model: every problem at once, each with line and column.

    It warns of what has no effect whatever the data are, such as a learning rate of 0; `plan`, which reads
    the data, finds more.
    """
    checked = [_check_file(recipe, overrides or (), strict) for recipe in recipes]
    if as_json:
        entries = [_make_entry(one) for one in checked]
        show_json(entries[0] if len(entries) == 1 else entries)
    else:
        valid = [one for one in checked if one.recipe is not None]
        lines = [line for one in valid for line in _write_lines(one, short=len(recipes) > 1)]
        if lines:
            write_result("\n".join(lines))
    for warning in (warning for one in checked for warning in one.warnings):
        say(f"warning: {warning}")
    problems = [problem for one in checked for problem in one.problems]
    if problems:
        raise RecipeError(problems)


@dataclass(frozen=True)
class Checked:
    """A recipe file after the check: the recipe, or the problems that were found."""

    file: Path
    recipe: Recipe | None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def _check_file(file: Path, overrides: Sequence[str], strict: bool) -> Checked:
    try:
        loaded = load(file, overrides)
    except RecipeError as error:
        return Checked(file, None, error.problems)
    idle = tuple(list_certain_no_ops(loaded.recipe))
    if strict and idle:
        return Checked(file, None, tuple(loaded.positions.problem(path, text, IDLE) for path, text in idle))
    warnings = tuple(loaded.positions.problem(path, text) for path, text in idle)
    return Checked(file, loaded.recipe, warnings=warnings)


def _make_entry(checked: Checked) -> dict[str, object]:
    resolved = None if checked.recipe is None else to_written(checked.recipe)
    return {
        "file": str(checked.file),
        "valid": not checked.problems,
        "problems": [asdict(problem) for problem in checked.problems],
        "warnings": [asdict(problem) for problem in checked.warnings],
        "recipe": resolved,
    }


def _write_lines(checked: Checked, *, short: bool) -> list[str]:
    """What is printed for a valid recipe; short: without the summary, where there are several recipes."""
    verdict = f"{checked.file}: valid"
    if short or checked.recipe is None:
        return [verdict]
    return [verdict, *_summarize(checked.recipe)]


def _summarize(recipe: Recipe) -> list[str]:
    recipe = with_defaults(recipe)
    rows = [("title", recipe.title)]
    if recipe.model is not None:
        rows.append(("model", recipe.model.build))
    if recipe.data is not None:
        rows.append(("data", f"{recipe.data.source}, {recipe.data.validation} for validation"))
    for name, target in recipe.targets.items():
        dtype = "" if target.dtype == "float32" else f", {target.dtype}"
        rows.append(("target", f"{name}: {target.kind}, {target.runtime}, batch {target.batch}{dtype}"))
    limits = ", ".join(_list_limits(recipe))
    rows.append(("budget", limits or f"none: {_describe_amounts(recipe)}"))
    rows += [(f"rule {number}", _describe_rule(rule)) for number, rule in enumerate(recipe.rules)]
    rows.append(("stages", ", ".join(map(_describe_stage, recipe.stages))))
    if recipe.baselines:
        rows.append(("baselines", ", ".join(recipe.baseline_kinds)))
    if recipe.search is not None:
        rows.append(("search", _describe_search(recipe.search)))
    wide = max(8, *(len(label) for label, _ in rows))
    return [f"  {label:<{wide}} {text}" for label, text in rows]


def _describe_search(search: Search) -> str:
    """What `sparsify tune` does with the recipe; `sparsify apply` takes it as it is written."""
    count = count_noun(search.trials, "trial")
    return f"{count} of {', '.join(search.parameters)} by {search.sampler}, for 'sparsify tune' alone"


def _list_limits(recipe: Recipe) -> Iterator[str]:
    for name, limit in to_written(recipe.budget).items():
        if name not in ("latency", "accuracy_drop"):
            yield f"{name} {limit}"
    for name, limit in recipe.budget.latency.items():
        of_dense = " of the time" if str(limit).endswith("%") else ""
        yield f"{limit}{of_dense} on {name}"
    if recipe.budget.accuracy_drop:
        yield f"accuracy_drop {recipe.budget.accuracy_drop.at_most}"


def _describe_amounts(recipe: Recipe) -> str:
    """How much is removed without a budget."""
    rules = [rule for rule in recipe.rules if not rule.protect]
    says = [
        rule.sparsity is not None or (rule.group is not None and facts_of(rule.group).amount == "group")
        for rule in rules
    ]
    if says and all(says):
        return "the rules say how much is removed"
    of_others = " by rules without 'sparsity'" if any(says) else ""
    return f"only groups that are zero are removed{of_others}"


def _describe_rule(rule: Rule) -> str:
    layers = ", ".join(rule.layers)
    if rule.protect:
        return f"{layers}: protected"
    penalty = f", penalty {rule.penalty.kind}" if rule.penalty else ""
    removed = f", {rule.sparsity} removed" if rule.sparsity else ""
    return f"{layers}: {rule.group}{penalty}{removed}, pruned by {rule.criterion.kind}"


def _describe_stage(stage: Stage) -> str:
    if not isinstance(stage, Train):
        return stage.name
    cutting = ", with cuts" if stage.cuts else ""
    return f"{stage.name} ({stage.epochs} epoch{'s' if stage.epochs > 1 else ''}{cutting})"
