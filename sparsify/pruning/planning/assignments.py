"""Which rule has which layers, coupled groups and tensors, and where two rules want the same."""

from collections.abc import Iterable, Mapping, Sequence

from sparsify.errors import Problem
from sparsify.graph.model_map import Layer, ModelMap
from sparsify.pruning.planning.group_types import (
    find_groups,
    find_tensors,
    list_clashing,
)
from sparsify.pruning.planning.match_layers import (
    find_overlapping_branches,
    find_overlapping_mixtures,
    match_layers,
)
from sparsify.pruning.planning.pattern_fit import check_patterns
from sparsify.pruning.planning.plan import Assignment
from sparsify.recipe import Positions
from sparsify_schemas.budget import Budget
from sparsify_schemas.group import in_one_tensor, kind_of, removes_experts
from sparsify_schemas.recipe import Recipe


def assign_rules(
    recipe: Recipe, positions: Positions, map: ModelMap, problems: list[Problem]
) -> Iterable[Assignment]:
    rules = recipe.rules
    layers: dict[int, list[Layer]] = {
        i: match_layers(recipe, positions, map, i, problems)
        for i, rule in enumerate(rules)
        if not rule.protect
    }
    claimed: dict[tuple[str, str], int] = {}
    owner: dict[str, tuple[int, str]] = {}
    for index, own in layers.items():
        rule = rules[index]
        for layer in own:
            first = claimed.setdefault((layer.name, str(rule.group)), index)
            if first != index and not rule.override:
                problems.append(
                    _report_overlap(
                        positions,
                        index,
                        f"layer '{layer.name}' already has group '{rule.group}' by rules.{first}",
                    )
                )
                continue
            claimed[layer.name, str(rule.group)] = index
            for group in [
                g
                for c in find_groups(rule.group, map, layer)
                for g in (c, *find_overlapping_branches(map, c), *find_overlapping_mixtures(map, c))
            ]:
                before, through = owner.get(group.name, (index, layer.name))
                if group.protected is None and before != index and first == index and not rule.override:
                    text = (
                        f"'{layer.name}' and '{through}' are pruned together (coupled group "
                        f"'{group.name}'), and rules.{before} already covers that group"
                    )
                    problems.append(_report_overlap(positions, index, text))
                    continue
                owner[group.name] = (index, layer.name)
    problems += _check_numbered_experts(recipe, positions, map, layers)
    problems += [*_check_clashes(recipe, positions, layers), *check_patterns(recipe, positions, map, layers)]
    problems += _check_shared_experts(recipe, positions, map, layers)
    for index, own in layers.items():
        rule = rules[index]
        mine = [layer for layer in own if claimed[layer.name, str(rule.group)] == index]
        names: dict[str, None] = {}
        tensors = []
        for layer in mine:
            groups = find_groups(rule.group, map, layer)
            open_groups = [c.name for c in groups if owner[c.name][0] == index and c.protected is None]
            names |= dict.fromkeys(open_groups)
            if open_groups or in_one_tensor(rule.group):
                tensors += find_tensors(rule.group, map, layer)
        layer_names = tuple(layer.name for layer in mine)
        yield Assignment(index, layer_names, tuple(names), tuple(tensors))


def _check_clashes(
    recipe: Recipe, positions: Positions, layers: Mapping[int, Sequence[Layer]]
) -> Iterable[Problem]:
    """Rules on groups inside one tensor of which the later would undo what the earlier counts on."""
    rules = recipe.rules
    first: dict[tuple[str, str], int] = {}
    for index, own in layers.items():
        group = rules[index].group
        if group is None:
            continue
        kind = kind_of(group)
        clashes = list_clashing(kind)
        for layer in own:
            earlier = [first[layer.name, other] for other in clashes if (layer.name, other) in first]
            first_rule = next(iter(earlier), None)
            first.setdefault((layer.name, kind), index)
            if first_rule is None or rules[first_rule].group == group:
                continue
            text = (
                f"layer '{layer.name}' has group '{rules[first_rule].group}' by rules.{first_rule}; "
                f"group '{group}' cannot be combined with it on the same layer"
            )
            yield positions.problem(f"rules.{index}.layers", text, "narrow one of the two selectors")


def _check_numbered_experts(
    recipe: Recipe, positions: Positions, map: ModelMap, layers: Mapping[int, Sequence[Layer]]
) -> Iterable[Problem]:
    """Rules that set weights to zero in experts which are members of a list, of which others leave: what is
    left gets new numbers, and the zeros are carried by name."""
    lists: dict[str, int] = {}
    for index, own in layers.items():
        if removes_experts(recipe.rules[index].group):
            names = {layer.name for layer in own}
            mixtures = [mixture for mixture in map.mixtures if mixture.name in names]
            lists |= {f"{name}.": index for mixture in mixtures for name in mixture.lists}
    for index, own in layers.items():
        if not in_one_tensor(recipe.rules[index].group):
            continue
        for layer in own:
            first = next((rule for name, rule in lists.items() if layer.name.startswith(name)), None)
            if first is not None:
                text = (
                    f"'{layer.name}' is part of an expert that may leave by rules.{first}, and experts get "
                    f"new numbers by that; group '{recipe.rules[index].group}' cannot be combined with it"
                )
                advice = "cut the experts by a recipe of their own, and what is left by another one"
                yield positions.problem(f"rules.{index}.layers", text, advice)
                break


def _check_shared_experts(
    recipe: Recipe, positions: Positions, map: ModelMap, layers: Mapping[int, Sequence[Layer]]
) -> Iterable[Problem]:
    """Rules on neurons of experts in lists, beside a rule that takes such experts out, where a budget decides
    how much either takes: what a neuron frees would depend on which experts leave."""
    if recipe.budget == Budget():
        return
    for taking, own in layers.items():
        if not removes_experts(recipe.rules[taking].group):
            continue
        names = {layer.name for layer in own}
        lists = [f"{name}." for mixture in map.mixtures if mixture.name in names for name in mixture.lists]
        for index, others in layers.items():
            group = recipe.rules[index].group
            if index == taking or group is None:
                continue
            inside = next((x.name for x in others if x.name.startswith(tuple(lists))), None)
            open_amount = recipe.rules[index].sparsity is None or recipe.rules[taking].sparsity is None
            if inside is not None and open_amount:
                text = (
                    f"'{inside}' is part of an expert that may leave by rules.{taking}, so a budget cannot "
                    f"tell what group '{group}' frees there"
                )
                advice = f"give rules.{taking} and rules.{index} a 'sparsity' each, or cut the experts first"
                yield positions.problem(f"rules.{index}.layers", text, advice)


def _report_overlap(positions: Positions, index: int, text: str) -> Problem:
    return positions.problem(
        f"rules.{index}.layers",
        text,
        "narrow one of the two selectors, or say 'override: true' in the later rule",
    )
