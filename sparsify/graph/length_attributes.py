"""Find by trial which of several attributes with one value holds a length: `num_heads` 8 or `head_dim` 8?"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice, product

from sparsify.graph.model_map import Coupled, Slice
from sparsify.graph.name_kinds import name_kind
from sparsify.graph.surgery.width_names import counts_heads_of_a_key, is_head_count, names_another_thing

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


def add_settings(group: Coupled) -> Iterator[Coupled]:
    """The group with numbers that equal the length of one of its dimensions, and that nothing else shows to
    follow it: with each alone, then with all that count heads, then with all."""
    named: dict[str, list[Slice]] = defaultdict(list)
    for part in group.settings:
        named[_attribute_name(part)].append(part)
    heads = [part for part in group.settings if is_head_count(_last_word(part))]
    alone = sorted(named.values(), key=lambda parts: not is_head_count(_last_word(parts[0])))
    for chosen in islice((*alone, heads, list(group.settings)), TRIALS):
        if chosen:
            yield replace(group, slices=(*group.slices, *chosen))


def add_the_same(found: Coupled, before: Coupled, others: Iterable[Coupled]) -> list[Coupled]:
    """The other groups of its kind with the settings that were added to one of them: those of blocks that are
    built alike."""
    kind = name_kind(found.name)
    added = {_attribute_name(part) for part in found.slices[len(before.slices) :]}
    alike = []
    for group in others:
        own = tuple(part for part in group.settings if _attribute_name(part) in added)
        if own and name_kind(group.name) == kind:
            alike.append(replace(group, slices=(*group.slices, *own)))
    return alike


def set_unlikely_aside(sizes: Sequence[Slice], share_key: bool) -> tuple[list[Slice], list[Slice]]:
    """(the attributes, those whose name says that they are no width, as `kernel_size` and `num_patches`)

    share_key: whether the units are heads that share one key, and so are all that a key is repeated for.
    """
    aside = [size for size in sizes if names_another_thing(_last_word(size))]
    if share_key:
        aside = [size for size in aside if not counts_heads_of_a_key(_last_word(size))]
    return [size for size in sizes if size not in aside], aside


def last_word(attribute: str) -> str:
    """What the last part of `module:attribute` is called, without its place in a list."""
    return attribute.partition(":")[2].partition("[")[0].rpartition(".")[2]


def _last_word(size: Slice) -> str:
    return last_word(size.tensor)


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
