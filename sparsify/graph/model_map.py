"""Structure of a model: layers, tensor shapes and coupled groups. Holds no weights, imports no torch."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from sparsify.forward.recorded_calls import RecordedCall


@dataclass(frozen=True)
class Span:
    """Which indices of a dimension belong to which units.

    For k in 0..units-1: indices start + k*repeat ... start + (k+1)*repeat - 1 belong to unit `unit + k`.
    A plain layer has one span with repeat 1; after a flatten of h x w maps repeat is h*w; in a concat start is the
    offset; a grouped convolution has one span per group of the convolution.
    """

    start: int
    unit: int
    units: int
    repeat: int = 1


@dataclass(frozen=True)
class Slice:
    """One dimension of one tensor that a coupled group reaches. `role`: out (producer's rows and what follows them
    per channel), in (a consumer's input slices), whole (all of a tensor that leaves with a residual branch), or size:
    `tensor` is then module:attribute, an integer that holds the dimension's length."""

    tensor: str
    dim: int
    role: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Coupled:
    """Units that can only leave together across every slice listed. Named after its first layer."""

    name: str
    width: int
    slices: tuple[Slice, ...]
    statistics: bool = False
    """a normalisation takes statistics over the units: a cut changes them"""
    protected: str | None = None
    """why no unit may leave, if so"""
    paired: bool = False
    """a product of two computed tensors (queries and keys) sums over the units: no weight takes them in there"""

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
    """A module that gives way to one without parameters, which returns its first tensor input, or zeros of its shape."""

    module: str
    zeros: bool = False
    returns: tuple[bool, ...] = ()
    """(): the tensor itself; else a tuple with the tensor at the place that is true and None elsewhere"""


@dataclass(frozen=True)
class Sum:
    """Where a branch joins its shortcut: the n-th sum of two tensors that runs in a module, and which operand is the branch."""

    module: str
    nth: int
    operand: int


@dataclass(frozen=True)
class Branch:
    """A residual block or branch. Its group has one unit, which spans every tensor that leaves with it."""

    group: Coupled
    module: str
    """what it is named after: the block, or the largest module of the branch"""
    type: str
    """class of that module"""
    stubs: tuple[Stub, ...] = ()
    """what takes its place; nothing where it cannot leave"""
    sums: tuple[Sum, ...] = ()
    """where the masked model has zeros in place of its branches"""
    macs: int = 0
    """multiply-accumulates that go with it"""
    ancestors: tuple[str, ...] = ()
    """names of the classes that its own is derived from, nearest first"""

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes that a rule may call it by."""
        return self.type, *self.ancestors

    @cached_property
    def tensors(self) -> frozenset[str]:
        """What leaves with it."""
        return self.group.reached

    def holds(self, module: str) -> bool:
        """Whether a module leaves with it."""
        return any(module == s.module or module.startswith(f"{s.module}.") for s in self.stubs)

    def overlaps(self, other: "Branch") -> bool:
        """Whether one of the two contains a part of the other."""
        return any(self.holds(s.module) for s in other.stubs) or any(
            other.holds(s.module) for s in self.stubs
        )


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
    """names of the parents of its class, nearest first, up to the class of torch.nn; () for one of torch.nn itself"""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of classes that a rule may call it by."""
        return self.type, *self.ancestors

    @property
    def kind(self) -> str:
        """Name of the class of torch.nn that it is, or is derived from: group types act by it."""
        return self.classes[-1]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names that its weight may have: as it is, parametrized, under an old weight_norm, under a mask of torch.nn.utils.prune."""
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
    """(coupled group, bytes that go with each of its units)"""


@dataclass(frozen=True)
class Lifetimes:
    """All of them, in the order in which they are made."""

    inputs: int
    """bytes of what the call is given"""
    measured: int
    """bytes at the peak as the allocator saw it, weights and inputs included"""
    lives: tuple[Life, ...]


@dataclass(frozen=True)
class Run:
    """`count` indices of a tensor's dimension, from `start` on; with each go `times` of a product's."""

    tensor: str
    dim: int
    start: int
    count: int
    times: int = 1


@dataclass(frozen=True)
class Product:
    """What a module spends on products over the same dimensions: of input and weight, or of two activations."""

    module: str
    macs: float
    """multiply-accumulates of one forward call on one example"""
    dims: tuple[tuple[int, tuple[Run, ...]], ...] = ()
    """(length, the indices that can leave) of every dimension that a cut can shorten"""
    weight: str | None = None
    """the parameter that it multiplies by"""


@dataclass(frozen=True)
class ModelMap:
    """What there is to know about a model without its numbers."""

    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    coupled: tuple[Coupled, ...]
    macs: int
    """multiply-accumulates of one forward call on one example"""
    inputs: tuple[RecordedCall, ...] = ()
    """the calls that the model was followed in, as they can be made anew"""
    branches: tuple[Branch, ...] = ()
    """residual blocks and branches; looked for only where a rule has group depth"""
    lifetimes: Lifetimes | None = None
    """looked for only where the budget limits peak memory"""
    products: tuple[Product, ...] = ()
    """what the multiply-accumulates are spent on; a layer's go with its weight where none are given"""
    shared: tuple[tuple[str, int], ...] = ()
    """(tensor, dimension) that is one layer's outputs and another one's inputs, as of an embedding tied to the last layer"""
    unreached: tuple[str, ...] = ()
    """layers that none of the calls reached"""
    in_training: tuple[str, ...] = ()
    """layers that they reached in train mode alone"""

    @cached_property
    def params(self) -> int:
        return sum(t.numel for t in self.tensors if t.parameter)

    @cached_property
    def bytes(self) -> int:
        return sum(t.numel * t.itemsize for t in self.tensors)

    @cached_property
    def network(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of names, types and shapes of layers and tensors: of the network without its numbers."""
        text = repr(
            (
                [(each.name, each.type, each.weight) for each in self.layers],
                [(t.name, t.shape) for t in self.tensors],
            )
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def by_name(self) -> Mapping[str, Coupled]:
        return {c.name: c for c in (*self.coupled, *(b.group for b in self.branches))}
