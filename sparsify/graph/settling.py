"""Which of several attributes of one value holds a length: `num_heads` 8 or `head_dim` 8? Found by trial."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, product

from sparsify.plan import Coupled, Slice

TRIALS = 32
"""how many combinations are tried for one group"""


def settled(groups: Sequence[Coupled], fault: Callable[[Coupled], str | None]) -> list[Coupled]:
    """The groups with the attributes that let a trial cut run; where none does, as they were.

    fault: why a cut of one group does not run, None if it does.
    """
    return [next((v for v in islice(_variants(group), TRIALS) if fault(v) is None), group) for group in groups]


def _variants(group: Coupled) -> Iterator[Coupled]:
    """The group with all attributes, then with every choice of one among those of a module that mean the same length."""
    rivals: dict[tuple[str, object], list[Slice]] = defaultdict(list)
    for part in group.slices:
        if part.role == "size":
            rivals[part.tensor.partition(":")[0], part.spans].append(part)
    yield group
    contested = [own for own in rivals.values() if len(own) > 1]
    if not contested:
        return
    others = tuple(s for s in group.slices if not any(s in own for own in contested))
    for choice in product(*contested):
        yield replace(group, slices=others + choice)
