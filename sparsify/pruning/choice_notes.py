"""Warnings about a choice that may ruin a network: a layer left with a sliver, scores that say nothing."""

from collections.abc import Iterator, Mapping, Sequence

from sparsify.formatting.numbers import count_noun, list_few
from sparsify.pruning.planning.candidates import LEAST_SHARE
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.criterion import Random
from sparsify_schemas.cuts import Cuts

NAMED = 3
"""layers that a warning names"""


def choice_notes(
    plan: Plan, cuts: Cuts, scores: Mapping[str, Sequence[float]], dead: Mapping[str, Sequence[bool]]
) -> Iterator[str]:
    """What a reader must know about which units were chosen.

    Args:
        scores, dead: one number and one flag for each unit of each coupled group that a rule chooses in.
    """
    yield from _slivers(cuts, dead)
    yield from _degenerate_scores(plan, scores, dead)


def _slivers(cuts: Cuts, dead: Mapping[str, Sequence[bool]]) -> Iterator[str]:
    """Groups that lost more than nine tenths of the units that were not zero."""
    found = []
    for width in cuts.widths:
        living = width.width - sum(dead.get(width.group, ()))
        if 0 < width.kept < LEAST_SHARE * living:
            found.append(f"'{width.group}' keeps {width.kept} of {width.width} units")
    if found:
        yield (
            f"Warning: {list_few(tuple(found), NAMED)}; so few may carry too little for the "
            "layers behind. Ask for less, bound the "
            "layers by keep.at_least, or choose by another criterion."
        )


def _degenerate_scores(
    plan: Plan, scores: Mapping[str, Sequence[float]], dead: Mapping[str, Sequence[bool]]
) -> Iterator[str]:
    """Criteria that score all living units of a group alike: the choice among them is arbitrary."""
    for index, rule in enumerate(plan.recipe.rules):
        if isinstance(rule.criterion, Random):
            continue
        names = [name for a in plan.assignments if a.rule == index for name in a.coupled]
        alike = [name for name in names if _are_alike(scores.get(name, ()), dead.get(name, ()))]
        if alike:
            quoted = list_few(tuple(f"'{name}'" for name in alike), NAMED)
            groups = count_noun(len(alike), "coupled group")
            yield (
                f"Warning: criterion '{rule.criterion.kind}' of rules.{index} scores all "
                f"units of {groups} alike "
                f"({quoted}), so the choice among them is arbitrary; look at the data it "
                "sees, or take magnitude."
            )


def _are_alike(scores: Sequence[float], dead: Sequence[bool]) -> bool:
    flags = dead if len(dead) == len(scores) else [False] * len(scores)
    living = [score for score, gone in zip(scores, flags, strict=True) if not gone]
    return len(living) > 1 and max(living) == min(living)
