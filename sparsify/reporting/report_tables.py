"""A report as tables, and as a page of Markdown."""

from collections.abc import Iterator, Sequence

from sparsify.formatting.numbers import (
    MISSING,
    add_sign,
    count_noun,
    divide,
    format_count,
    format_digits,
    format_milliseconds,
    format_share,
    format_size,
    format_times,
    is_known,
    list_few,
    metric,
    metric_change,
    space_unit,
)
from sparsify.formatting.table import Table, as_markdown, escape_markdown, make_columns
from sparsify.formatting.verdict_text import verdict_words
from sparsify.reporting import table_titles
from sparsify.reporting.baseline_table import baseline_table
from sparsify.reporting.headline import format_limit, limit_name, write_headline
from sparsify.reporting.latency_table import latency_table
from sparsify.reporting.provenance_table import provenance_table
from sparsify.reporting.training_tables import (
    agreement_table,
    cuts_table,
    history_table,
    search_table,
    stages_table,
)
from sparsify_schemas.report import Form, LayerRow, Limit, Report, Side, Verdict

_HISTORY_ROWS = 12
"""Epochs that the Markdown page shows."""
ROOT = "(the model)"
"""what holds parameters of its own and has no name"""
_MANY_LAYERS = 24
"""More layers than this are shown on a terminal only where they changed."""


def list_tables(report: Report, *, every_layer: bool = True) -> tuple[Table, ...]:
    """The tables in the order of the page, without empty ones.

    every_layer: otherwise a long list of layers shows only those that changed.
    """
    found = (
        _sides_table(report),
        baseline_table(report),
        _limits_table(report),
        latency_table(report.latency, report.environment.cores),
        _int8_table(report),
        stages_table(report),
        agreement_table(report),
        cuts_table(report),
        search_table(report),
        _mixtures_table(report),
        _layers_table(report, every_layer),
        _zeros_table(report),
        _computation_table(report),
        Table(table_titles.NOTES, (), (), tuple(f"- {note}" for note in report.notes)),
    )
    return tuple(table for table in found if table.rows or table.notes)


def to_markdown(report: Report) -> str:
    """The report as a page: headline, tables, a thinned history, provenance."""
    shown = [*list_tables(report)]
    if report.history:
        # Before the notes, which are the last table where there are any.
        place = -1 if report.notes else len(shown)
        shown.insert(place, history_table(report, _HISTORY_ROWS))
    shown.append(provenance_table(report))
    title, sentence = escape_markdown(report.title), escape_markdown(write_headline(report))
    return f"# {title}\n\n**{sentence}**\n\n{as_markdown(shown)}\n"


def _sides_table(report: Report) -> Table:
    dense, cut = report.dense, report.cut
    rows = []
    for label, before, after in (
        ("MACs", dense.macs, cut.macs),
        ("parameters", dense.params, cut.params),
        ("parameters not zero", dense.nonzero, cut.nonzero),
    ):
        change = add_sign(format_count(after - before))
        rows.append(
            (label, format_count(before), format_count(after), format_share(divide(after, before)), change)
        )
    for label, bytes_before, bytes_after in (
        ("weights file", dense.bytes, cut.bytes),
        ("peak memory", dense.peak_memory, cut.peak_memory),
        ("peak memory, computed", dense.peak_memory_computed, cut.peak_memory_computed),
    ):
        if bytes_before is None or bytes_after is None:
            continue
        left = format_share(divide(bytes_after, bytes_before))
        change = add_sign(format_size(bytes_after - bytes_before))
        rows.append((label, format_size(bytes_before), format_size(bytes_after), left, change))
    percent = report.metric.percent
    for which, of_dense, of_cut in (
        ("validation", dense.validation_metric, cut.validation_metric),
        ("test", dense.test_metric, cut.test_metric),
    ):
        if is_known(of_dense) or is_known(of_cut):
            change = metric_change(_subtract(of_cut, of_dense), percent)
            label = f"{which} {report.metric.name}"
            rows.append((label, metric(of_dense, percent), metric(of_cut, percent), MISSING, change))
    for name, figure in dense.metrics.items():
        if name in cut.metrics:
            rows.append((name, format_digits(figure), format_digits(cut.metrics[name]), MISSING, MISSING))
    heads = make_columns("", ">dense", ">cut", ">left", ">change")
    notes = (*_verdict_notes(report.verdict), *_training_notes(dense, cut))
    return Table(table_titles.DENSE_AND_CUT, heads, tuple(rows), notes)


def _subtract(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _training_notes(dense: Side, cut: Side) -> Iterator[str]:
    more = cut.epochs - dense.epochs
    has_metric = is_known(dense.validation_metric) or is_known(dense.test_metric)
    if more and has_metric:
        yield f"The cut model was trained for {count_noun(more, 'more epoch')} than the dense one."


def _verdict_notes(verdict: Verdict) -> Iterator[str]:
    words = verdict_words(verdict)
    yield f"{words[:1].upper()}{words[1:]}."
    is_sensitive = verdict.control != 0 or verdict.reference == "dense model" or not verdict.groups
    if verdict.outcome == "equal" and not is_sensitive:
        yield (
            "Warning: zeroing the same channels in the dense model did not change its outputs either, "
            "so the check could not have noticed a wrong cut."
        )
    if verdict.batches:
        yield (
            f"The saved model was compared with the {verdict.reference} on {_list_batches(verdict.batches)}, "
            "which were drawn after the units were chosen."
        )
    if verdict.reference == "dense model":
        yield "All removed units were dead: the outputs are those of the dense model."
    if verdict.note:
        yield verdict.note


def _list_batches(sizes: Sequence[int]) -> str:
    """'inputs of 1, 2 and 5 examples'."""
    *first, last = map(str, sizes)
    if not first:
        return f"inputs of {count_noun(sizes[0], 'example')}"
    return f"inputs of {', '.join(first)} and {last} examples"


def _limits_table(report: Report) -> Table:
    rows = tuple(
        (
            limit_name(limit, report.metric),
            _describe_asked(limit),
            format_limit(limit, limit.achieved),
            "met" if limit.met else "MISSED",
        )
        for limit in report.limits
    )
    return Table(table_titles.LIMITS, make_columns("limit", ">asked", ">achieved", ""), rows)


def _describe_asked(limit: Limit) -> str:
    bound = "at most" if limit.what.startswith("budget.") else "at least"
    return f"{bound} {space_unit(limit.asked)}"


def _int8_table(report: Report) -> Table:
    """Dense and cut model in float32 and in int8: size, time on each int8 target, accuracy."""
    found = report.integers
    if found is None:
        return Table(table_titles.INT8, (), ())
    targets = list(found.forms[0].ms)
    heads = ["model", ">ONNX file"]
    for target in targets:
        heads += [f">{target}", ">speed-up"]
    heads += [">validation", ">test"]
    calibration = "random inputs, so the accuracies mean nothing"
    if found.examples:
        calibration = f"{found.examples} training examples"
    notes = (
        f"Quantized after the cut; activation ranges calibrated on {calibration}.",
        f"{report.metric.name.capitalize()} as ONNX Runtime computes it; speed-up over the dense model in "
        f"float32.",
    )
    rows = tuple(_form_row(form, found.forms[0], targets, report.metric.percent) for form in found.forms)
    return Table(table_titles.INT8, make_columns(*heads), rows, notes)


def _form_row(form: Form, reference: Form, targets: Sequence[str], percent: bool) -> tuple[str, ...]:
    row = [f"{form.model}, {form.dtype}", format_size(form.bytes)]
    for target in targets:
        row += [
            format_milliseconds(form.ms[target]),
            format_times(divide(reference.ms[target], form.ms[target])),
        ]
    return (*row, metric(form.validation_metric, percent), metric(form.test_metric, percent))


def _layers_table(report: Report, every_layer: bool) -> Table:
    computing = tuple(layer for layer in report.layers if layer.macs or layer.macs_after or layer.zeros)
    computing = computing or report.layers
    shown = computing
    if not every_layer and len(computing) > _MANY_LAYERS:
        shown = tuple(layer for layer in computing if layer.params_after < layer.params or layer.zeros)
    rows = tuple(map(_layer_row, shown))
    heads = make_columns("layer", "type", ">inputs", ">outputs", ">sparsity", ">MACs dense", ">MACs cut")
    notes = tuple(_layer_notes(report.layers, computing, shown))
    return Table(table_titles.LAYERS, heads, rows, notes)


def _mixtures_table(report: Report) -> Table:
    rows = tuple(
        (row.name, row.type, _format_change(row.experts, row.experts_after), str(row.least))
        for row in report.mixtures
    )
    notes = ("at least: with fewer experts the model does not run.",) if rows else ()
    heads = make_columns("mixture", "class", ">experts", ">at least")
    return Table(table_titles.MIXTURES, heads, rows, notes)


def _layer_row(layer: LayerRow) -> tuple[str, ...]:
    if layer.removed:
        inputs, outputs = str(layer.inputs), f"{layer.outputs} -> removed"
    else:
        inputs = _format_change(layer.inputs, layer.inputs_after)
        outputs = _format_change(layer.outputs, layer.outputs_after)
    return (
        layer.name or ROOT,
        layer.type,
        inputs,
        outputs,
        format_share(_format_sparsity(layer)),
        format_count(layer.macs),
        format_count(layer.macs_after),
    )


def _format_change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"


def _format_sparsity(layer: LayerRow) -> float | None:
    """Fraction of a layer's dense parameters that were removed or are zero."""
    stored = divide(layer.params_after, layer.params)
    return None if stored is None else 1 - stored * (1 - layer.zeros)


def _layer_notes(
    layers: tuple[LayerRow, ...], computing: tuple[LayerRow, ...], shown: tuple[LayerRow, ...]
) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for layer in computing:
        if layer.protected:
            reasons.setdefault(layer.protected, []).append(layer.name or ROOT)
    for reason, names in reasons.items():
        yield f"{list_few(tuple(names))} kept {'its' if len(names) == 1 else 'their'} width: {reason}."
    unchanged = len(computing) - len(shown)
    if unchanged:
        yield f"{count_noun(unchanged, 'layer')} that kept all weights not shown; --md and --json show them."
    without_macs = len(layers) - len(computing)
    if without_macs:
        yield f"{count_noun(without_macs, 'layer')} without MACs (normalisation and the like) not shown."


def _zeros_table(report: Report) -> Table:
    rows = tuple(
        (
            row.what,
            row.group or MISSING,
            format_count(row.weights),
            format_share(row.nominal),
            format_share(row.effective),
        )
        for row in report.sparsities
    )
    heads = make_columns("", "group", ">dense weights", ">nominal", ">effective")
    notes = (
        "nominal: fraction of the rule's own weights that it set to zero.",
        "effective: fraction of the dense weights that were removed or are zero, dead units included.",
    )
    return Table(table_titles.ZEROS, heads, rows, notes if rows else ())


def _computation_table(report: Report) -> Table:
    rows = tuple(
        (entry.module, entry.form, f"{entry.live} of {entry.columns}", entry.why)
        for entry in report.executions
    )
    return Table(table_titles.COMPUTATION, make_columns("layer", "computed", ">columns", "why"), rows)
