"""Compute the changes between two recipes or two runs."""

import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from sparsify.formatting.numbers import divide, is_known
from sparsify.reporting.recipe_defaults import shorten_entry, unfold_constants
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Latency, LayerRow, Report, Side
from sparsify_schemas.task import BUILT_IN, Facts

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)(%|pp|ep|it|dur|[kMGT]|ms|[kMG]?B|[KMG]iB)")


@dataclass(frozen=True)
class Change:
    """One path that differs.

    `delta` is new - old where both are numbers, or quantities of one unit; None is absence.
    """

    path: str
    old: Any
    new: Any
    delta: float | None = None
    remark: str = ""
    """What a reader must know to judge the change."""

    @property
    def same(self) -> bool:
        """Whether nothing changed; such rows are listed on request only."""
        return are_equal(self.old, self.new)


def resolve_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a plain mapping in which equal meaning is equal text.

    Every default is written out, a constant schedule is its number, and a rule's layers are in order of
    name (a layer is selected when any of them matches).
    """
    data: dict[str, Any] = unfold_constants(recipe.model_dump(mode="json", by_alias=True))
    for rule in data["rules"]:
        rule["layers"] = sorted(rule["layers"])
    return data


def diff_recipes(
    a: Mapping[str, Any], b: Mapping[str, Any], *, unchanged: bool = False
) -> tuple[Change, ...]:
    """The changes from `a` to `b`, both in the form of `resolve_recipe`; `unchanged` adds the rest.

    Rules are matched by their layers and group, stages and targets by name, whatever their position; a rule
    or stage that finds no partner is one change. diff_recipes(a, a) is empty.
    """
    return tuple(c for c in _diff_mappings("", a, b) if unchanged or not c.same)


def diff_runs(
    a: Report, b: Report, recipe_a: Mapping[str, Any], recipe_b: Mapping[str, Any], *, unchanged: bool = False
) -> tuple[Change, ...]:
    """The changes from run `a` to run `b`: first `recipe.`, then `metrics.`, `widths.` and `experts.`."""
    recipes = (_prefix_change("recipe.", c) for c in _diff_mappings("", recipe_a, recipe_b))
    found = (
        *recipes,
        *_diff_figures(_list_metrics(a), _list_metrics(b), _write_remarks(a, b)),
        *_diff_figures(_list_widths(a.layers), _list_widths(b.layers), {}),
        *_diff_figures(_list_experts(a), _list_experts(b), {}),
    )
    return tuple(c for c in found if unchanged or not c.same)


def make_change(path: str, old: Any, new: Any, remark: str = "") -> Change:
    """Make a Change and compute its delta."""
    return Change(path, old, new, _compute_delta(old, new), remark)


def _prefix_change(prefix: str, c: Change) -> Change:
    return Change(prefix + c.path, c.old, c.new, c.delta, c.remark)


def _diff_values(path: str, old: Any, new: Any) -> Iterator[Change]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _diff_mappings(path, old, new)
    elif _are_records(old) and _are_records(new) and (old or new):
        yield from _diff_lists(path, old, new)
    elif path == "data" and None in (old, new):
        yield make_change(path, shorten_entry(path, old), shorten_entry(path, new))
    else:
        yield make_change(path, old, new)


def _diff_mappings(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys((*old, *new)):
        yield from _diff_values(_join_path(path, key), old.get(key), new.get(key))


def _join_path(path: str, key: str) -> str:
    if not path:
        return str(key)
    return f"{path}[{key}]" if path == "targets" else f"{path}.{key}"


def _diff_lists(
    path: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> Iterator[Change]:
    match path:
        case "rules":
            keys: tuple[_Key, ...] = (_layers_and_group, _layers_only, _same_group)
            matters = any(r.get("override") for r in (*old, *new))
        case "stages":
            keys, matters = (_take_name, _same_kind), True
        case _:
            keys, matters = (), False
    pairs = _pair_entries(old, new, keys)
    labels = _label_pairs(path, old, new, pairs)
    for (i, j), name in zip(pairs, labels, strict=True):
        left, right = (None if i is None else old[i]), (None if j is None else new[j])
        label = f"{path}[{name}]"
        if left is None or right is None:
            yield make_change(label, shorten_entry(path, left), shorten_entry(path, right))
        else:
            yield from _diff_mappings(label, left, right)
    if matters:
        yield from _diff_order(path, pairs, labels)


_Key = Callable[[int, Mapping[str, Any]], Hashable]
_Partners = tuple[int | None, int | None]
"""Positions in the old and in the new list; None on the side without such an entry."""


def _layers_and_group(_: int, rule: Mapping[str, Any]) -> Hashable:
    return "exact", _rule_name(rule)


def _layers_only(_: int, rule: Mapping[str, Any]) -> Hashable:
    return "layers", str(rule.get("layers"))


def _same_group(index: int, rule: Mapping[str, Any]) -> Hashable:
    return "group", index, str(rule.get("group"))


def _take_name(_: int, stage: Mapping[str, Any]) -> Hashable:
    return "name", str(stage.get("name"))


def _same_kind(index: int, stage: Mapping[str, Any]) -> Hashable:
    return "kind", index, str(stage.get("kind"))


def _pair_entries(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], keys: tuple[_Key, ...]
) -> list[_Partners]:
    """Partners by the first key that fits; without keys, by position.

    In order of the new list, the removed ones last.
    """
    if not keys:
        return list(zip_longest(range(len(old)), range(len(new))))
    partner: dict[int, int] = {}
    free = list(range(len(old)))
    for key in keys:
        for j, entry in enumerate(new):
            if j in partner:
                continue
            match = next((i for i in free if key(i, old[i]) == key(j, entry)), None)
            if match is not None:
                partner[j] = match
                free.remove(match)
    return [*((partner.get(j), j) for j in range(len(new))), *((i, None) for i in free)]


def _label_pairs(
    path: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], pairs: list[_Partners]
) -> list[str]:
    """A name for each pair that does not depend on which list came first.

    `conv*/filter`, `conv*/filter#2`.
    """
    labels = []
    for i, j in pairs:
        left, right = (None if i is None else old[i]), (None if j is None else new[j])
        labels.append(_label_pair(path, i, j, left, right))
    seen: dict[str, int] = {}
    for k in sorted(range(len(pairs)), key=lambda k: (None in pairs[k], _find_place(pairs[k]))):
        plain = labels[k]
        seen[plain] = seen.get(plain, 0) + 1
        labels[k] = plain if seen[plain] == 1 else f"{plain}#{seen[plain]}"
    return labels


def _find_place(partners: _Partners) -> int:
    return next(i for i in partners if i is not None)


def _label_pair(
    path: str, i: int | None, j: int | None, left: Mapping[str, Any] | None, right: Mapping[str, Any] | None
) -> str:
    """The name of both entries, or the position where their names differ."""
    names = {_entry_name(path, entry) for entry in (left, right) if entry is not None} - {None}
    if len(names) == 1:
        return str(names.pop())
    is_rule_pair = path == "rules" and left is not None and right is not None
    if is_rule_pair and left is not None and right is not None and left.get("layers") == right.get("layers"):
        return _layers_name(left)
    return str(_find_place((i, j)))


def _entry_name(path: str, entry: Mapping[str, Any]) -> str | None:
    match path:
        case "rules":
            return _rule_name(entry)
        case "stages":
            return str(entry.get("name"))
        case _:
            return None


def _rule_name(rule: Mapping[str, Any]) -> str:
    return f"{_layers_name(rule)}/{'protect' if rule.get('protect') else rule.get('group')}"


def _layers_name(rule: Mapping[str, Any]) -> str:
    layers = rule.get("layers")
    return layers if isinstance(layers, str) else ",".join(map(str, layers or ()))


def _diff_order(path: str, pairs: list[_Partners], labels: list[str]) -> Iterator[Change]:
    """The order of the entries that both lists have, where order matters."""
    both = []
    for (i, j), name in zip(pairs, labels, strict=True):
        if i is not None and j is not None:
            both.append((i, name))
    before = [name for _, name in sorted(both)]
    after = [name for _, name in both]
    if before != after:
        yield make_change(f"{path}.order", before, after)


def _are_records(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, Mapping) for v in value)


def are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(are_equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(are_equal, a, b))
    return bool(a == b)


def _compute_delta(old: Any, new: Any) -> float | None:
    x, y = _read_number(old), _read_number(new)
    if x is None or y is None or x[1] != y[1]:
        return None
    delta = y[0] - x[0]
    return delta if is_known(delta) else None


def _read_number(value: Any) -> tuple[float, str] | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value, ""
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    return (float(found[1]), found[2]) if found else None


def _list_metrics(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, side in (("cut", report.cut), ("dense", report.dense)):
        fields = {field: getattr(side, field) for field in Side.model_fields if field != "metrics"}
        if report.history and not report.rounds:  # a loop of one's own that does not say where it cut
            fields["epochs"] = None
        every = {_metric_path(field, report): value for field, value in fields.items()}
        every |= {_further_path(field): value for field, value in side.metrics.items()}
        found |= {f"metrics.{name}.{field}": value for field, value in every.items()}
    found["metrics.macs_left"] = divide(report.cut.macs, report.dense.macs)
    found["metrics.params_left"] = divide(report.cut.params, report.dense.params)
    for timing in report.latency:
        for field in ("dense_ms", "cut_ms", "speedup"):
            found[f"metrics.latency[{timing.target}].{field}"] = getattr(timing, field)
    for sparsity in report.sparsities:
        for field in ("nominal", "effective"):
            found[f"metrics.sparsity[{sparsity.what}].{field}"] = getattr(sparsity, field)
    found |= {f"metrics.columns[{e.module}]": e.live / e.columns for e in report.executions}
    found |= {f"metrics.met[{limit.what}]": limit.met for limit in report.limits}
    for round_ in report.rounds if len(report.rounds) > 1 else ():
        epoch = f"@{round_.epoch}" if round_.epoch else ""
        path = f"metrics.rounds[{round_.stage}{epoch}]"
        found[f"{path}.macs_left"] = divide(round_.macs, report.dense.macs)
        found[f"{path}.{_metric_path('validation_metric', report)}"] = round_.validation_metric
        found[f"{path}.verdict"] = round_.verdict.outcome
    found["metrics.verdict"] = report.verdict.outcome
    found["metrics.seconds"] = sum(s.seconds for s in report.stages)
    return found


def _metric_path(field: str, report: Report) -> str:
    """'validation_accuracy' for validation_metric: the metric's own name, and '(%)' behind a share of the
    user's own."""
    which = field.removesuffix("_metric")
    if which == field:
        return field
    judged_by = report.metric
    is_known_share = judged_by == Facts(name=judged_by.name) and judged_by.name in BUILT_IN
    unit = " (%)" if judged_by.percent and not is_known_share else ""
    return f"{which}_{judged_by.name}{unit}"


def _further_path(name: str) -> str:
    """'validation_r2' for 'validation r2'; a name of the user's own as it is."""
    which, space, rest = name.partition(" ")
    return f"{which}_{rest}" if space and which in ("validation", "test") else name


def _write_remarks(a: Report, b: Report) -> dict[str, str]:
    """Remarks on times: measured on another processor, or no measurable difference."""
    before = {t.target: t for t in a.latency}
    remarks: dict[str, str] = {}
    for timing in b.latency:
        if timing.target not in before:
            continue
        path = f"metrics.latency[{timing.target}]"
        if a.environment.processor != b.environment.processor:
            for field in ("dense_ms", "cut_ms", "speedup"):
                remarks[f"{path}.{field}"] = "other processor"
        elif _do_overlap(before[timing.target], timing):
            remarks[f"{path}.speedup"] = "no measurable difference"
    return remarks


def _do_overlap(a: Latency, b: Latency) -> bool:
    return a.low <= b.high and b.low <= a.high


def _list_widths(layers: Sequence[LayerRow]) -> dict[str, Any]:
    # Layers without MACs, such as normalisations, have the width of the layer before them.
    return {f"widths.{layer.name}": layer.outputs_after for layer in layers if layer.macs}


def _list_experts(report: Report) -> dict[str, Any]:
    return {f"experts.{row.name}": row.experts_after for row in report.mixtures}


def _diff_figures(
    old: Mapping[str, Any], new: Mapping[str, Any], remarks: Mapping[str, str]
) -> Iterator[Change]:
    for path in dict.fromkeys((*old, *new)):
        yield make_change(path, old.get(path), new.get(path), remarks.get(path, ""))
