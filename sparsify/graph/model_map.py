"""Structure of a model: layers, tensor shapes and coupled groups. Holds no weights, imports no torch."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sparsify.forward.recorded_calls import RecordedCall
from sparsify_schemas.selector import selects


@dataclass(frozen=True)
class Span:
    """Which indices of a dimension belong to which units.

    For k in 0..units-1: indices start + k*repeat ... start + (k+1)*repeat - 1 belong to unit `unit + k`. A
    plain layer has one span with repeat 1. After a flatten of h x w maps, repeat is h*w. In a concat,
    start is the offset. A grouped convolution has one span per group of the convolution.
    """

    start: int
    unit: int
    units: int
    repeat: int = 1


@dataclass(frozen=True)
class Slice:
    """One dimension of one tensor that a coupled group reaches.

    `role` is one of
    - out: the producer's rows, and what follows them per channel
    - in: a consumer's input slices
    - whole: all of a tensor that is removed with a residual branch or an expert; an expert's place in a
      tensor that the experts of a mixture share
    - size: an integer that holds the dimension's length; `tensor` is then module:attribute.
    """

    tensor: str
    dim: int
    role: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Given:
    """A tensor that a module is given, with places for units that no layer makes (the slopes of ALiBi)."""

    module: str
    argument: int | str
    """place or name of the argument of `forward`"""
    dim: int
    size: int
    """places, which may come again along the dimension, for each example"""
    spans: tuple[Span, ...]


UNREACHED = "no rule reaches it"
"""reason of a group that was not cut on trial, as no rule may cut it"""


@dataclass(frozen=True)
class Coupled:
    """Units that can only be removed together across every slice listed. Named after its first layer."""

    name: str
    width: int
    slices: tuple[Slice, ...]
    statistics: bool = False
    """a normalisation takes statistics over the units: a cut changes them"""
    protected: str | None = None
    """why no unit may be removed; None if units may"""
    paired: bool = False
    """a product of two computed tensors (queries and keys) sums over the units: no weight reads them there"""
    least: int = 1
    """units without which the layer does not run: a router that takes two experts needs two"""
    doubt: str | None = None
    """why no unit may be removed where a trial cut of them fails; None if the trial itself says why"""
    settings: tuple[Slice, ...] = ()
    """further numbers, mostly in configurations (module:config.num_attention_heads), that equal the length of
    one of its dimensions: they follow it only where no cut succeeds without"""
    given: tuple[Given, ...] = ()
    """what modules are given for each unit, and nobody makes anew: they select what stays"""

    @property
    def is_reached(self) -> bool:
        """Whether some rule may cut it, unless it is protected."""
        return self.protected != UNREACHED

    @property
    def layers(self) -> tuple[str, ...]:
        """Modules reached, in order, without repetition."""
        return tuple(dict.fromkeys(s.tensor.rpartition(".")[0] for s in self.slices if s.role != "size"))

    @property
    def reached(self) -> frozenset[str]:
        """Tensors reached."""
        return frozenset(s.tensor for s in self.slices if s.role != "size")


@dataclass(frozen=True)
class Stub:
    """A module to be replaced by one without parameters, which returns its first tensor input or zeros of
    its shape."""

    module: str
    zeros: bool = False
    returns: tuple[bool, ...] = ()
    """(): the tensor itself; else a tuple with the tensor at the true place and None elsewhere"""


@dataclass(frozen=True)
class Sum:
    """The sum in which a branch joins its shortcut.

    It is the nth sum of two tensors that runs in the module; `operand` is the place of the branch in it.
    """

    module: str
    nth: int
    operand: int


class _Part:
    """A part of a model that leaves by a rule on its module: a residual branch, or experts of a mixture."""

    group: Coupled
    module: str
    type: str
    ancestors: tuple[str, ...]
    plain: str

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def names(self) -> tuple[str, ...]:
        """Names of modules by which a rule may call it."""
        return (self.module, self.plain) if self.plain else (self.module,)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes by which a rule may call it."""
        return self.type, *self.ancestors

    def is_selected(self, patterns: Iterable[str]) -> bool:
        """Whether a rule with these patterns speaks of it."""
        return any(selects(patterns, name, self.classes) for name in self.names)


@dataclass(frozen=True)
class Branch(_Part):
    """A residual block or branch. Its group has one unit, which spans every tensor that is removed with
    it."""

    group: Coupled
    module: str
    """its name: the block, or the largest module of the branch"""
    type: str
    """class of that module"""
    stubs: tuple[Stub, ...] = ()
    """replacements for its modules; empty if it cannot be removed"""
    sums: tuple[Sum, ...] = ()
    """where the masked model has zeros in place of its branches"""
    macs: int = 0
    """multiply-accumulates that are removed with it"""
    ancestors: tuple[str, ...] = ()
    """names of the classes that its own is derived from, nearest first"""
    plain: str = ""
    """name of its module in the model without adapters of peft, where that is another one"""

    @cached_property
    def tensors(self) -> frozenset[str]:
        """Tensors that are removed with it."""
        return self.group.reached

    def holds(self, module: str) -> bool:
        """Whether a module is removed with it."""
        return any(module == s.module or module.startswith(f"{s.module}.") for s in self.stubs)

    def overlaps(self, other: "Branch") -> bool:
        """Whether one of the two contains a part of the other."""
        holds_part = any(self.holds(stub.module) for stub in other.stubs)
        return holds_part or any(other.holds(stub.module) for stub in self.stubs)


@dataclass(frozen=True)
class Mixture(_Part):
    """The experts of a mixture. A unit of its group is an expert; where a router chooses among groups of
    experts first (n_group), the experts at one place of all groups."""

    group: Coupled
    module: str
    """its name: the smallest module that holds experts and router"""
    type: str
    """class of that module"""
    experts: tuple[Span, ...] = ()
    """which experts belong to which units"""
    lists: tuple[str, ...] = ()
    """each ModuleList or ModuleDict whose members are the experts; none where all lie in stacked tensors"""
    prefix: str = ""
    """what stands before the number in the names of members"""
    stacks: tuple[str, ...] = ()
    """each module that holds stacked tensors of all experts"""
    routers: tuple[tuple[str, int], ...] = ()
    """(weight, dimension of the experts) of each product that gives experts their scores"""
    offsets: tuple[str, ...] = ()
    """vectors with a number for each expert that are added to the scores on the way to a choice"""
    macs: float = 0.0
    """multiply-accumulates that are removed with one unit"""
    ancestors: tuple[str, ...] = ()
    """names of the classes that its own is derived from, nearest first"""
    plain: str = ""
    """its name in the model without adapters of peft, where that is another one"""

    @property
    def count(self) -> int:
        """How many experts it has."""
        return sum(span.units * span.repeat for span in self.experts)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of modules by which a rule may call it: its own, and those of its experts."""
        return *super().names, *self.lists, *self.stacks

    def list_removed(self, kept: Iterable[int]) -> list[int]:
        """Numbers of the experts that leave where these units stay, ascending."""
        stay = set(kept)
        found = []
        for span in self.experts:
            for at in range(span.units * span.repeat):
                if span.unit + at // span.repeat not in stay:
                    found.append(span.start + at)
        return sorted(found)

    def list_members(self, kept: Iterable[int]) -> list[str]:
        """The beginnings of the names of all tensors of members that leave where these units stay."""
        removed = self.list_removed(kept) if self.lists else []
        return [f"{name}.{self.prefix}{expert}." for name in self.lists for expert in removed]


@dataclass(frozen=True)
class Layer:
    """One module with parameters of its own."""

    name: str
    type: str
    """name of its own class"""
    weight: tuple[int, ...]
    """shape of `weight`, () if it has none"""
    macs: int
    """multiply-accumulates spent in it in one forward call on one example"""
    inputs: int
    outputs: int
    ancestors: tuple[str, ...] = ()
    """names of its class's parents, nearest first, up to the class of torch.nn; () for a class of torch.nn
    itself"""
    plain: str = ""
    """its name in the model without adapters of peft, where that is another one"""
    adapter: bool = False
    """whether it is a part of an adapter of peft"""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes by which a rule may call it."""
        return self.type, *self.ancestors

    def is_selected(self, patterns: Iterable[str]) -> bool:
        """Whether a rule with these patterns speaks of it. Parts of adapters go by their names alone."""
        if self.adapter:
            return selects(patterns, self.name, ())
        names = (self.name, self.plain) if self.plain else (self.name,)
        return any(selects(patterns, name, self.classes) for name in names)

    @property
    def kind(self) -> str:
        """Name of the torch.nn class that it is or is derived from; it decides which group types apply."""
        return self.classes[-1]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names that its weight may have: plain, parametrized, under hook-style weight_norm or a
        torch.nn.utils.prune mask."""
        computed = (
            "parametrizations.weight.original",
            "parametrizations.weight.original1",
            "weight_v",
            "weight_orig",
        )
        return tuple(f"{self.name}.{name}" for name in ("weight", *computed))


@dataclass(frozen=True)
class Tensor:
    """A parameter or buffer."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    """bytes per element in a file; 0 for a buffer that is not saved"""
    parameter: bool

    @property
    def numel(self) -> int:
        n = 1
        for s in self.shape:
            n *= s
        return n


@dataclass(frozen=True)
class Life:
    """A tensor that an operator makes in one inference on one example."""

    born: int
    """operator that makes it"""
    dies: int
    """operator before which it is freed"""
    bytes: int
    per_unit: tuple[tuple[str, float], ...] = ()
    """(coupled group, bytes that each of its units adds)"""


@dataclass(frozen=True)
class Lifetimes:
    """All tensors of an inference, in the order in which they are made."""

    inputs: int
    """bytes of the inputs"""
    measured: int
    """measured bytes at the allocator's peak, weights and inputs included"""
    lives: tuple[Life, ...]


@dataclass(frozen=True)
class Run:
    """`count` indices of a tensor's dimension from `start` on; each stands for `times` indices of a
    product."""

    tensor: str
    dim: int
    start: int
    count: int
    times: int = 1


@dataclass(frozen=True)
class Product:
    """What a module spends on products over the same dimensions: of input and weight, or of two
    activations."""

    module: str
    macs: float
    """multiply-accumulates of one forward call on one example"""
    dims: tuple[tuple[int, tuple[Run, ...]], ...] = ()
    """(length, the indices that can be removed) of every dimension that a cut can shorten"""
    weight: str | None = None
    """the parameter that it multiplies by"""


@dataclass(frozen=True)
class ModelMap:
    """Structure of a model: layers, tensor shapes and coupled groups. Holds no weights."""

    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    coupled: tuple[Coupled, ...]
    macs: int
    """multiply-accumulates of one forward call on one example"""
    inputs: tuple[RecordedCall, ...] = ()
    """the calls that were traced, in a form that can be drawn again"""
    branches: tuple[Branch, ...] = ()
    """residual blocks and branches; only searched if a rule has group depth"""
    mixtures: tuple[Mixture, ...] = ()
    """mixtures of experts; only searched if a rule has group expert"""
    lifetimes: Lifetimes | None = None
    """only measured if the budget limits peak memory"""
    products: tuple[Product, ...] = ()
    """where the multiply-accumulates are spent; if empty, a layer's go with its weight"""
    shared: tuple[tuple[str, int], ...] = ()
    """(tensor, dimension) that is one layer's output and another one's input, as of an embedding tied to
    the last layer"""
    unreached: tuple[str, ...] = ()
    """layers that no call reaches"""
    in_training: tuple[str, ...] = ()
    """layers that calls reach only in train mode"""

    @cached_property
    def params(self) -> int:
        return sum(t.numel for t in self.tensors if t.parameter)

    @cached_property
    def bytes(self) -> int:
        return sum(t.numel * t.itemsize for t in self.tensors)

    @cached_property
    def network(self) -> str:
        """First 16 hexadecimal digits of a SHA-256 of the names, types and shapes of all layers and
        tensors."""
        layers = [(layer.name, layer.type, layer.weight) for layer in self.layers]
        tensors = [(tensor.name, tensor.shape) for tensor in self.tensors]
        text = repr((layers, tensors))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def reached_from(self) -> Mapping[tuple[str, str], list[int]]:
        """(tensor, role) -> places in `coupled` of the groups with a slice in it, ascending."""
        found: dict[tuple[str, str], list[int]] = {}
        for place, group in enumerate(self.coupled):
            for where in dict.fromkeys((part.tensor, part.role) for part in group.slices):
                found.setdefault(where, []).append(place)
        return found

    @cached_property
    def slices_at(self) -> Mapping[tuple[str, int], list[tuple[Coupled, Slice]]]:
        """(tensor, dimension) -> the groups that reach it, each with its slice there."""
        found: dict[tuple[str, int], list[tuple[Coupled, Slice]]] = {}
        for group in self.coupled:
            for part in group.slices:
                if part.role in ("in", "out"):
                    found.setdefault((part.tensor, part.dim), []).append((group, part))
        return found

    @cached_property
    def tensors_of(self) -> Mapping[str, list[str]]:
        """Module -> the names of its own parameters and buffers."""
        found: dict[str, list[str]] = {}
        for tensor in self.tensors:
            found.setdefault(tensor.name.rpartition(".")[0], []).append(tensor.name)
        return found

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Name of a coupled group -> its place in `coupled`."""
        return {group.name: place for place, group in enumerate(self.coupled)}

    def list_members(self, keep: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """The beginnings of the names of all tensors that leave with experts which are members of lists.

        keep: coupled group -> units that stay.
        """
        own = [mixture for mixture in self.mixtures if mixture.name in keep]
        return tuple(name for mixture in own for name in mixture.list_members(keep[mixture.name]))

    @cached_property
    def by_name(self) -> Mapping[str, Coupled]:
        of_branches = [branch.group for branch in self.branches]
        of_mixtures = [mixture.group for mixture in self.mixtures]
        return {group.name: group for group in (*self.coupled, *of_branches, *of_mixtures)}
