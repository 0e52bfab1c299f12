"""The record of a study, made of what its storage holds: trials, what is best, importance of parameters."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from sparsify.formatting.numbers import count_noun
from sparsify.tuning.ledger import Ledger
from sparsify.tuning.study_folder import StudyState
from sparsify.tuning.trial_run import Outcome
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.search_fit import find_judge
from sparsify_schemas.study import DenseModel, Study, StudyTrial, find_cost
from sparsify_schemas.task import Facts

OUTCOME, DENSE = "outcome", "dense"
ENOUGH = 8
"""Complete trials from which on the importance of parameters is computed."""
_BETTER = 0.25
"""Share of the complete trials that count as the better ones."""


def write_outcome(trial: optuna.trial.Trial, outcome: Outcome) -> None:
    """Keep what a trial came to in the storage, where every worker finds it."""
    trial.set_user_attr(OUTCOME, outcome.trial.model_dump(mode="json"))
    if outcome.dense is not None:
        trial.set_user_attr(DENSE, outcome.dense.model_dump(mode="json"))


def read_rows(ledger: Ledger) -> tuple[StudyTrial, ...]:
    """The finished trials by number."""
    rows = []
    for number, trial in enumerate(ledger.list_trials()[: ledger.wanted]):
        if trial.state.is_finished():
            rows.append(_read_row(number, trial))
    return tuple(rows)


def _read_row(number: int, trial: FrozenTrial) -> StudyTrial:
    found = trial.user_attrs.get(OUTCOME)
    if found is None:  # finished by another program
        reason = "the storage holds no outcome of it"
        return StudyTrial(number=number, state="failed", parameters={}, reason=reason)
    return StudyTrial.model_validate(found)


def _read_dense(ledger: Ledger, chosen: Sequence[int]) -> DenseModel | None:
    """The dense model as the first chosen trial has it."""
    trials = ledger.list_trials()
    for number in chosen:
        found = trials[number].user_attrs.get(DENSE)
        if found is not None:
            return DenseModel.model_validate(found)
    return None


def find_best(rows: Sequence[StudyTrial], judged_by: Facts) -> StudyTrial | None:
    """The complete trial with the best metric; of equal ones that with the fewest MACs, then the first."""
    complete = [row for row in rows if row.state == "complete"]
    return min(complete, key=lambda row: (_loss(row, judged_by), find_cost(row.costs, "macs")), default=None)


def _loss(row: StudyTrial, judged_by: Facts) -> float:
    """The metric, where less is better."""
    assert row.metric is not None  # complete trials have one
    return -row.metric if judged_by.better == "higher" else row.metric


def find_front(rows: Sequence[StudyTrial], judged_by: Facts, cost: str) -> tuple[StudyTrial, ...]:
    """The complete trials that no other one beats in metric and cost, by ascending cost."""
    points = [
        (find_cost(row.costs, cost), _loss(row, judged_by), row) for row in rows if row.state == "complete"
    ]
    front: list[StudyTrial] = []
    lowest = math.inf
    for _, loss, row in sorted(points, key=lambda point: (point[0], point[1], point[2].number)):
        if loss < lowest:
            front.append(row)
            lowest = loss
    return tuple(front)


def choose_trials(rows: Sequence[StudyTrial], recipe: Recipe) -> tuple[StudyTrial, ...]:
    """The best trial, or the front."""
    assert recipe.search is not None
    judged_by, cost = find_judge(recipe), recipe.search.objective.cost
    if cost is not None:
        return find_front(rows, judged_by, cost)
    best = find_best(rows, judged_by)
    return () if best is None else (best,)


def make_record(ledger: Ledger, state: StudyState, recipe: Recipe, digest: str) -> Study:
    """The record of a study as it stands, without files of recipes. digest: of the recipe."""
    search = recipe.search
    assert search is not None
    rows = read_rows(ledger)
    chosen = tuple(row.number for row in choose_trials(rows, recipe))
    return Study(
        title=recipe.title,
        created=state.created,
        recipe_digest=digest,
        model_digest=state.model_digest,
        sampler=search.sampler,
        early_stopping=search.early_stopping,
        seed=find_seed(recipe),
        recipe_seed=recipe.seed,
        wanted=ledger.wanted,
        judged_by=find_judge(recipe),
        cost=search.objective.cost,
        dense=_read_dense(ledger, chosen),
        trials=rows,
        chosen=chosen,
        importance=measure_importance(ledger, recipe),
        workers=max(1, len({row.worker for row in rows})),
        notes=tuple(_write_notes(rows, recipe, state)),
    )


def find_seed(recipe: Recipe) -> int:
    """The seed of a study's sampler."""
    assert recipe.search is not None
    return recipe.seed if recipe.search.seed is None else recipe.search.seed


def measure_importance(ledger: Ledger, recipe: Recipe) -> dict[str, float]:
    """Parameter -> its share, by PED-ANOVA; empty where there are too few complete trials to tell.

    The better quarter of the complete trials by their metric is compared with all of them.
    """
    complete = [trial for trial in ledger.list_trials() if trial.state == TrialState.COMPLETE]
    if len(complete) < ENOUGH:
        return {}
    judged_by = find_judge(recipe)
    sign = -1.0 if judged_by.better == "higher" else 1.0
    try:
        found = get_param_importances(
            ledger.study,
            evaluator=PedAnovaImportanceEvaluator(target_quantile=_BETTER),
            target=lambda trial: sign * trial.values[0],
        )
    except (ValueError, RuntimeError):  # all trials have one value
        return {}
    return {name: round(share, 4) for name, share in found.items()}


def _write_notes(rows: Sequence[StudyTrial], recipe: Recipe, state: StudyState) -> Iterator[str]:
    yield f"every trial ran with the recipe's seed {recipe.seed}; the sampler drew with {find_seed(recipe)}"
    if recipe.baselines:
        yield "the recipe's baselines were not made in trials; applying a chosen recipe makes them"
    if state.from_scratch:
        yield "every trial trained from random weights; the dense model is that of the first chosen trial"
    for reason, count in list_reasons(rows):
        yield f"{count_noun(count, 'trial')} failed: {reason}"


def list_reasons(rows: Sequence[StudyTrial]) -> list[tuple[str, int]]:
    """(reason, how many trials failed for it), the most frequent first. Figures in reasons do not count."""
    failed = [row for row in rows if row.state == "failed"]
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row in failed:
        plain = re.sub(r"\d+", "#", row.reason)
        first.setdefault(plain, row.reason)
        counts[plain] += 1
    return [(first[plain], count) for plain, count in counts.most_common()]
