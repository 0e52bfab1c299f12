"""The values between a model and a cut: ModelMap, Plan. Frozen, JSON-able, free of tensors."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from sparsify_schemas.group import in_one_tensor, within
from sparsify_schemas.penalty import Gsm
from sparsify_schemas.recipe import Keep, Recipe


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
        return any(self.holds(s.module) for s in other.stubs) or any(other.holds(s.module) for s in self.stubs)


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
        computed = ("parametrizations.weight.original", "parametrizations.weight.original1", "weight_v", "weight_orig")
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
class Drawn:
    """A tensor that a call took, as it is drawn anew; `kind` and what `low` and `high` mean as in `redrawing.Draw`."""

    shape: tuple[int, ...]
    dtype: str
    """as torch names it"""
    kind: str = "normal"
    low: float = 0.0
    high: float = 1.0
    batch: int | None = 0
    """the dimension that counts examples; None where it has none"""


@dataclass(frozen=True)
class Argument:
    """What a call took: a tensor, a plain value, or a container of them."""

    name: str | None
    """keyword or key; None by position"""
    form: str
    """tensor, value, list, tuple, mapping; object for what cannot be made anew from its description"""
    tensor: Drawn | None = None
    value: bool | int | float | str | None = None
    items: tuple["Argument", ...] = ()


@dataclass(frozen=True)
class Called:
    """One call of a model."""

    method: str
    arguments: tuple[Argument, ...]
    fixed: bool = False
    """whether it takes no other number of examples"""


@dataclass(frozen=True)
class ModelMap:
    """What there is to know about a model without its numbers."""

    layers: tuple[Layer, ...]
    tensors: tuple[Tensor, ...]
    coupled: tuple[Coupled, ...]
    macs: int
    """multiply-accumulates of one forward call on one example"""
    inputs: tuple[Called, ...] = ()
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
        text = repr(([(each.name, each.type, each.weight) for each in self.layers], [(t.name, t.shape) for t in self.tensors]))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def by_name(self) -> Mapping[str, Coupled]:
        return {c.name: c for c in (*self.coupled, *(b.group for b in self.branches))}


@dataclass(frozen=True)
class Assignment:
    """One rule, resolved against the model."""

    rule: int
    """its index in the recipe"""
    layers: tuple[str, ...]
    """layers it matched"""
    coupled: tuple[str, ...] = ()
    """coupled groups it chooses in (structural group types)"""
    tensors: tuple[str, ...] = ()
    """weights it covers (layer-scope penalties, group type weight)"""
    multiple: int = 1
    """what kept widths are a multiple of: the rule's own `keep.multiple_of`, or what `auto` comes to"""


@dataclass(frozen=True)
class Floor:
    """The least that a budgeted quantity can come to, with everything removable removed."""

    what: str
    """macs, params, bytes, peak_memory or latency.<target>"""
    dense: float
    limit: float
    least: float


_UNTOLD = frozenset(("lifetimes", "products", "shared"))
"""what of a map the digest and the JSON of a plan leave out: it follows from the network and its inputs"""


@dataclass(frozen=True)
class Plan:
    """A recipe resolved against a model: what each rule reaches, what is protected and why, what a budget allows.

    `preview` holds the widths (coupled group, units kept) if the cut were made now, on the present weights, which are
    `random` where training is still to come from scratch; `predicted` (target, milliseconds) at these widths, where the budget
    limits a latency; `prices` (target, coupled group, share of its milliseconds that goes with one unit), where a penalty
    weighs by a latency. These, and floors in milliseconds, which no two measurements agree on, are no part of the digest.
    """

    recipe: Recipe
    map: ModelMap
    assignments: tuple[Assignment, ...]
    floors: tuple[Floor, ...] = ()
    notes: tuple[str, ...] = ()
    preview: tuple[tuple[str, int], ...] = ()
    predicted: tuple[tuple[str, float], ...] = ()
    prices: tuple[tuple[str, str, float], ...] = ()
    random: bool = False

    @cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of recipe, map and assignments; independent of key order.

        Names of base classes do not count: what rules reach by them stands in the assignments. Of the inputs count methods,
        shapes and element types, not the numbers that they are drawn by.
        """
        body = self._body() | {"floors": [asdict(f) for f in self.floors if not f.what.startswith("latency.")]}
        for part in (*body["map"]["layers"], *body["map"]["branches"]):
            del part["ancestors"]
        told = {key: value for key, value in body["map"].items() if key not in ("unreached", "in_training")}
        body["map"] = told | {"inputs": _digested(self.map.inputs)}
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """What `sparsify plan` shows."""
        from sparsify.overview import as_text

        return as_text(self)

    def to_json(self) -> dict[str, Any]:
        """A mapping that `json.dumps` takes."""
        return {"digest": self.digest, **self._body(), "preview": [list(p) for p in self.preview], "predicted": [list(p) for p in self.predicted], "random": self.random}

    def _body(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            "map": {key: value for key, value in asdict(self.map).items() if key not in _UNTOLD},
            "assignments": [asdict(a) for a in self.assignments],
            "floors": [asdict(f) for f in self.floors],
            "notes": list(self.notes),
        }


def _digested(calls: tuple[Called, ...]) -> list[Any]:
    """What a digest knows of the calls: (keyword or None, shape, element type) of each tensor of one call of `forward`, as
    it was when there was nothing else; else their descriptions without the numbers that tensors are drawn by."""
    (only, *others) = calls or (Called("forward", ()),)
    tensors = [argument.tensor for argument in only.arguments if argument.tensor is not None]
    first = next((tensor.shape[0] for tensor in tensors if tensor.shape), None)
    assumed = [0 if tensor.shape and tensor.shape[0] == first else None for tensor in tensors]
    bare = len(tensors) == len(only.arguments) and [tensor.batch for tensor in tensors] == assumed
    if bare and not others and only.method == "forward" and not only.fixed:
        return [(a.name, a.tensor.shape, a.tensor.dtype) for a in only.arguments if a.tensor is not None]
    return [_shapes(asdict(each)) for each in calls]


def _shapes(argument: Any) -> Any:
    """The description of a call without the numbers that its tensors are drawn by."""
    if isinstance(argument, dict):
        return {key: _shapes(value) for key, value in argument.items() if key not in ("kind", "low", "high")}
    return [_shapes(item) for item in argument] if isinstance(argument, list | tuple) else argument


def ranked_together(plan: Plan) -> tuple[tuple[Assignment, ...], ...]:
    """The assignments whose groups, or weights, compete as one: those of gsm rules of one `sparsity`; any other by itself."""
    sets: dict[tuple[object, ...], list[Assignment]] = {}
    for assignment in plan.assignments:
        rule = plan.recipe.rules[assignment.rule]
        one = isinstance(rule.penalty, Gsm)
        sets.setdefault(("gsm", rule.sparsity, in_one_tensor(rule.group), within(rule.group)) if one else (assignment.rule,), []).append(assignment)
    return tuple(map(tuple, sets.values()))


def stays(keep: Keep, group: Coupled) -> int:
    """Units that `keep.limits` says must stay: the strictest of its layers' limits, the share that may go rounded down."""
    own = {group.name, *(part.tensor.rpartition(".")[0] for part in group.slices if part.role == "out")}
    return group.width - min((int(share.fraction * group.width + 1e-6) for layer, share in keep.limits.items() if layer in own), default=group.width)
