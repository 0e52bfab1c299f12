"""Find by trial which of several attributes with one value holds a length: `num_heads` 8 or `head_dim` 8?"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice, product

from sparsify.graph.model_map import Coupled, Slice

TRIALS = 32
"""how many combinations are tried for one group"""


def choose_attributes(groups: Sequence[Coupled], fault: Callable[[Coupled], str | None]) -> list[Coupled]:
    """The groups with the attributes that make a trial cut correct; unchanged if no choice does.

    fault: what is wrong with a cut of one group, None if nothing is. It is only called if attributes
    compete.
    """
    chosen = []
    for group in groups:
        chosen.append(_choose_variant(group, fault) if has_rivals(group) else group)
    return chosen


def _choose_variant(group: Coupled, fault: Callable[[Coupled], str | None]) -> Coupled:
    variants = islice(_list_variants(group), TRIALS)
    return next((variant for variant in variants if fault(variant) is None), group)


def drop_attributes(group: Coupled) -> Iterator[Coupled]:
    """The group without some of the attributes that happen to equal the length of one of its dimensions."""
    names = sorted({_attribute_name(s) for s in group.slices if s.role == "size"})
    choices = (set(chosen) for count in reversed(range(len(names))) for chosen in combinations(names, count))
    for chosen in islice(choices, TRIALS):
        yield replace(
            group, slices=tuple(s for s in group.slices if s.role != "size" or _attribute_name(s) in chosen)
        )


def _attribute_name(size: Slice) -> str:
    return size.tensor.partition(":")[2]


def has_rivals(group: Coupled) -> bool:
    """Whether attributes of one module compete for one length of the group."""
    return bool(_find_rivals(group))


def _find_rivals(group: Coupled) -> list[list[Slice]]:
    """Attributes of one module that could mean the same length of the group."""
    rivals: dict[tuple[str, object], list[Slice]] = defaultdict(list)
    for part in group.slices:
        if part.role == "size":
            rivals[part.tensor.partition(":")[0], part.spans].append(part)
    return [own for own in rivals.values() if len(own) > 1]


def _list_variants(group: Coupled) -> Iterator[Coupled]:
    """The group with all attributes, then with every choice of one among those that compete."""
    yield group
    contested = _find_rivals(group)
    competing = {part for rivals in contested for part in rivals}
    others = tuple(part for part in group.slices if part not in competing)
    for choice in product(*contested):
        yield replace(group, slices=others + choice)
