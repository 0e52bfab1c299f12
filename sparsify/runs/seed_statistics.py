"""Mean and standard deviation over runs whose recipes differ only in the seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from sparsify.errors import SparsifyError
from sparsify.formatting.numbers import divide, is_known
from sparsify.reporting.report_file import read_report
from sparsify.runs import run_folder
from sparsify.runs.listing import list_runs
from sparsify_schemas.report import Latency, Report, Side


@dataclass(frozen=True)
class Spread:
    """A figure over several runs."""

    mean: float
    deviation: float | None
    """Sample standard deviation (n - 1) over the runs; None for a single run."""


@dataclass(frozen=True)
class SeedSummary:
    """One model over runs that differ only in the seed. Values that a run lacks are None."""

    title: str
    recipe: str
    """Digest of the recipe without its seed."""
    model: str
    """dense, cut, or the kind of a baseline."""
    runs: tuple[str, ...]
    """Names of the runs that have this model."""
    seeds: tuple[int, ...]
    macs: Spread | None
    """Remaining fraction of the dense model's."""
    params: Spread | None
    """Remaining fraction of the dense model's."""
    time: Spread | None
    """Fraction of the dense model's on the first target, where all were timed on it."""
    metric: Spread | None
    """The deciding metric on the test set, else on the validation set."""
    behind: Spread | None
    """How much better the metric of the cut model is than that of this model, seed by seed."""
    judged_by: str
    """What the metric is called."""
    percent: bool
    """Whether it is a share."""


def summarize_seeds(root: str | Path) -> tuple[SeedSummary, ...]:
    """Summarize every model of every recipe over its complete runs in a folder, in the order of the runs.

    Runs are grouped when their recipes differ only in the seed and they start from the same model, if one
    was given. Of runs with the same seed, which have the same results, the last counts.
    """
    recipes: dict[tuple[str, str], dict[int, tuple[str, Report]]] = {}
    for row in list_runs(root):
        found = _read_run(Path(root) / row.name) if row.state == "complete" else None
        if found is None:
            continue
        key, report = found
        by_seed = recipes.setdefault(key, {})
        if report.seed not in by_seed or by_seed[report.seed][1].created <= report.created:
            by_seed[report.seed] = (row.name, report)
    summaries: list[SeedSummary] = []
    for (digest, _), by_seed in recipes.items():
        summaries.extend(_summarize_recipe(digest, list(by_seed.values())))
    return tuple(summaries)


def _read_run(folder: Path) -> tuple[tuple[str, str], Report] | None:
    """((digest of the recipe without its seed, digest of the given model), report)."""
    try:
        recipe, found = run_folder.read_recipe(folder), read_report(folder)
    except (SparsifyError, OSError):
        return None
    # Random weights are drawn by the seed, whether an epoch of training came before the cut or not.
    is_own = found.dense.epochs > 0 or run_folder.began_at_random(folder)
    given = "" if is_own else found.model_digest
    if any(note.startswith(run_folder.ADOPTED) for note in found.notes):  # each file is a model of its own
        given = f"{given} {found.files.get(run_folder.WEIGHTS)}"
    return (run_folder.recipe_digest(recipe.model_copy(update={"seed": 0})), given), found


def _summarize_recipe(recipe: str, runs: Sequence[tuple[str, Report]]) -> Iterator[SeedSummary]:
    """The models of runs of one recipe. A baseline counts in those runs that could make it."""
    yield _summarize_model(recipe, "dense", runs, [(report.dense, ()) for _, report in runs])
    yield _summarize_model(recipe, "cut", runs, [(report.cut, report.latency) for _, report in runs])
    for kind in dict.fromkeys(made.kind for _, report in runs for made in report.baselines):
        having = []
        sides = []
        for name, report in runs:
            for made in report.baselines:
                if made.kind == kind:
                    having.append((name, report))
                    sides.append((made.side, made.latency))
        yield _summarize_model(recipe, kind, having, sides)


def _summarize_model(
    recipe: str,
    model: str,
    runs: Sequence[tuple[str, Report]],
    sides: Sequence[tuple[Side, tuple[Latency, ...]]],
) -> SeedSummary:
    reports = [report for _, report in runs]
    pairs = [(report, side) for report, (side, _) in zip(reports, sides, strict=True)]
    behind = [_find_lead(report, side) for report, side in pairs]
    return SeedSummary(
        title=reports[0].title,
        recipe=recipe,
        model=model,
        runs=tuple(name for name, _ in runs),
        seeds=tuple(r.seed for r in reports),
        macs=_make_spread([divide(side.macs, report.dense.macs) for report, side in pairs]),
        params=_make_spread([divide(side.params, report.dense.params) for report, side in pairs]),
        time=Spread(1.0, None) if model == "dense" else _time_spread([timed for _, timed in sides]),
        metric=_make_spread([_metric(side) for side, _ in sides]),
        behind=_make_spread(behind),
        judged_by=reports[0].metric.name,
        percent=reports[0].metric.percent,
    )


def _time_spread(timed: Sequence[tuple[Latency, ...]]) -> Spread | None:
    """Fraction of the dense model's time on the first target; None where the first targets differ."""
    firsts = [latencies[0] for latencies in timed if latencies]
    if len(firsts) < len(timed) or len({first.target for first in firsts}) != 1:
        return None
    return _make_spread([divide(1, first.speedup) for first in firsts])


def _metric(side: Side) -> float | None:
    return side.validation_metric if side.test_metric is None else side.test_metric


def _find_lead(report: Report, side: Side) -> float | None:
    """How much better the cut model is."""
    own, other = _metric(report.cut), _metric(side)
    return None if own is None or other is None else report.metric.worse_by(own, other)


def _make_spread(values: Sequence[float | None]) -> Spread | None:
    found = [value for value in values if value is not None and is_known(value)]
    if not found or len(found) < len(values):
        return None
    return Spread(mean(found), _standard_deviation(found))


def _standard_deviation(values: Sequence[float]) -> float | None:
    try:
        return stdev(values) if values[1:] else None
    except OverflowError:  # larger than any float
        return None
