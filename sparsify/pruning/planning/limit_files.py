"""Limits of layers, as found for a network: whether they were found for this one."""

from collections.abc import Iterable
from difflib import get_close_matches

from sparsify.errors import Problem
from sparsify.graph.model_map import ModelMap
from sparsify.recipe import Origin, Positions
from sparsify_schemas.recipe import Recipe


def check_limits(recipe: Recipe, positions: Positions, map: ModelMap) -> Iterable[Problem]:
    """Limits of layers that the model does not have, or has in other widths."""
    known = [layer.name for layer in map.layers]
    for index, rule in enumerate(recipe.rules):
        origin = next((o for o in positions.origins if o.rule == index), None)
        for name in rule.keep.limits:
            if name not in known:
                near = get_close_matches(name, known, 1) if origin is None else []
                found = (
                    "have the limits found for this model: sparsify sensitivity RECIPE MODEL --limits 1pp"
                    if origin is None
                    else _advise_new_limits(origin)
                )
                hint = f"did you mean '{near[0]}'?" if near else found
                yield positions.problem(
                    f"rules.{index}.keep.limits", f"the model has no layer '{name}'", hint
                )
    for origin in positions.origins:
        if other := _list_other_widths(origin, map):
            message = (
                f"{origin.file} has the limits of a network in which "
                f"{other[0]}{f' ({len(other) - 1} more)' if other[1:] else ''}"
            )
            yield positions.problem(f"rules.{origin.rule}.keep.limits", message, _advise_new_limits(origin))


def note_other_networks(positions: Positions, map: ModelMap) -> Iterable[str]:
    """Limits that were found for a network that only looks like this one."""
    for origin in positions.origins:
        if origin.profile.network not in (None, map.network) and not _list_other_widths(origin, map):
            yield (
                f"rules.{origin.rule}: {origin.file} has the limits of another network, with layers of the "
                f"same names and widths; {_advise_new_limits(origin)}"
            )


def _list_other_widths(origin: Origin, map: ModelMap) -> tuple[str, ...]:
    """How the network that limits were found for differs in width from this one."""
    pairs = [
        (curve, map.by_name[curve.group].width)
        for curve in origin.profile.curves
        if curve.group in map.by_name
    ]
    return tuple(
        f"'{curve.group}' has {curve.width} units, and here it has {width}"
        for curve, width in pairs
        if curve.width != width
    )


def _advise_new_limits(origin: Origin) -> str:
    return f"have the limits of this network found: {origin.command} --force"
