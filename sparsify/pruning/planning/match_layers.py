"""Reaching: which layers a rule names, and which coupled groups, residual branches and tensors it speaks of there."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from sparsify.errors import Problem
from sparsify.graph.model_map import Branch, Coupled, Layer, ModelMap
from sparsify.recipe import Loaded
from sparsify_schemas.group import Kind, kind_of
from sparsify_schemas.penalty import GroupLasso
from sparsify_schemas.recipe import Recipe, Rule
from sparsify_schemas.selector import selects

_CONVS, _LINEAR = ("Conv1d", "Conv2d", "Conv3d"), ("Linear",)

ACTS_ON: dict[Kind, tuple[str, tuple[str, ...]]] = {
    "filter": (
        "convolutions",
        ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    ),
    "channel": (
        "convolutions",
        ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    ),
    "neuron": ("Linear layers and embeddings", ("Linear", "Conv1D", "Bilinear", "Embedding", "EmbeddingBag")),
    "head": ("linear projections of an attention", ("Linear", "Conv1D", "MultiheadAttention")),
    "hidden": (
        "recurrent layers",
        ("LSTM", "GRU", "RNN", "RNNBase", "LSTMCell", "GRUCell", "RNNCell", "RNNCellBase"),
    ),
    "depth": ("residual blocks and branches", ()),
    "weight": ("layers with a weight matrix", ()),
    "shape": ("convolutions without groups and Linear layers", _CONVS + _LINEAR),
    "tap": ("convolutions", _CONVS),
    "block": ("convolutions and Linear layers", _CONVS + _LINEAR),
    "n:m": ("convolutions and Linear layers", _CONVS + _LINEAR),
}

_MANY = 8
"""names that a message lists at most"""


def matched(loaded: Loaded, map: ModelMap, index: int, problems: list[Problem]) -> list[Layer]:
    """The layers of one rule, of the kind that its group acts on."""
    rule = loaded.recipe.rules[index]
    if rule.group == "depth":
        return _matched_branches(loaded, map, index, problems)
    found: dict[str, Layer] = {}
    for _at, pattern in enumerate(rule.layers):
        hits = [layer for layer in map.layers if selects((pattern,), layer.name, layer.classes)]
        if not hits and not (
            rule.protect and any(selects((pattern,), b.module, b.classes) for b in map.branches)
        ):
            problems.append(
                loaded.problem(
                    f"rules.{index}.layers", f"'{pattern}' matches no layer of the model", _near(pattern, map)
                )
            )
        fitting = [layer for layer in hits if _acts_on(map, rule, layer)]
        if hits and not fitting and rule.group is not None:
            what = ACTS_ON[kind_of(rule.group)][0]
            shown = ", ".join(f"{layer.name} ({layer.type})" for layer in hits[:3])
            linear = rule.group in ("filter", "channel") and all(layer.kind == "Linear" for layer in hits)
            advice = "use group 'neuron'" if linear else "select other layers"
            problems.append(
                loaded.problem(
                    f"rules.{index}.layers",
                    f"group '{rule.group}' acts on {what}, but '{pattern}' matches only {shown}",
                    advice,
                )
            )
        without = [layer for layer in fitting if rule.group == "head" and not of_rule(map, rule, layer)]
        if without and len(without) == len(fitting):
            shown = ", ".join(layer.name for layer in without[:3])
            problems.append(
                loaded.problem(
                    f"rules.{index}.layers",
                    f"there are no heads in {shown}: the rows leave one by one",
                    "use group 'neuron'",
                )
            )
        found |= {layer.name: layer for layer in fitting}
    return list(found.values())


def _matched_branches(loaded: Loaded, map: ModelMap, index: int, problems: list[Problem]) -> list[Layer]:
    """The residual blocks and branches of one rule; of those inside each other the outermost."""
    hits: list[Branch] = []
    for pattern in loaded.recipe.rules[index].layers:
        own = [b for b in map.branches if selects((pattern,), b.module, b.classes)]
        if not own:
            text = f"'{pattern}' matches no residual block or branch of the model"
            problems.append(loaded.problem(f"rules.{index}.layers", text, _known_branches(map)))
        hits += [b for b in own if b not in hits]
    free = [b for b in hits if b.group.protected is None]
    outermost = [
        b
        for b in free
        if not any(o is not b and len(o.tensors) > len(b.tensors) and o.overlaps(b) for o in free)
    ]
    inner = {
        b.module
        for b in hits
        if any(b.module.startswith(f"{o.module}.") or o.module.startswith(f"{b.module}.") for o in outermost)
    }
    stuck = [b for b in hits if b.group.protected is not None and b.module not in inner]
    return [
        Layer(b.name, b.type, (), b.macs, 0, 0, b.ancestors)
        for b in map.branches
        if b in outermost or b in stuck
    ]


def _known_branches(map: ModelMap) -> str:
    free = [b for b in map.branches if b.group.protected is None]
    if not free:
        return "none of its branches can leave; use another group"
    names = [b.module for b in free]
    return f"those that can leave are {_listed(names)}; their classes are {_listed(_class_names(free))}"


def _acts_on(map: ModelMap, rule: Rule, layer: Layer) -> bool:
    if rule.group is None:
        return bool(layer.weight) or bool(_bare(map, layer))
    kind = kind_of(rule.group)
    if kind == "weight":
        return len(layer.weight) > 1
    if kind in ("filter", "neuron") and _bare(map, layer):
        return True
    grouped = len(layer.weight) > 2 and layer.weight[1] != layer.inputs
    return layer.kind in ACTS_ON[kind][1] and not (kind == "shape" and grouped)


def _bare(map: ModelMap, layer: Layer) -> list[Coupled]:
    """Groups made by a parameter that a network's own module holds without a layer; they go by the parameter's name."""
    tensors = {t.name for t in map.tensors if t.name.rpartition(".")[0] == layer.name}
    return [c for c in map.coupled if c.name in tensors]


def _near(pattern: str, map: ModelMap) -> str:
    names = [layer.name for layer in map.layers]
    classes = _class_names(map.layers)
    close = [*_near_globs(pattern, map), *get_close_matches(pattern, [*names, *classes], n=1)]
    if close:
        return f"did you mean '{close[0]}'?"
    return f"the layers are {_listed(names)}; their classes are {_listed(classes)}"


def _class_names(parts: Iterable[Layer | Branch]) -> list[str]:
    """Every class name by which a rule reaches one of them, in alphabetical order."""
    return sorted({name for part in parts for name in part.classes})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MANY]) + (", ..." if len(names) > _MANY else "")


def _near_globs(pattern: str, map: ModelMap) -> Iterable[str]:
    """'covn*' -> 'conv*': the longest literal part of a glob replaced by a part of a name that is like it."""
    if pattern.startswith("re:") or not set(pattern) & set("*?["):
        return
    literal = max(re.split(r"[*?.]|\[[^]]*\]?", pattern), key=len) or pattern
    parts = {part for layer in map.layers for part in layer.name.split(".")}
    for part in get_close_matches(
        literal, sorted(parts | {part.rstrip("0123456789") for part in parts}), n=3
    ):
        glob = pattern.replace(literal, part)
        if any(selects((glob,), layer.name, layer.classes) for layer in map.layers):
            yield glob


def reached(map: ModelMap, layer: Layer, role: str) -> list[Coupled]:
    matrices = _matrices(layer)
    by_name = {layer.name, *(c.name for c in _bare(map, layer))} if role == "out" else set()
    return [
        c
        for c in map.coupled
        if c.name in by_name or any(s.tensor in matrices and s.role == role for s in c.slices)
    ]


def _matrices(layer: Layer) -> set[str]:
    """The weight of a layer, under the names that it may have in torch: an attention has projections, a parametrized
    layer has what its weight is computed from."""
    attention = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return {*layer.weights, *(f"{layer.name}.{name}" for name in attention)}


def of_rule(map: ModelMap, rule: Rule, layer: Layer) -> list[Coupled]:
    match rule.group:
        case "filter" | "neuron":
            return reached(map, layer, "out")
        case "head":
            return [c for c in reached(map, layer, "out") if _rows(c, layer) > 1]
        case "hidden":
            return [
                c
                for c in map.coupled
                if any(s.tensor.startswith(f"{layer.name}.weight_hh") for s in c.slices)
            ]
        case "depth":
            return [map.by_name[layer.name]]
        case "channel":
            depthwise = layer.weight[1:2] == (1,) and layer.inputs == layer.outputs > 1
            return reached(map, layer, "out" if depthwise else "in")
        case _:
            return []


def around(map: ModelMap, group: Coupled) -> list[Coupled]:
    """The residual branches that contain this one or a part of it."""
    own = next((b for b in map.branches if b.group is group), None)
    return [] if own is None else [b.group for b in map.branches if b is not own and b.overlaps(own)]


def _rows(group: Coupled, layer: Layer) -> int:
    """How many rows of a layer's weight leave with one unit."""
    matrices = _matrices(layer)
    own = [s for s in group.slices if s.tensor in matrices and s.role == "out"]
    return sum(span.units * span.repeat for s in own for span in s.spans) // max(group.width, 1)


def weights(rule: Rule, map: ModelMap, layer: Layer) -> list[str]:
    """The tensors of a layer that a penalty of single weights or of the layer's own slices covers."""
    if rule.group == "depth":
        own = {s.tensor for s in map.by_name[layer.name].slices}
        return [t.name for t in map.tensors if t.name in own and t.parameter and t.shape]
    if rule.group == "hidden":
        return [t.name for t in map.tensors if t.name.startswith(f"{layer.name}.weight_")]
    matrices = _matrices(layer)
    return [t.name for t in map.tensors if t.name in matrices] or [f"{layer.name}.weight"]


def target_of(spec: GroupLasso, recipe: Recipe) -> str:
    """The target by whose latency a penalty weighs."""
    return spec.target or next(iter(recipe.targets))


def weighed_by(recipe: Recipe) -> list[str]:
    """The targets by whose latency any penalty weighs."""
    asking = [
        r.penalty for r in recipe.rules if isinstance(r.penalty, GroupLasso) and r.penalty.weight == "latency"
    ]
    return list(dict.fromkeys(target_of(spec, recipe) for spec in asking))
