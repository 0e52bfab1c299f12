"""Runs whose recipes differ in the seed alone, taken together: mean and standard deviation of what each model came to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from sparsify.errors import SparsifyError
from sparsify.formatting.numbers import divide, known
from sparsify.reporting import report_tables
from sparsify.runs import run_folder
from sparsify.runs.listing import list_runs
from sparsify_schemas.report import Latency, Report, Side


@dataclass(frozen=True)
class Spread:
    """A figure over several runs."""

    mean: float
    deviation: float | None
    """standard deviation over the runs (n - 1 below the sum); None of a single one"""


@dataclass(frozen=True)
class Together:
    """One model of runs that differ in the seed alone. What a run lacks is None."""

    title: str
    recipe: str
    """digest of the recipe, whatever its seed"""
    model: str
    """dense, cut, or the kind of a baseline"""
    runs: tuple[str, ...]
    """names of those that have it"""
    seeds: tuple[int, ...]
    macs: Spread | None
    """share of the dense model's that is left"""
    params: Spread | None
    """share of the dense model's that is left"""
    time: Spread | None
    """share of the dense model's on the first target, where all were timed on that"""
    accuracy: Spread | None
    """on the test set, else on the validation set"""
    behind: Spread | None
    """accuracy of the cut model less that of this one, seed by seed"""


def together(root: str | Path) -> tuple[Together, ...]:
    """Every model of every recipe whose runs in a folder are complete, in the order in which the runs are listed.

    Runs belong together when their recipes are the same but for the seed, and where a model was given also that model. Of
    runs with the same seed, which say the same, the last counts.
    """
    recipes: dict[tuple[str, str], dict[int, tuple[str, Report]]] = {}
    for row in list_runs(root):
        found = _read(Path(root) / row.name) if row.state == "complete" else None
        if found is None:
            continue
        key, own = found
        by_seed = recipes.setdefault(key, {})
        if own.seed not in by_seed or by_seed[own.seed][1].created <= own.created:
            by_seed[own.seed] = (row.name, own)
    return tuple(
        row for (digest, _), by_seed in recipes.items() for row in _rows(digest, list(by_seed.values()))
    )


def _read(folder: Path) -> tuple[tuple[str, str], Report] | None:
    try:
        recipe, found = run_folder.read_recipe(folder), report_tables.read(folder)
    except (SparsifyError, OSError):
        return None
    given = "" if found.dense.epochs else found.model_digest
    return (run_folder.recipe_digest(recipe.model_copy(update={"seed": 0})), given), found


def _rows(recipe: str, runs: Sequence[tuple[str, Report]]) -> Iterator[Together]:
    """Of runs of one recipe. What a baseline came to is of those that could make it."""
    yield _row(recipe, "dense", runs, [(r.dense, ()) for _, r in runs])
    yield _row(recipe, "cut", runs, [(r.cut, r.latency) for _, r in runs])
    for kind in dict.fromkeys(b.kind for _, r in runs for b in r.baselines):
        made = [(run, b) for run in runs for b in run[1].baselines if b.kind == kind]
        yield _row(recipe, kind, [run for run, _ in made], [(b.side, b.latency) for _, b in made])


def _row(
    recipe: str,
    model: str,
    runs: Sequence[tuple[str, Report]],
    sides: Sequence[tuple[Side, tuple[Latency, ...]]],
) -> Together:
    reports = [report for _, report in runs]
    return Together(
        title=reports[0].title,
        recipe=recipe,
        model=model,
        runs=tuple(name for name, _ in runs),
        seeds=tuple(r.seed for r in reports),
        macs=_spread([divide(side.macs, r.dense.macs) for r, (side, _) in zip(reports, sides, strict=True)]),
        params=_spread(
            [divide(side.params, r.dense.params) for r, (side, _) in zip(reports, sides, strict=True)]
        ),
        time=Spread(1.0, None) if model == "dense" else _time([timed for _, timed in sides]),
        accuracy=_spread([_accuracy(side) for side, _ in sides]),
        behind=_spread(
            [_less(_accuracy(r.cut), _accuracy(side)) for r, (side, _) in zip(reports, sides, strict=True)]
        ),
    )


def _time(timed: Sequence[tuple[Latency, ...]]) -> Spread | None:
    """Of the dense model's, on the first target; None where not all have the same first one."""
    firsts = [next(iter(own), None) for own in timed]
    same = len({first and first.target for first in firsts}) == 1
    return _spread([divide(1, first.speedup) if same and first else None for first in firsts])


def _accuracy(side: Side) -> float | None:
    return side.validation_accuracy if side.test_accuracy is None else side.test_accuracy


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _spread(values: Sequence[float | None]) -> Spread | None:
    found = [value for value in values if value is not None and known(value)]
    if not found or len(found) < len(values):
        return None
    return Spread(mean(found), _deviation(found))


def _deviation(values: Sequence[float]) -> float | None:
    try:
        return stdev(values) if values[1:] else None
    except OverflowError:  # it is larger than any float
        return None
