"""Find the experts of a mixture and the router that chooses among them, by what a model's modules hold.

Experts are the members of a ModuleList or ModuleDict that are built alike, or they lie along the first
dimension of stacked parameters [experts, inputs, outputs]. A router is a weight with as many rows as there
are experts, or as many columns where a user's own module holds it. The smallest module that holds both is the
mixture.

These are proposals: `verify/mixture_trials` cuts them on trial, and keeps what computes what the dense model
does with the scores of the removed experts at minus infinity.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

from torch import Tensor, nn

from sparsify.graph.class_names import class_names
from sparsify.graph.layer_types import attributes
from sparsify.graph.model_map import Coupled, Mixture, ModelMap, Slice, Span
from sparsify.graph.names import canonical_names, walk_modules

MOST = 48
"""proposals for one mixture"""
_GROUP_COUNTS = ("n_group", "num_group", "n_groups", "num_groups", "num_expert_group", "num_expert_groups")
"""names under which a router holds in how many groups its experts fall"""


@dataclass(frozen=True)
class _Place:
    """A module, the experts in it, and what may be their router."""

    module: str
    count: int
    lists: tuple[str, ...]
    prefix: str
    """what stands before the number in the names of members"""
    stacks: tuple[str, ...]
    """modules that hold stacked parameters"""
    routers: tuple[tuple[str, int], ...]
    """(weight, dimension of the experts)"""


def propose_mixtures(model: nn.Module, model_map: ModelMap) -> list[list[Mixture]]:
    """For each mixture of experts the ways in which it may be cut, the likeliest first."""
    found = _Structure(model, frozenset((*model_map.unreached, *model_map.in_training)))
    taken = {group.name for group in model_map.coupled}
    proposals = []
    for places in _find_places(found):
        proposals.append([way for place in places for way in islice(_list_ways(found, place, taken), MOST)])
    return proposals


class _Structure:
    """The modules and tensors of a model, by name."""

    def __init__(self, model: nn.Module, idle: frozenset[str]) -> None:
        self.idle = idle
        """layers that no forward call reaches in eval mode"""
        self.modules = dict(walk_modules(model))
        self.holders = Counter(child for module in self.modules.values() for child in module.children())
        """in how many modules each module stands"""
        self.first = canonical_names(model)
        self.tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            prefix = f"{name}." if name else ""
            for own, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self.tensors[prefix + own] = tensor

    def inside(self, module: str) -> list[str]:
        """The tensors of a module and of those in it."""
        start = f"{module}." if module else ""
        return [name for name in self.tensors if name.startswith(start)]

    def held(self, module: str) -> list[str]:
        """The tensors that a module holds itself."""
        return [name for name in self.tensors if name.rpartition(".")[0] == module]

    def is_bare(self, tensor: str) -> bool:
        """Whether a user's module holds it, rather than a layer of torch."""
        kind = type(self.modules[tensor.rpartition(".")[0]])
        return not kind.__module__.startswith("torch.")

    def find_prefix(self, name: str) -> str | None:
        """What stands before the numbers 0, 1, ... in the names of its members; None if it is no list."""
        module = self.modules[name]
        keys = list(module._modules)
        if not isinstance(module, nn.ModuleList | nn.ModuleDict) or not keys:
            return None
        prefix = keys[0].removesuffix("0")
        counted = [f"{prefix}{at}" for at in range(len(keys))]
        return prefix if keys == counted else None

    def count_members(self, name: str) -> int:
        """How many experts a list may hold: members of one class with tensors of the same names, which share
        none with anything else, and which nothing else holds. 0 for another module."""
        module = self.modules[name]
        members = list(module.children()) if self.find_prefix(name) is not None else []
        if len(members) < 2:
            return 0
        if any(self.holders[part] > 1 for member in members for part in member.modules()):
            return 0
        kinds = {type(member) for member in members}
        built = set()
        for key in module._modules:
            own = self.inside(f"{name}.{key}")
            if any(not self.first[tensor].startswith(f"{name}.{key}.") for tensor in own):
                return 0
            start = len(f"{name}.{key}.")
            built.add(tuple((tensor[start:], self.tensors[tensor].dim()) for tensor in own))
        return len(members) if len(kinds) == len(built) == 1 and built != {()} else 0


def _find_places(found: _Structure) -> list[list[_Place]]:
    """For each mixture the modules that may be it: the smallest one that holds both experts and what may be
    their router. Where that lies among the stacked weights, as their biases do, larger modules come first."""
    lists = {name: count for name in found.modules if (count := found.count_members(name))}
    stacks: dict[str, set[int]] = {}
    for name, tensor in found.tensors.items():
        is_stack = isinstance(tensor, nn.Parameter) and tensor.dim() > 2 and tensor.shape[0] > 1
        if is_stack and found.is_bare(name):
            stacks.setdefault(name.rpartition(".")[0], set()).add(tensor.shape[0])
    claimed: list[str] = []
    sure: list[list[_Place]] = []
    doubtful: list[_Place] = []
    for module in reversed(list(found.modules)):  # what is inside a module comes after it
        for place in _look_inside(found, module, lists, stacks, claimed):
            if all(name.rpartition(".")[0] in place.stacks for name, _ in place.routers):
                doubtful.append(place)
                continue
            inside = [other for other in doubtful if set(other.stacks) <= set(place.stacks)]
            doubtful = [other for other in doubtful if other not in inside]
            sure.append([place, *inside])
            claimed += [*place.lists, *place.stacks]
            break
    order = list(found.modules)
    alone = {place.stacks: place for place in reversed(doubtful)}
    every = [*sure, *([place] for place in alone.values())]
    return sorted(every, key=lambda places: order.index(places[0].module))


def _look_inside(
    found: _Structure,
    module: str,
    lists: Mapping[str, int],
    stacks: Mapping[str, set[int]],
    claimed: Sequence[str],
) -> Iterator[_Place]:
    """The experts in a module that no smaller one has, those of the largest number first."""
    start = f"{module}." if module else ""
    open_lists = {n: c for n, c in lists.items() if n.startswith(start) and not _meets(n, claimed)}
    open_stacks = {n: c for n, c in stacks.items() if f"{n}.".startswith(start) and not _meets(n, claimed)}
    counts = {*open_lists.values(), *(c for own in open_stacks.values() for c in own)}
    for count in sorted(counts, reverse=True):
        every = [name for name, own in open_lists.items() if own == count]
        inside = tuple(f"{name}." for name in every)
        outer = [name for name in every if not name.startswith(inside)]
        prefix = (found.find_prefix(outer[0]) or "") if outer else ""
        own_lists = tuple(name for name in outer if found.find_prefix(name) == prefix)
        members = tuple(f"{name}." for name in own_lists)
        alike = [name for name, own in open_stacks.items() if count in own]
        own_stacks = tuple(name for name in alike if not f"{name}.".startswith(members))
        routers = tuple(_list_routers(found, module, count, members))
        if routers and (own_lists or own_stacks):
            yield _Place(module, count, own_lists, prefix, own_stacks, routers)


def _meets(name: str, claimed: Sequence[str]) -> bool:
    """Whether one of the claimed modules is this one, is in it, or holds it."""
    return any(f"{a}.".startswith(f"{b}.") for other in claimed for a, b in ((name, other), (other, name)))


def _list_routers(
    found: _Structure, module: str, count: int, members: tuple[str, ...]
) -> Iterator[tuple[str, int]]:
    """Weights in a module, outside of the experts in lists, with a row or a column for each expert; those
    of the least depth first."""
    own = [name for name in found.inside(module) if not (members and name.startswith(members))]
    for name in sorted(own, key=lambda name: name.count(".")):
        tensor = found.tensors[name]
        if not isinstance(tensor, nn.Parameter) or tensor.dim() != 2:
            continue
        owner = name.rpartition(".")[0]
        holder = found.modules[owner]
        if owner in found.idle:
            continue  # such as a head that is read in train mode alone: no trial could see what it does
        if isinstance(holder, nn.Linear):
            dims: tuple[int, ...] = (0,)
        elif found.is_bare(name):
            dims = (0, 1)
        else:
            continue
        yield from ((name, dim) for dim in dims if tensor.shape[dim] == count)


def _list_ways(found: _Structure, place: _Place, taken: set[str]) -> Iterator[Mixture]:
    """The ways in which a module may be a mixture.

    One weight is the router, those outside of the stacks first, or all of them are (one may add noise in
    training). Every list and stack holds experts, or only one does. Numbers that say 'expert' count them, or
    all equal ones do, or none.
    """
    apart = sorted(place.routers, key=lambda own: own[0].rpartition(".")[0] in place.stacks)
    routers: list[tuple[tuple[str, int], ...]] = [(own,) for own in apart]
    if len(routers) > 1:
        routers.append(place.routers)
    holders = [(place.lists, place.stacks)]
    if len(place.lists) + len(place.stacks) > 1:
        holders += [((name,), ()) for name in place.lists]
        holders += [((), (name,)) for name in place.stacks]
    sizes = dict.fromkeys(tuple(_list_counts(found, place, everything)) for everything in (False, True))
    sizes.setdefault(())
    for own, (lists, stacks), counts in product(routers, holders, sizes):
        mixture = _make_mixture(found, place, own, lists, stacks, counts, taken)
        yield mixture
        if mixture.offsets:
            yield replace(mixture, offsets=())


def _list_counts(found: _Structure, place: _Place, everything: bool) -> Iterator[str]:
    """Attributes that hold the number of experts, of the mixture's module and of those in it."""
    members = tuple(f"{name}." for name in place.lists)
    start = f"{place.module}." if place.module else ""
    for name, module in found.modules.items():
        if name != place.module and (not name.startswith(start) or name.startswith(members)):
            continue
        implied = attributes(module)
        for key, value in vars(module).items():
            says = everything or "expert" in key.lower()
            if type(value) is int and value == place.count and key not in implied and says:
                yield f"{name}:{key}"


def _make_mixture(
    found: _Structure,
    place: _Place,
    routers: tuple[tuple[str, int], ...],
    lists: tuple[str, ...],
    stacks: tuple[str, ...],
    counts: Sequence[str],
    taken: set[str],
) -> Mixture:
    groups = _count_groups(found, place)
    size = place.count // groups
    spans = tuple(Span(group * size, 0, size) for group in range(groups))
    slices = [part for name in lists for part in _list_members(found, name, place, size)]
    beside = {name.rpartition(".")[0] for name, _ in routers} | {place.module}
    vectors = [name for holder in sorted(beside) for name in found.held(holder)]
    vectors = [name for name in vectors if tuple(found.tensors[name].shape) == (place.count,)]
    stacked = [name for holder in stacks for name in found.held(holder)]
    stacked = [name for name in stacked if found.tensors[name].shape[:1] == (place.count,)]
    shared = dict.fromkeys([*routers, *((name, 0) for name in (*vectors, *stacked))])
    for name, dim in shared:
        if dim == 1 or (name, 1) not in routers:
            slices.append(Slice(found.first[name], dim, "whole", spans))
    slices += [Slice(name, 0, "size", spans) for name in counts]
    name = place.module or (*lists, *stacks)[0] or stacked[0]
    kind, *ancestors = class_names(found.modules[place.module])
    offsets = tuple(name for name in vectors if found.tensors[name].is_floating_point())
    return Mixture(
        Coupled(f"{name}#experts" if name in taken else name, size, tuple(slices)),
        name,
        kind,
        spans,
        lists,
        place.prefix,
        stacks,
        routers,
        offsets,
        ancestors=tuple(ancestors),
    )


def _list_members(found: _Structure, name: str, place: _Place, size: int) -> Iterator[Slice]:
    """All tensors of the members of a list, each with the unit that it leaves with."""
    for expert in range(place.count):
        for tensor in found.inside(f"{name}.{place.prefix}{expert}"):
            length = (*found.tensors[tensor].shape[:1], 1)[0]
            yield Slice(tensor, 0, "whole", (Span(0, expert % size, 1, length),))


def _count_groups(found: _Structure, place: _Place) -> int:
    """In how many groups the experts fall of which a router chooses some first (DeepSeek-V3)."""
    start = f"{place.module}." if place.module else ""
    for name, module in found.modules.items():
        if name == place.module or name.startswith(start):
            for key in _GROUP_COUNTS:
                value = vars(module).get(key)
                if type(value) is int and value > 1 and place.count % value == 0:
                    return value
    return 1
