"""The values between a model and a cut: ModelMap, Plan. Frozen, JSON-able, free of tensors."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from sparsify.formatting.numbers import count_noun
from sparsify.forward.recorded_calls import RecordedCall
from sparsify.graph.model_map import Coupled, ModelMap
from sparsify_schemas.group import in_one_tensor, within
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.rule import Keep


@dataclass(frozen=True)
class Assignment:
    """One rule, resolved against the model."""

    rule: int
    """its index in the recipe"""
    layers: tuple[str, ...]
    """layers it matched"""
    coupled: tuple[str, ...] = ()
    """coupled groups it chooses in (structural group types)"""
    tensors: tuple[str, ...] = ()
    """weights it covers (layer-scope penalties, group type weight)"""
    multiple: int = 1
    """what kept widths are a multiple of: the rule's own `keep.multiple_of`, or what `auto` comes to"""


@dataclass(frozen=True)
class Floor:
    """The least that a budgeted quantity can come to, with everything removable removed."""

    what: str
    """macs, params, bytes, peak_memory or latency.<target>"""
    dense: float
    limit: float
    least: float


_UNTOLD = frozenset(("lifetimes", "products", "shared"))
"""what of a map the digest and the JSON of a plan leave out: it follows from the network and its inputs"""


@dataclass(frozen=True)
class Plan:
    """A recipe resolved against a model: what each rule reaches, what is protected and why, what a budget
    allows.

    `preview` holds the widths (coupled group, units kept) if the cut were made now, on the present weights,
    which are `random` where training is still to come from scratch; `predicted` (target, milliseconds) at
    these widths, where the budget limits a latency; `prices` (target, coupled group, share of its
    milliseconds that goes with one unit), where a penalty weighs by a latency. These, and floors in
    milliseconds, which no two measurements agree on, are no part of the digest.
    """

    recipe: Recipe
    map: ModelMap
    assignments: tuple[Assignment, ...]
    floors: tuple[Floor, ...] = ()
    notes: tuple[str, ...] = ()
    preview: tuple[tuple[str, int], ...] = ()
    predicted: tuple[tuple[str, float], ...] = ()
    prices: tuple[tuple[str, str, float], ...] = ()
    random: bool = False

    @cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of recipe,
        map and assignments; independent of key order.

        Names of base classes, and names without adapters, do not count: what rules reach by them stands in
        the assignments.
        Of the inputs count methods, shapes and element types, not the numbers that they are drawn by.
        """
        body = self._body() | {
            "floors": [asdict(f) for f in self.floors if not f.what.startswith("latency.")]
        }
        for part in (*body["map"]["layers"], *body["map"]["branches"], *body["map"]["mixtures"]):
            for name in ("ancestors", "plain", "adapter"):
                part.pop(name, None)
        untold = (
            ("unreached", "in_training") if self.map.mixtures else ("unreached", "in_training", "mixtures")
        )
        told = {key: value for key, value in body["map"].items() if key not in untold}
        body["map"] = told | {"inputs": _describe_calls(self.map.inputs)}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """One line; `sparsify.describe(plan)` gives the tables."""
        rules, layers = count_noun(len(self.recipe.rules), "rule"), count_noun(len(self.map.layers), "layer")
        reached = {name for assignment in self.assignments for name in assignment.coupled}
        open_groups = len(reached & {group.name for group in self.map.coupled})
        groups = f"{open_groups} of {count_noun(len(self.map.coupled), 'coupled group')}"
        verb = "reaches" if len(self.recipe.rules) == 1 else "reach"
        return f"Plan {self.digest} ({self.recipe.title}): {rules} {verb} {groups} of a model with {layers}"

    def to_json(self) -> dict[str, Any]:
        """A mapping that `json.dumps` takes."""
        preview, predicted = map(list, self.preview), map(list, self.predicted)
        return {
            "digest": self.digest,
            **self._body(),
            "preview": list(preview),
            "predicted": list(predicted),
            "random": self.random,
        }

    def _body(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            "map": _describe_map(self.map),
            "assignments": [asdict(a) for a in self.assignments],
            "floors": [asdict(f) for f in self.floors],
            "notes": list(self.notes),
        }


def _describe_map(map: ModelMap) -> dict[str, Any]:
    told = {key: value for key, value in asdict(map).items() if key not in _UNTOLD}
    for group in told["coupled"]:  # what trial cuts are made by
        _drop_trial_facts(group)
    for part in (*told["branches"], *told["mixtures"]):
        _drop_trial_facts(part["group"])
    for mixture in told["mixtures"]:
        if not mixture["prefix"]:
            del mixture["prefix"]
    return told


def _drop_trial_facts(group: dict[str, Any]) -> None:
    for name in ("doubt", "settings"):
        del group[name]
    if group["least"] == 1:
        del group["least"]
    if not group["given"]:
        del group["given"]


def _describe_calls(calls: tuple[RecordedCall, ...]) -> list[Any]:
    """What a digest knows of the calls: (keyword or None, shape, element type) of each tensor of one call of
    `forward`, as it was when there was nothing else;
    else their descriptions without the numbers that tensors are drawn by."""
    (only, *others) = calls or (RecordedCall("forward", ()),)
    tensors = [argument.tensor for argument in only.arguments if argument.tensor is not None]
    first = next((tensor.shape[0] for tensor in tensors if tensor.shape), None)
    assumed = []
    for tensor in tensors:
        counts_examples = bool(tensor.shape) and tensor.shape[0] == first
        assumed.append(0 if counts_examples else None)
    bare = len(tensors) == len(only.arguments) and [tensor.batch for tensor in tensors] == assumed
    if bare and not others and only.method == "forward" and not only.fixed:
        return [(a.name, a.tensor.shape, a.tensor.dtype) for a in only.arguments if a.tensor is not None]
    return [_drop_ranges(asdict(each)) for each in calls]


def _drop_ranges(argument: Any) -> Any:
    """The description of a call without the numbers that its tensors are drawn by."""
    if isinstance(argument, dict):
        return {
            key: _drop_ranges(value) for key, value in argument.items() if key not in ("kind", "low", "high")
        }
    if isinstance(argument, list | tuple):
        return [_drop_ranges(item) for item in argument]
    return argument


def join_ranked(plan: Plan) -> tuple[tuple[Assignment, ...], ...]:
    """The assignments whose groups, or weights, compete as one:
    those of gsm rules of one `sparsity`; any other by itself."""
    sets: dict[tuple[object, ...], list[Assignment]] = {}
    for assignment in plan.assignments:
        rule = plan.recipe.rules[assignment.rule]
        key: tuple[object, ...] = (assignment.rule,)
        if rule.penalty is not None and rule.penalty.facts().ranks_over_rules:
            key = (rule.penalty.kind, rule.sparsity, in_one_tensor(rule.group), within(rule.group))
        sets.setdefault(key, []).append(assignment)
    return tuple(map(tuple, sets.values()))


def count_kept_by_limits(keep: Keep, group: Coupled) -> int:
    """Units that `keep.limits` says must stay: the strictest of its layers' limits,
    the share that may go rounded down."""
    own = {group.name, *(part.tensor.rpartition(".")[0] for part in group.slices if part.role == "out")}
    return group.width - min(
        (int(share.fraction * group.width + 1e-6) for layer, share in keep.limits.items() if layer in own),
        default=group.width,
    )
