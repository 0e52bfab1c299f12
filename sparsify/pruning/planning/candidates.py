"""What a choice is made among: units in the order they would go, and what always stays of each group."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, lcm

from sparsify.pruning.planning.equal_layers import find_equal_layers
from sparsify.pruning.planning.group_types import group_type_of
from sparsify.pruning.planning.plan import Assignment, Plan, count_kept_by_limits
from sparsify_schemas.group import removes_branches
from sparsify_schemas.rule import Keep, Rule

LEAST_SHARE = 0.1
"""share of its living units that a layer keeps where the recipe does not say what stays:
a layer left with a sliver of its units lets nothing through, whatever the scores say.
It gives way to budgets and demands that cannot be met otherwise"""
LEAST_OF_EVEN = 0.5
"""the same, relative to what each layer would keep if all layers kept the same share for the same budget;
counts where it is more. A choice by score per cost would empty the few layers that cost most"""


@dataclass(frozen=True)
class Candidate:
    """One coupled group open to choice: units in the order in which they would go, their scores, and its
    bounds."""

    name: str
    order: tuple[int, ...]
    scores: tuple[float, ...]
    dead: int
    keep: Keep
    multiple: int
    """what kept widths are a multiple of"""
    rule: int
    floor: int = 1
    """units that stay in any case"""
    equal: str | None = None
    """the set of groups that keep as many units as this one"""

    def key(self, at: int) -> float:
        """The score by which the unit at this place of the order goes:
        the mean over those that must go with it for a width that is allowed."""
        if self.multiple == 1:
            return self.scores[self.order[at]]
        first = (len(self.order) - 1) % self.multiple + 1
        start = 0 if at < first else first + (at - first) // self.multiple * self.multiple
        units = self.order[start : first if at < first else start + self.multiple]
        return sum(self.scores[unit] for unit in units) / len(units)

    def gone(self, wanted: int) -> tuple[int, ...]:
        """The units that really go when so many should:
        kept widths stay above the floor and are rounded up."""
        return self.order[: self.count_gone(wanted)]

    def count_gone(self, wanted: int) -> int:
        """How many these are."""
        width = len(self.order)
        return width - width_kept(width, wanted, self.floor, self.multiple)


def width_kept(width: int, wanted: int, floor: int, multiple: int) -> int:
    """What stays of a width when so many units should go: at least the floor, rounded up to a multiple."""
    kept = max(width - wanted, min(floor, width))
    return min(width, ceil(kept / multiple) * multiple)


def list_candidates(
    plan: Plan, scores: Mapping[str, Sequence[float]], dead: Mapping[str, Sequence[bool]]
) -> tuple[Candidate, ...]:
    """Every coupled group that a rule chooses in, its units sorted: dead ones, then by score."""
    found = []
    for assignment in plan.assignments:
        equal = find_equal_layers(plan, assignment)
        floors = _find_floors(plan, assignment, equal)
        for name in assignment.coupled:
            width = plan.map.by_name[name].width
            values = tuple(map(float, scores[name])) if name in scores else (0.0,) * width
            gone = tuple(map(bool, dead[name])) if name in dead else ()
            keep = plan.recipe.rules[assignment.rule].keep
            found.append(
                Candidate(
                    name,
                    _sort_units(values, gone),
                    values,
                    sum(gone),
                    keep,
                    find_unit_multiple(plan, assignment, name),
                    assignment.rule,
                    floors[name],
                    equal.get(name),
                )
            )
    return tuple(found)


def find_unit_multiple(plan: Plan, assignment: Assignment, name: str) -> int:
    """What the number of kept units is a multiple of, so that kept channels are one of `multiple_of`: several
    channels may leave as one unit, as a group of a grouped convolution does. Heads and hidden units count as
    they are."""
    rule = plan.recipe.rules[assignment.rule]
    if assignment.multiple == 1 or rule.group is None or group_type_of(rule.group).step is None:
        return assignment.multiple
    group = plan.map.by_name[name]
    made = [part for part in group.slices if part.role == "out"]
    own = [part for part in made if part.tensor in assignment.tensors] or made[:1]
    found = 1
    for part in own:
        channels = sum(span.units * span.repeat for span in part.spans) // group.width
        found = lcm(found, assignment.multiple // gcd(assignment.multiple, channels))
    return found


def _sort_units(values: Sequence[float], dead: Sequence[bool]) -> tuple[int, ...]:
    """Units in the order in which they go: dead ones, then by score, then by number. Two stable sorts are
    several times faster than one by tuples."""
    order = sorted(range(len(values)), key=values.__getitem__)
    if any(dead):
        order.sort(key=lambda unit: not dead[unit])
    return tuple(order)


def _find_floors(plan: Plan, assignment: Assignment, equal: Mapping[str, str]) -> dict[str, int]:
    """Coupled group -> units that stay in any case; of residual branches none yet.

    equal: coupled group -> the set that keeps equal widths with it.
    """
    rule = plan.recipe.rules[assignment.rule]
    if removes_branches(rule.group):
        return dict.fromkeys(assignment.coupled, 0)
    found = {
        name: max(
            rule.keep.at_least or 1,
            count_kept_by_limits(rule.keep, plan.map.by_name[name]),
            plan.map.by_name[name].least,
        )
        for name in assignment.coupled
    }
    highest: dict[str, int] = {}
    for name, together in equal.items():
        highest[together] = max(highest.get(together, 0), found[name])
    return {name: highest[equal[name]] if name in equal else floor for name, floor in found.items()}


def keep_best_branches(
    plan: Plan, groups: Sequence[Candidate], key: Callable[[Candidate], tuple[float, ...]]
) -> tuple[Candidate, ...]:
    """Of each rule with group depth as many residual branches marked to stay as
    `at_least` says: the last by the key."""
    spared: set[str] = set()
    for index, rule in enumerate(plan.recipe.rules):
        if removes_branches(rule.group) and rule.keep.at_least is not None:
            own = sorted((c for c in groups if c.rule == index), key=key)
            spared |= {c.name for c in own[max(0, len(own) - rule.keep.at_least) :]}
    found = []
    for candidate in groups:
        found.append(replace(candidate, floor=1) if candidate.name in spared else candidate)
    return tuple(found)


def keep_least_share(
    plan: Plan, groups: Sequence[Candidate], part: float, even: float = 0.0
) -> tuple[Candidate, ...]:
    """The candidates with the default bound: each keeps a share of its living units, rounded up.

    It is `LEAST_OF_EVEN` of the share that an even cut keeps, or `LEAST_SHARE` where that is more, or where a
    penalty decides what goes. Groups of rules that say `keep.at_least`, and residual branches, stay as they
    are; so do those of a rule whose own `sparsity` could not be reached otherwise.

    even: share that every group keeps where all lose the same share, of the rules without a `sparsity`.
    """
    shares = [_find_least_share(rule, part, even) for rule in plan.recipe.rules]
    found = tuple(_keep_share(plan, candidate, shares[candidate.rule]) for candidate in groups)
    unreachable = set()
    for index, rule in enumerate(plan.recipe.rules):
        own = [c for c in found if c.rule == index]
        if rule.sparsity is not None and own:
            width = sum(len(c.order) for c in own)
            removable = sum(len(c.gone(len(c.order))) for c in own)
            if removable < round(part * rule.sparsity.fraction * width):
                unreachable.add(index)
    kept = []
    for before, after in zip(groups, found, strict=True):
        kept.append(before if before.rule in unreachable else after)
    return tuple(kept)


def _find_least_share(rule: Rule, part: float, even: float) -> float:
    if rule.penalty is not None:
        return LEAST_SHARE
    kept = even if rule.sparsity is None else 1 - part * rule.sparsity.fraction
    return max(LEAST_SHARE, LEAST_OF_EVEN * kept)


def _keep_share(plan: Plan, candidate: Candidate, share: float) -> Candidate:
    rule = plan.recipe.rules[candidate.rule]
    if rule.keep.at_least is not None or removes_branches(rule.group):
        return candidate
    living = len(candidate.order) - candidate.dead
    return replace(candidate, floor=max(candidate.floor, ceil(share * living)))
