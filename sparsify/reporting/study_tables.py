"""The tables of a study: the chosen trials, every trial, the importance of parameters."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from sparsify.formatting.numbers import (
    MISSING,
    count_noun,
    divide,
    drop_zeros,
    format_milliseconds,
    format_seconds,
    format_share,
    metric,
)
from sparsify.formatting.table import Table, make_columns
from sparsify_schemas.study import Study, StudyTrial, TrialCosts, TrialState, find_cost

CHOSEN, TRIALS, IMPORTANCE, NOTES = "Chosen", "Trials", "Importance of parameters", "Notes"


def list_study_tables(study: Study, *, every_trial: bool = True) -> tuple[Table, ...]:
    """Chosen trials beside the dense model, importance, every trial, notes."""
    trials = make_trials_table(study) if every_trial else None
    tables = (make_chosen_table(study), make_importance_table(study), trials, make_notes(study))
    return tuple(table for table in tables if table is not None)


def write_study_headline(study: Study) -> str:
    """'40 trials: 35 complete, 3 stopped early, 2 failed. Best: trial 17, validation accuracy 97.2 %.'"""
    counts = Counter(row.state for row in study.trials)
    said = ", ".join(f"{counts[state]} {word}" for state, word in _STATES.items() if counts[state])
    head = f"{count_noun(len(study.trials), 'trial')}: {said}." if said else "No trial."
    if not study.chosen:
        return head
    chosen = [study.trials[number] for number in study.chosen]
    name = study.judged_by.name
    show = partial(metric, percent=study.judged_by.percent)
    if study.cost is not None:
        count = count_noun(len(chosen), "trial")
        return f"{head} {count} on the front of validation {name} against {study.cost}."
    return f"{head} Best: trial {chosen[0].number}, validation {name} {show(chosen[0].metric)}."


_STATES: dict[TrialState, str] = {"complete": "complete", "stopped": "stopped early", "failed": "failed"}


def make_chosen_table(study: Study) -> Table | None:
    """The dense model and the chosen trials, with what they cost."""
    if not study.chosen:
        return None
    name, targets = study.judged_by.name, _list_targets(study)
    columns = make_columns(
        "",
        f">validation {name}",
        f">test {name}",
        ">MACs left",
        ">parameters left",
        *(f">{target}" for target in targets),
        "recipe",
    )
    rows = []
    if study.dense is not None:
        dense = study.dense
        figures = _figures(study, dense.metric, dense.test_metric, dense.costs, targets)
        rows.append(("dense", *figures, ""))
    for number in study.chosen:
        row = study.trials[number]
        figures = _figures(study, row.metric, row.test_metric, row.costs, targets)
        rows.append((f"trial {number}", *figures, study.recipes.get(str(number), "")))
    return Table(CHOSEN, columns, tuple(rows))


def _list_targets(study: Study) -> list[str]:
    return list(study.dense.costs.latency) if study.dense is not None else []


def _figures(
    study: Study,
    validation: float | None,
    test: float | None,
    costs: TrialCosts | None,
    targets: Sequence[str],
) -> Iterator[str]:
    show = partial(metric, percent=study.judged_by.percent)
    yield drop_zeros(show(validation))
    yield drop_zeros(show(test))
    for key in ("macs", "params"):
        yield format_share(_find_left(study, costs, key))
    for target in targets:
        yield format_milliseconds(find_cost(costs, f"latency.{target}"))


def _find_left(study: Study, costs: TrialCosts | None, key: str) -> float | None:
    """The remaining fraction of a cost of the dense model."""
    if study.dense is None or costs is None:
        return None
    return divide(getattr(costs, key), getattr(study.dense.costs, key))


def make_trials_table(study: Study) -> Table:
    """Every trial with its parameters."""
    names = list(dict.fromkeys(name for row in study.trials for name in row.parameters))
    heads = [_write_head(study, name) for name in names]
    columns = make_columns(
        ">trial", "state", f">{study.judged_by.name}", ">MACs left", *heads, ">epochs", ">time", "why"
    )
    rows = tuple(_trial_row(study, row, names) for row in study.trials)
    return Table(TRIALS, columns, rows)


def _write_head(study: Study, name: str) -> str:
    """The heading of a parameter; one of numbers, which are never broken over lines."""
    values = [row.parameters.get(name) for row in study.trials]
    is_number = all(value is None or str(value)[:1].isdigit() for value in values)
    return f">{name}" if is_number else name


def _trial_row(study: Study, row: StudyTrial, names: Sequence[str]) -> tuple[str, ...]:
    left = _find_left(study, row.costs, "macs")
    state = "chosen" if row.number in study.chosen else _STATES[row.state]
    return (
        str(row.number),
        state,
        drop_zeros(metric(row.metric, study.judged_by.percent)),
        format_share(left),
        *(to_flow_text(row.parameters.get(name)) for name in names),
        str(row.epochs),
        format_seconds(row.seconds),
        row.reason,
    )


def to_flow_text(value: Any) -> str:
    """A value of a parameter as a recipe has it on one line."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")


def make_importance_table(study: Study) -> Table | None:
    """What decides whether a trial is among the better ones."""
    if not study.importance:
        return None
    rows = tuple((name, format_share(share)) for name, share in study.importance.items())
    note = (
        "By PED-ANOVA (arXiv:2304.10255): how far the values of the better quarter of the complete trials "
        "differ from those of all of them."
    )
    return Table(IMPORTANCE, make_columns("parameter", ">share"), rows, (note,))


def make_notes(study: Study) -> Table | None:
    if not study.notes:
        return None
    return Table(NOTES, (), (), tuple(f"- {note}" for note in study.notes))
