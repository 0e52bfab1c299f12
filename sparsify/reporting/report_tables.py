"""A report as a person reads it: a headline, tables, Markdown. And where it is read back from a run's folder."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from pydantic import ValidationError

from sparsify.errors import RunError, first_line
from sparsify.files import read as read_file
from sparsify.formatting.numbers import (
    MISSING,
    accuracy,
    brief,
    count,
    digits,
    divide,
    few,
    fixed,
    known,
    milliseconds,
    plain,
    plural,
    points,
    seconds,
    share,
    signed,
    size,
    spaced,
    times,
)
from sparsify.formatting.table import Table, as_markdown, columns, escape
from sparsify.formatting.verdict_text import verdict_words
from sparsify.pruning.planning.depth_search import best
from sparsify.reporting.baseline_table import against_baselines
from sparsify.reporting.latency_table import latency_table, timing_words
from sparsify_schemas.report import Agreement, LayerRow, Limit, RepairRow, Report, Side, Verdict

FILE, WEIGHTS = "report.json", "model.safetensors"
_LABELS = {
    "budget.macs": "MACs",
    "budget.params": "parameters",
    "budget.bytes": "bytes",
    "budget.peak_memory": "peak memory",
    "budget.accuracy_drop": "drop of validated accuracy",
}
_HISTORY_ROWS, _MANY_LAYERS = 12, 24
_OF_SOME: dict[str, tuple[Callable[[float | None], str], str]] = {
    "woken": (
        share,
        "share of what gsm covers that was left out in one step and followed the loss in the next",
    ),
    "threshold": (plain, "weights up to so large were set to zero at the end of the epoch"),
    "due": (share, "part of the goal that strength auto should have reached"),
    "reached": (share, "part of the goal that what is dead comes to"),
}
"""columns of the history that only some penalties fill"""


def read(run: Path) -> Report:
    """The report of a run's folder (or of a report.json); RunError says what to do when there is none."""
    file = run if run.is_file() else run / FILE
    if not run.exists():
        raise RunError(f"{run}: no such run; 'sparsify runs' lists them, 'sparsify apply' makes one")
    if not file.is_file():
        if (run / "recipe.yaml").exists():
            raise RunError(
                f"{run}: this run has not come to its end and has no report yet; go on with 'sparsify apply --resume {run}'"
            )
        raise RunError(
            f"{run}: no {FILE} here, so this is no run; 'sparsify runs {run}' lists the runs in a folder"
        )
    try:
        return Report.model_validate_json(read_file(file))
    except ValidationError as error:
        raise RunError(
            f"{file}: damaged, not a report ({first_line(error)}); make it anew with 'sparsify apply'"
        ) from None


def headline(report: Report) -> str:
    """What came out, in a sentence or two."""
    dense, cut = report.dense, report.cut
    parts = [
        f"{share(divide(cut.macs, dense.macs))} of the MACs",
        f"{share(divide(cut.params, dense.params))} of the parameters",
    ]
    nonzero = divide(cut.nonzero, cut.params)
    zeros = 0.0 if nonzero is None else 1 - nonzero
    if zeros >= 0.005:
        parts.append(f"{share(zeros)} of what remains is zero but stored")
    parts += [timing_words(t, report.environment.cores) for t in report.latency]
    parts.append(_accuracy_words(dense, cut))
    text = f"{', '.join(parts)}; {verdict_words(report.verdict)}."
    missed = [
        f"{limit_name(m)} {shown_limit(m, m.achieved)} (asked {spaced(m.asked)})"
        for m in report.limits
        if not m.met
    ]
    return f"{text} Missed: {', '.join(missed)}." if missed else text


def _enumerated(numbers: Sequence[int]) -> str:
    """1, 2 and 5"""
    *head, last = map(str, numbers)
    return f"{', '.join(head)} and {last}" if head else last


def limit_name(limit: Limit) -> str:
    """'MACs' for budget.macs, 'rules.0.sparsity' for itself."""
    target = limit.what.removeprefix("budget.latency.")
    return f"time on {target}" if target != limit.what else _LABELS.get(limit.what, limit.what)


def shown_limit(limit: Limit, value: float) -> str:
    """A limit's figure the way the recipe asked for it: as a share, a count or a size."""
    if limit.asked.endswith("%"):
        return share(value)
    if limit.what.startswith("budget.latency."):
        return milliseconds(value)
    if limit.what == "budget.accuracy_drop":
        return points(value)
    return size(value, limit.asked) if limit.what in ("budget.bytes", "budget.peak_memory") else count(value)


def tables(report: Report, *, every_layer: bool = True) -> tuple[Table, ...]:
    """The page's tables in order, those without rows left out; a long list of layers can be cut to those that changed."""
    latency = latency_table(report.latency, report.environment.cores)
    found = (
        _sides(report),
        against_baselines(report),
        _limits(report),
        latency,
        _integers(report),
        _stages(report),
        _agreement(report),
        _rounds(report),
        _search(report),
        _layers(report, every_layer),
        _sparsities(report),
        _executions(report),
        _notes(report),
    )
    return tuple(t for t in found if t.rows or t.notes)


def to_markdown(report: Report) -> str:
    """The report as a page: headline, tables, a thinned history, where it comes from."""
    shown = [*tables(report)]
    if report.history:
        shown.insert(-1 if report.notes else len(shown), history(report, _HISTORY_ROWS))
    return f"# {escape(report.title)}\n\n**{escape(headline(report))}**\n\n{as_markdown([*shown, provenance(report)])}\n"


def _sides(report: Report) -> Table:
    dense, cut = report.dense, report.cut
    counted = (
        ("MACs", dense.macs, cut.macs),
        ("parameters", dense.params, cut.params),
        ("parameters not zero", dense.nonzero, cut.nonzero),
    )
    rows = [(label, count(a), count(b), share(divide(b, a)), signed(count(b - a))) for label, a, b in counted]
    rows.append(
        (
            "weights file",
            size(dense.bytes),
            size(cut.bytes),
            share(divide(cut.bytes, dense.bytes)),
            signed(size(cut.bytes - dense.bytes)),
        )
    )
    peaks = (
        ("peak memory", dense.peak_memory, cut.peak_memory),
        ("peak memory, computed", dense.peak_memory_computed, cut.peak_memory_computed),
    )
    rows += [
        (label, size(a), size(b), share(divide(b, a)), signed(size(b - a)))
        for label, a, b in peaks
        if a is not None and b is not None
    ]
    accuracies = (
        ("validation accuracy", dense.validation_accuracy, cut.validation_accuracy),
        ("test accuracy", dense.test_accuracy, cut.test_accuracy),
    )
    rows += [
        (label, accuracy(a), accuracy(b), MISSING, points(_less(b, a)))
        for label, a, b in accuracies
        if known(a) or known(b)
    ]
    rows += [
        (name, digits(dense.metrics[name]), digits(cut.metrics[name]), MISSING, MISSING)
        for name in dense.metrics
        if name in cut.metrics
    ]
    return Table(
        "Dense and cut",
        columns("", ">dense", ">cut", ">left", ">change"),
        tuple(rows),
        (
            f"{_capital(verdict_words(report.verdict))}.",
            *_verdict_notes(report.verdict),
            *_training_notes(dense, cut),
        ),
    )


def _training_notes(dense: Side, cut: Side) -> tuple[str, ...]:
    more = cut.epochs - dense.epochs
    compared = known(dense.validation_accuracy) or known(dense.test_accuracy)
    return (
        (f"The cut model had {plural(more, 'more epoch')} of training than the dense one.",)
        if more and compared
        else ()
    )


def _verdict_notes(verdict: Verdict) -> tuple[str, ...]:
    seen = verdict.control != 0 or verdict.reference == "dense model" or not verdict.groups
    blind = verdict.outcome == "equal" and not seen
    notes: list[str] = []
    if blind:
        notes.append(
            "Warning: removing the same channels from the dense model changed nothing either, so the check could not see the cut."
        )
    if verdict.batches:
        examples = (
            plural(verdict.batches[-1], "example")
            if len(verdict.batches) == 1
            else f"{_enumerated(verdict.batches)} examples"
        )
        notes.append(
            f"The delivered model was compared with the {verdict.reference} on inputs of {examples}, drawn after the choice."
        )
    if verdict.reference == "dense model":
        notes.append("All removed units were dead: the dense model's outputs stay as they are.")
    return (*notes, verdict.note) if verdict.note else tuple(notes)


def _limits(report: Report) -> Table:
    rows = tuple(
        (limit_name(m), _asked(m), shown_limit(m, m.achieved), "met" if m.met else "MISSED")
        for m in report.limits
    )
    return Table("Asked and achieved", columns("limit", ">asked", ">achieved", ""), rows)


def _asked(limit: Limit) -> str:
    return f"{'at most' if limit.what.startswith('budget.') else 'at least'} {spaced(limit.asked)}"


def _integers(report: Report) -> Table:
    """Dense and cut model in floats and in integers: size, time on each int8 target, accuracy."""
    found = report.integers
    if found is None:
        return Table("", (), ())
    targets = list(found.forms[0].ms)
    rows = tuple(
        (
            f"{form.model}, {form.dtype}",
            size(form.bytes),
            *(
                cell
                for t in targets
                for cell in (milliseconds(form.ms[t]), times(divide(found.forms[0].ms[t], form.ms[t])))
            ),
            accuracy(form.validation_accuracy),
            accuracy(form.test_accuracy),
        )
        for form in found.forms
    )
    heads = columns(
        "model",
        ">ONNX file",
        *(head for t in targets for head in (f">{t}", ">speed-up")),
        ">validation",
        ">test",
    )
    ranges = (
        f"{found.examples} training examples"
        if found.examples
        else "random inputs, so that accuracy means nothing"
    )
    note = f"Quantised after the cut, activations by their range on {ranges}; accuracy as ONNX Runtime computes it, speed-up over the dense model in float32."
    return Table("Floats and integers", heads, rows, (note,))


def _search(report: Report) -> Table:
    """Every depth that was tried for an accuracy_drop, and which one the report is of."""
    if report.search is None:
        return Table("Search", (), ())
    taken = best(report.search)
    rows = tuple(
        (
            str(n),
            share(t.depth),
            share(divide(t.macs, report.dense.macs)),
            share(divide(t.params, report.dense.params)),
            accuracy(t.validation_accuracy),
            points(t.drop),
            f"{'inside' if t.inside else 'outside'}{', taken' if t == taken else ''}",
            seconds(t.seconds),
        )
        for n, t in enumerate(report.search.trials, 1)
    )
    notes = ("depth: share of the way from what the other budgets ask for to all that can be removed.",)
    return Table(
        "Search",
        columns(">trial", ">depth", ">MACs left", ">parameters left", ">validation", ">drop", "", ">time"),
        rows,
        notes,
    )


def _layers(report: Report, every: bool) -> Table:
    working = (
        tuple(layer for layer in report.layers if layer.macs or layer.macs_after or layer.zeros)
        or report.layers
    )
    folded = not every and len(working) > _MANY_LAYERS
    shown = (
        tuple(layer for layer in working if layer.params_after < layer.params or layer.zeros)
        if folded
        else working
    )
    rows = tuple(
        (
            layer.name,
            layer.type,
            str(layer.inputs) if layer.removed else _change(layer.inputs, layer.inputs_after),
            f"{layer.outputs} -> removed" if layer.removed else _change(layer.outputs, layer.outputs_after),
            share(_gone(layer)),
            share(divide(layer.macs, report.dense.macs)),
            share(divide(layer.macs_after, report.cut.macs)),
        )
        for layer in shown
    )
    heads = columns("layer", "type", ">inputs", ">outputs", ">sparsity", ">MACs dense", ">MACs cut")
    return Table("Layers", heads, rows, tuple(_layer_notes(report.layers, working, shown)))


def _layer_notes(
    layers: tuple[LayerRow, ...], working: tuple[LayerRow, ...], shown: tuple[LayerRow, ...]
) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for layer in working:
        if layer.protected:
            reasons.setdefault(layer.protected, []).append(layer.name)
    for why, names in reasons.items():
        yield f"{few(tuple(names))} kept {'its' if len(names) == 1 else 'their'} width: {why}."
    if len(shown) < len(working):
        yield f"{plural(len(working) - len(shown), 'layer')} that kept all weights not shown; --md and --json have them."
    if len(working) < len(layers):
        yield f"{plural(len(layers) - len(working), 'layer')} without MACs of their own (normalisation and the like) not shown."


def _sparsities(report: Report) -> Table:
    rows = tuple(
        (s.what, s.group or MISSING, count(s.weights), share(s.nominal), share(s.effective))
        for s in report.sparsities
    )
    notes = (
        "nominal: set to zero by the rule, of the weights that it chose among; effective: gone or zero, of the dense weights, with what dead units took along.",
    )
    return Table(
        "Zeros", columns("", "group", ">dense weights", ">nominal", ">effective"), rows, notes if rows else ()
    )


def _executions(report: Report) -> Table:
    rows = tuple((e.module, e.form, f"{e.live} of {e.columns}", e.why) for e in report.executions)
    return Table("Layers with dead shapes or taps", columns("layer", "computed", ">columns", "why"), rows)


def _gone(layer: LayerRow) -> float | None:
    stored = divide(layer.params_after, layer.params)
    return None if stored is None else 1 - stored * (1 - layer.zeros)


def _stages(report: Report) -> Table:
    rows = tuple(
        (
            s.name,
            s.kind,
            str(s.epochs) if s.epochs else MISSING,
            seconds(s.seconds),
            plain(_rounded(s.loss)),
            accuracy(s.validation_accuracy),
            share(s.penalty_share),
        )
        for s in report.stages
    )
    heads = columns("stage", "kind", ">epochs", ">time", ">loss", ">validation", ">in penalties")
    return Table("Stages", heads, rows)


def _agreement(report: Report) -> Table:
    """How far the outputs after each cut and each repair follow those of the dense model."""
    found = [(stage, stage.agreement) for stage in report.stages if stage.agreement is not None]
    rows = tuple(_agreement_row(stage.name, agreement) for stage, agreement in found)
    heads = columns("after stage", ">correlation", ">error", ">same prediction")
    return Table("Agreement with the dense model", heads, rows, tuple(_repair_notes(report)))


def _agreement_row(name: str, agreement: Agreement) -> tuple[str, ...]:
    correlation, error = fixed(agreement.correlation, 3), share(agreement.error)
    return name, correlation, error, share(agreement.same_prediction)


LEAST_CORRELATION = 0.2
"""below this the outputs hardly follow the inputs"""


def _repair_notes(report: Report) -> Iterator[str]:
    """What the table means, and what each repair did."""
    for stage in report.stages:
        if stage.agreement is not None and stage.agreement.correlation < LEAST_CORRELATION:
            yield (
                f"Warning: after '{stage.name}' the outputs hardly follow the inputs (correlation with the dense "
                f"outputs {fixed(stage.agreement.correlation, 3)}); cut less, bound what each layer loses by "
                "keep.limits, or repair."
            )
        if stage.repair is not None:
            yield _describe_repair(stage.name, stage.repair)


def _describe_repair(name: str, repair: RepairRow) -> str:
    if repair.reverted:
        return (
            f"{name} was taken back: on the examples held out the outputs came no nearer to the dense ones."
        )
    outcomes = [layer.outcome for layer in repair.layers]
    layers = (
        f" {outcomes.count('refitted')} of {plural(len(outcomes), 'layer')} refitted;" if outcomes else ""
    )
    before = fixed(repair.before.correlation, 3)
    return (
        f"{name}: {repair.method} on {plural(repair.examples, 'unlabelled training example')};{layers} "
        f"correlation {before} -> {fixed(repair.after.correlation, 3)} on examples held out."
    )


def _rounds(report: Report) -> Table:
    """Every cut, where there was more than one."""
    dense = report.dense
    rows = tuple(
        (
            r.stage,
            str(r.epoch) if r.epoch else MISSING,
            share(divide(r.macs, dense.macs)),
            share(divide(r.params, dense.params)),
            accuracy(r.validation_accuracy),
            verdict_words(r.verdict),
        )
        for r in report.rounds
    )
    heads = columns("stage", ">after epoch", ">MACs left", ">parameters left", ">validation", "verdict")
    return Table("Cuts", heads, rows if len(rows) > 1 else ())


def history(report: Report, most: int | None = None) -> Table:
    """The epochs, or `most` of them evenly spaced with the first and the last."""
    epochs = report.history
    if most is not None and len(epochs) > most:
        picked = {round(i * (len(epochs) - 1) / (most - 1)) for i in range(most)}
        epochs = tuple(e for i, e in enumerate(epochs) if i in picked)
    more = {
        name: (show, note)
        for name, (show, note) in _OF_SOME.items()
        if any(getattr(e, name) is not None for e in report.history)
    }
    rows = tuple(
        (
            e.stage,
            str(e.epoch),
            plain(_rounded(e.loss)),
            accuracy(e.train_accuracy),
            accuracy(e.validation_accuracy),
            share(e.sparsity),
            plain(e.strength),
            *(show(getattr(e, name)) for name, (show, _) in more.items()),
            plain(e.lr),
            seconds(e.seconds),
        )
        for e in epochs
    )
    heads = columns(
        "stage",
        ">epoch",
        ">loss",
        ">train",
        ">validation",
        ">zero",
        ">strength",
        *(f">{name}" for name in more),
        ">lr",
        ">time",
    )
    notes = [
        "zero: share of the groups that rules cover whose norm is zero.",
        *(f"{name}: {note}." for name, (_, note) in more.items()),
    ]
    if len(epochs) < len(report.history):
        notes.append(f"{len(epochs)} of {len(report.history)} epochs; all of them are in {FILE}.")
    return Table("History", heads, rows, tuple(notes))


def _notes(report: Report) -> Table:
    return Table("Notes", (), (), tuple(f"- {n}" for n in report.notes))


def provenance(report: Report) -> Table:
    """When, on what, from which recipe."""
    machine, trained = report.environment, trained_by(report)
    rows = (
        ("created", utc_minute(report.created)),
        ("seed", str(report.seed)),
        ("recipe", report.recipe_digest[:16]),
        ("plan", report.plan_digest[:16]),
        ("dense weights", report.model_digest[:16]),
        ("cut weights", report.files.get(WEIGHTS, MISSING)[:16]),
        (
            "machine",
            f"{machine.processor}, {plural(machine.cores, 'core')}, {machine.platform}{f'; {trained}' if trained else ''}",
        ),
        (
            "versions",
            ", ".join(
                [
                    f"Python {machine.python}",
                    *(f"{name} {number}" for name, number in sorted(machine.packages.items())),
                ]
            ),
        ),
    )
    return Table("Provenance", columns("", ""), rows)


def trained_by(report: Report) -> str:
    """'trained by 2 processes, then by 1 process'; '' where nothing was trained or it is not known by how many."""
    counts = groupby(epoch.processes for epoch in report.history if epoch.processes is not None)
    said = ", then ".join(f"by {n} process{'' if n == 1 else 'es'}" for n, _ in counts)
    return f"trained {said}" if said else ""


def utc_minute(created: str) -> str:
    """'2025-11-20T05:41:07+00:00' -> '2025-11-20 05:41 UTC'."""
    return f"{created[:16].replace('T', ' ')} UTC"


def _accuracy_words(dense: Side, cut: Side) -> str:
    more = cut.epochs - dense.epochs
    for name, before, after in (
        ("test", dense.test_accuracy, cut.test_accuracy),
        ("validation", dense.validation_accuracy, cut.validation_accuracy),
    ):
        if known(after):
            trained = f" after {plural(more, 'more epoch')} of training" if more and known(before) else ""
            compared = (
                f" (dense {brief(accuracy(before))}, {brief(points(_less(after, before)))})"
                if known(before)
                else ""
            )
            return f"{name} accuracy {brief(accuracy(after))}{trained}{compared}"
    return "accuracy not measured"


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"


def _less(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _rounded(loss: float | None) -> float | None:
    return None if loss is None or not known(loss) else float(f"{loss:.3g}")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
