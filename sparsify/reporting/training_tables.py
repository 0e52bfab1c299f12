"""Tables of a run's course: stages, cuts, the search for the deepest cut, epochs."""

from collections.abc import Callable, Iterator

from sparsify.formatting.numbers import (
    MISSING,
    add_sign,
    count_noun,
    divide,
    format_fixed,
    format_plain,
    format_points,
    format_seconds,
    format_share,
    is_known,
    metric,
)
from sparsify.formatting.table import Table, make_columns
from sparsify.formatting.verdict_text import verdict_words
from sparsify.pruning.planning.depth_search import choose_best
from sparsify.reporting import table_titles
from sparsify.reporting.report_file import FILE
from sparsify_schemas.report import Agreement, Epoch, RepairRow, Report, Trial

_PENALTY_COLUMNS: dict[str, tuple[Callable[[float | None], str], str, str]] = {
    "woken": (
        format_share,
        "reactivated",
        "fraction of GSM weights that switched from inactive to active between two steps",
    ),
    "threshold": (
        format_plain,
        "threshold",
        "weights up to this magnitude were set to zero at the end of the epoch",
    ),
    "due": (format_share, "due", "fraction of the goal that strength auto should have reached by now"),
    "reached": (format_share, "reached", "fraction of the goal that zero weights amount to"),
}
"""Fields of an epoch that only some penalties fill: how a value is shown, the heading, what it means."""


def stages_table(report: Report) -> Table:
    """A row for each stage."""
    rows = tuple(
        (
            stage.name,
            stage.kind,
            str(stage.epochs) if stage.epochs else MISSING,
            format_seconds(stage.seconds),
            format_plain(_round_loss(stage.loss)),
            metric(stage.validation_metric, report.metric.percent),
            format_share(stage.penalty_share),
        )
        for stage in report.stages
    )
    heads = make_columns("stage", "kind", ">epochs", ">time", ">loss", ">validation", ">in penalties")
    notes = [
        f"{stage.name} ended with the weights of epoch {stage.kept_epoch} of {stage.epochs}, the best on the "
        "validation set."
        for stage in report.stages
        if stage.kept_epoch is not None
    ]
    return Table(table_titles.STAGES, heads, rows, tuple(notes))


LEAST_CORRELATION = 0.2
"""Below this the outputs hardly follow the inputs."""


def agreement_table(report: Report) -> Table:
    """How far the outputs after each cut and each repair follow those of the dense model."""
    rows = []
    for stage in report.stages:
        if stage.agreement is not None:
            agreement = stage.agreement
            correlation, error = format_fixed(agreement.correlation, 3), format_share(agreement.error)
            rows.append((stage.name, correlation, error, format_share(agreement.same_prediction)))
    heads = make_columns("after stage", ">correlation", ">error", ">same prediction")
    return Table(table_titles.AGREEMENT, heads, tuple(rows), tuple(_repair_notes(report)))


def _repair_notes(report: Report) -> Iterator[str]:
    """Warnings of outputs that no longer follow the inputs, and what each repair did."""
    for stage in report.stages:
        if stage.agreement is not None:
            yield from _warn_of_outputs(stage.name, stage.agreement)
        if stage.repair is not None:
            yield describe_repair(stage.name, stage.repair)


def _warn_of_outputs(name: str, agreement: Agreement) -> Iterator[str]:
    """A warning where the outputs do not follow the inputs, or nothing tells whether they do."""
    if agreement.correlation >= LEAST_CORRELATION:
        return
    if not agreement.correlation and not agreement.error:  # as where the dense outputs have no spread
        yield (
            f"Warning: nothing tells whether the outputs after '{name}' follow the inputs: the dense model "
            "returns the same for all examples that were compared; look at the model and its data."
        )
        return
    yield (
        f"Warning: after '{name}' the outputs hardly follow the inputs (correlation with the "
        f"dense outputs {format_fixed(agreement.correlation, 3)}); cut less, choose by criterion "
        "'reconstruction', limit what each layer loses by keep.limits, or repair."
    )


def describe_repair(name: str, repair: RepairRow) -> str:
    """One sentence on what a repair stage did."""
    if repair.left_out:
        return f"{name} was left out: {repair.left_out}"
    if repair.reverted:
        return f"{name} was undone: on held-out examples the outputs came no closer to the dense ones."
    outcomes = [layer.outcome for layer in repair.layers]
    if repair.before is None or repair.after is None:
        count = count_noun(len(outcomes), "layer")
        return f"{name}: {repair.method}, without data; {outcomes.count('merged')} of {count} changed."
    layers = ""
    if outcomes:
        verb = "merged" if repair.method == "merge" else "refitted"
        unchanged = sum(outcome != verb for outcome in outcomes)
        layers = f" {len(outcomes) - unchanged} of {count_noun(len(outcomes), 'layer')} {verb};"
    before, after = format_fixed(repair.before.correlation, 3), format_fixed(repair.after.correlation, 3)
    examples = count_noun(repair.examples, "unlabelled training example")
    weighed = ", places weighed by the predictions" if repair.weighed else ""
    return (
        f"{name}: {repair.method} on {examples}{weighed};{layers} correlation {before} -> "
        f"{after} on held-out examples."
    )


def cuts_table(report: Report) -> Table:
    """A row for each cut, where there was more than one."""
    dense = report.dense
    rows = tuple(
        (
            cut.stage,
            str(cut.epoch) if cut.epoch else MISSING,
            format_share(divide(cut.macs, dense.macs)),
            format_share(divide(cut.params, dense.params)),
            metric(cut.validation_metric, report.metric.percent),
            verdict_words(cut.verdict),
        )
        for cut in report.rounds
    )
    heads = make_columns("stage", ">after epoch", ">MACs left", ">parameters left", ">validation", "verdict")
    return Table(table_titles.CUTS, heads, rows if len(rows) > 1 else ())


def search_table(report: Report) -> Table:
    """A row for each depth that was tried for an accuracy_drop, and which one the report is of."""
    if report.search is None:
        return Table(table_titles.SEARCH, (), ())
    taken = choose_best(report.search)
    trials = enumerate(report.search.trials, 1)
    rows = tuple(_trial_row(report, number, trial, trial == taken) for number, trial in trials)
    heads = make_columns(
        ">trial", ">depth", ">MACs left", ">parameters left", ">validation", ">drop", "", ">time"
    )
    note = "depth: 0 % is what the other budgets ask for, 100 % is all that can be removed."
    return Table(table_titles.SEARCH, heads, rows, (note,))


def _trial_row(report: Report, number: int, trial: Trial, is_taken: bool) -> tuple[str, ...]:
    verdict = "within the limit" if trial.inside else "over the limit"
    return (
        str(number),
        format_share(trial.depth),
        format_share(divide(trial.macs, report.dense.macs)),
        format_share(divide(trial.params, report.dense.params)),
        metric(trial.validation_metric, report.metric.percent),
        _format_drop(trial.drop, report.metric.percent),
        f"{verdict}, taken" if is_taken else verdict,
        format_seconds(trial.seconds),
    )


def _format_drop(drop: float, percent: bool) -> str:
    return format_points(drop) if percent else add_sign(metric(drop, percent=False))


def history_table(report: Report, most: int | None = None) -> Table:
    """A row for each epoch, or for `most` of them, evenly spaced with the first and the last."""
    epochs = report.history
    if most is not None and len(epochs) > most:
        picked = {round(i * (len(epochs) - 1) / (most - 1)) for i in range(most)}
        epochs = tuple(epoch for i, epoch in enumerate(epochs) if i in picked)
    extra = [
        name for name in _PENALTY_COLUMNS if any(getattr(epoch, name) is not None for epoch in report.history)
    ]
    heads = make_columns(
        "stage",
        ">epoch",
        ">loss",
        ">train",
        ">validation",
        ">zero",
        ">strength",
        *(f">{_PENALTY_COLUMNS[name][1]}" for name in extra),
        ">lr",
        ">time",
    )
    notes = ["zero: fraction of the groups covered by rules whose norm is zero."]
    for name in extra:
        _, heading, meaning = _PENALTY_COLUMNS[name]
        notes.append(f"{heading}: {meaning}.")
    if len(epochs) < len(report.history):
        notes.append(f"{len(epochs)} of {len(report.history)} epochs; {FILE} has all of them.")
    rows = tuple(_epoch_row(epoch, extra, report.metric.percent) for epoch in epochs)
    return Table(table_titles.HISTORY, heads, rows, tuple(notes))


def _epoch_row(epoch: Epoch, extra: list[str], percent: bool) -> tuple[str, ...]:
    more = []
    for name in extra:
        show, _, _ = _PENALTY_COLUMNS[name]
        more.append(show(getattr(epoch, name)))
    return (
        epoch.stage,
        str(epoch.epoch),
        format_plain(_round_loss(epoch.loss)),
        metric(epoch.train_metric, percent),
        metric(epoch.validation_metric, percent),
        format_share(epoch.sparsity),
        format_plain(epoch.strength),
        *more,
        format_plain(epoch.lr),
        format_seconds(epoch.seconds),
    )


def _round_loss(loss: float | None) -> float | None:
    """To three digits."""
    return float(f"{loss:.3g}") if loss is not None and is_known(loss) else None
