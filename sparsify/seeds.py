"""Runs whose recipes differ in the seed alone, taken together: mean and standard deviation of what each model came to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from sparsify import folder as files
from sparsify import report
from sparsify.errors import SparsifyError
from sparsify.listing import list_runs
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
    seeds: tuple[int, ...]
    macs: Spread | None
    """share of the dense model's that is left"""
    params: Spread | None
    """share of the dense model's that is left"""
    time: Spread | None
    """share of the dense model's on the first target"""
    accuracy: Spread | None
    """on the test set, else on the validation set"""
    behind: Spread | None
    """accuracy of the cut model less that of this one, seed by seed"""


def together(root: str | Path) -> tuple[Together, ...]:
    """Every model of every recipe whose runs in a folder are complete, in the order in which the runs are listed.

    Runs belong together when their recipes are the same but for the seed, and where a model was given also that model.
    """
    recipes: dict[tuple[str, str], list[Report]] = {}
    for row in list_runs(root):
        if row.state == "complete":
            found = _read(Path(root) / row.name)
            if found is not None:
                recipes.setdefault(found[0], []).append(found[1])
    return tuple(row for (digest, _), reports in recipes.items() for row in _rows(digest, reports))


def _read(folder: Path) -> tuple[tuple[str, str], Report] | None:
    try:
        recipe, found = files.read_recipe(folder), report.read(folder)
    except (SparsifyError, OSError):
        return None
    given = "" if found.dense.epochs else found.model_digest
    return (files.recipe_digest(recipe.model_copy(update={"seed": 0})), given), found


def _rows(recipe: str, reports: Sequence[Report]) -> Iterator[Together]:
    """Of runs of one recipe. A baseline that one of them could not make is left out."""
    kinds = [b.kind for b in reports[0].baselines if all(b.kind in {o.kind for o in r.baselines} for r in reports)]
    yield _row(recipe, "dense", reports, [(r.dense, None) for r in reports])
    yield _row(recipe, "cut", reports, [(r.cut, next(iter(r.latency), None)) for r in reports])
    for kind in kinds:
        own = [next(b for b in r.baselines if b.kind == kind) for r in reports]
        yield _row(recipe, kind, reports, [(b.side, next(iter(b.latency), None)) for b in own])


def _row(recipe: str, model: str, reports: Sequence[Report], sides: Sequence[tuple[Side, Latency | None]]) -> Together:
    return Together(
        title=reports[0].title,
        recipe=recipe,
        model=model,
        seeds=tuple(r.seed for r in reports),
        macs=_spread([side.macs / r.dense.macs if r.dense.macs else None for r, (side, _) in zip(reports, sides, strict=True)]),
        params=_spread([side.params / r.dense.params if r.dense.params else None for r, (side, _) in zip(reports, sides, strict=True)]),
        time=_spread([1.0 if model == "dense" else None if timed is None else 1 / timed.speedup for _, timed in sides]),
        accuracy=_spread([_accuracy(side) for side, _ in sides]),
        behind=_spread([_less(_accuracy(r.cut), _accuracy(side)) for r, (side, _) in zip(reports, sides, strict=True)]),
    )


def _accuracy(side: Side) -> float | None:
    return side.validation_accuracy if side.test_accuracy is None else side.test_accuracy


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _spread(values: Sequence[float | None]) -> Spread | None:
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return None
    return Spread(fmean(found), stdev(found) if found[1:] else None)
