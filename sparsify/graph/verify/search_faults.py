"""Find the groups that fail a trial cut, with few trials."""

from collections.abc import Callable, Sequence

from sparsify.graph.model_map import Coupled
from sparsify.graph.name_kinds import name_kind

Fault = Callable[[Sequence[Coupled]], str | None]
"""what is wrong with a cut of these groups; None if nothing is"""


def find_cuttable(groups: Sequence[Coupled], fault: Fault, reasons: dict[str, str]) -> list[Coupled]:
    """The groups that can be cut together; the others get their reason.

    Where all together fail, groups of one kind are tried together, as blocks that are built alike fail alike.
    Each group that fails has failed by itself.
    """
    if not groups or fault(groups) is None:
        return list(groups)
    good = []
    for alike in _split_by_kind(groups):
        good += _search_kind(alike, fault, reasons)
    order = {group.name: place for place, group in enumerate(groups)}
    good.sort(key=lambda group: order[group.name])
    if good and fault(good) is not None:
        _add_one_by_one(good, fault, reasons)  # each part was fine by itself: add the groups one by one
    return [c for c in good if c.name not in reasons]


def _split_by_kind(groups: Sequence[Coupled]) -> list[list[Coupled]]:
    """Groups whose names differ in numbers alone: those of a block that is repeated."""
    kinds: dict[str, list[Coupled]] = {}
    for group in groups:
        kinds.setdefault(name_kind(group.name), []).append(group)
    return list(kinds.values())


def _search_kind(groups: Sequence[Coupled], fault: Fault, reasons: dict[str, str]) -> list[Coupled]:
    """The groups without fault of one kind. Where the first fails by itself, so may each of them."""
    if len(groups) > 2 and fault(groups[:1]) is not None:
        return [group for group in groups if _bisect_groups([group], fault, reasons)]
    return _bisect_groups(groups, fault, reasons)


def _bisect_groups(groups: Sequence[Coupled], fault: Fault, reasons: dict[str, str]) -> list[Coupled]:
    """The groups without fault, found by halving; the others get their reason."""
    if not groups:
        return []
    why = fault(groups)
    if why is None:
        return list(groups)
    if len(groups) == 1:
        reasons[groups[0].name] = f"a trial cut failed: {why}"
        return []
    half = len(groups) // 2
    return _bisect_groups(groups[:half], fault, reasons) + _bisect_groups(groups[half:], fault, reasons)


def _add_one_by_one(groups: Sequence[Coupled], fault: Fault, reasons: dict[str, str]) -> None:
    good: list[Coupled] = []
    for group in groups:
        why = fault([*good, group])
        if why is None:
            good.append(group)
        else:
            reasons[group.name] = f"a trial cut together with other layers failed: {why}"
