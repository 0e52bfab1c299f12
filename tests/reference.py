"""A reference for a cut model that knows nothing of how the cut was made.

It is built from the dense model and the log of the cut alone: the logged operations are replayed on tensors
of indices, which tells for each parameter and buffer the elements that are left. Every other element of a
float64 copy of the dense model is set to zero, and the copy is run on fresh inputs. A right cut computes
the same numbers.

Nothing here follows a network's structure. What a unit is, and which slices of which tensors belong to it,
comes from the log; whether the log is right shows in the numbers.

Statistics that a network takes over removed units (a normalisation, a mean or a softmax over channels) see
fewer units after the cut. The reference takes those of `layer_norm`, `group_norm` and `rms_norm` over the
places that their own weight keeps. Others it takes, where it is asked to, over the slices that are not zero
throughout.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sparsify_schemas.cuts import (
    Bypass,
    Crop,
    Cuts,
    Gather,
    Narrow,
    Range,
    Rounds,
    Shorten,
    Silence,
    Zero,
)

Inputs = tuple[Any, ...] | Mapping[str, Any]

RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "T5LayerNorm")
"""Normalisations that a library writes out in elementary operators: x * weight / sqrt(mean(x^2) +
variance_epsilon)."""

LAYER_NORMS = {
    "CohereLayerNorm": 0.0,
    "Cohere2LayerNorm": 0.0,
    "DebertaLayerNorm": 0.0,
    "NemotronLayerNorm1P": 1.0,
}
"""Those that subtract the mean too, written out or with another weight -> what is added to their weight."""


class Cut(Protocol):
    """What the reference reads of a result of `sparsify.cut`."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def cuts(self) -> Cuts: ...


@dataclass(frozen=True)
class CutModel:
    """A cut model and its log, where there is no result of `sparsify.cut`."""

    model: nn.Module
    cuts: Cuts


@dataclass(frozen=True)
class Comparison:
    """How far a cut model is from the reference."""

    difference: float
    """largest difference of an output, relative to its largest value"""
    by: str
    """`weights`: zeros in the weights were enough. `zeros`: statistics had to leave out slices that are
    zero throughout"""
    double: bool
    """compared in float64; false where the network casts inside and does not run in it"""
    to_dense: float
    """largest difference to the dense model as it is; were it zero, the removed units would not matter"""
    varies: float
    """how far outputs of two examples are apart; were it zero, the inputs would not matter"""


# elements that stay


def kept_places(model: nn.Module, cuts: Cuts | Rounds) -> dict[str, Tensor]:
    """For each parameter and buffer, by the first of its names, the flat indices of the elements that the
    log leaves.

    An index tensor arange(numel).view(shape) is narrowed by the logged operations, in order. Tensors that
    the log leaves alone are there too, with all of their indices.
    """
    first = _first_names(model)
    places = {
        name: torch.arange(t.numel()).view(t.shape)
        for name, t in _tensors(model).items()
        if first[name] == name
    }
    for op in _operations(cuts):
        match op:
            case Shorten():
                places |= {name: places[name].flatten()[:0] for name in _list_left(op, first)}
                first = _rename_members(op, first)
            case Narrow():
                name = first[op.tensor]
                if places[name].shape[op.dim] != op.size:
                    size = places[name].shape[op.dim]
                    where = f"dimension {op.dim} of '{op.tensor}'"
                    raise AssertionError(f"the log narrows {where} from {op.size}, but it is {size}")
                places[name] = places[name].index_select(op.dim, _listed(op.keep))
            case Crop():
                name = first[_weight_name(op.module, first)]
                for axis, (start, step, count) in enumerate(op.grids):
                    places[name] = places[name].index_select(2 + axis, start + step * torch.arange(count))
            case Gather():
                name = first[_weight_name(op.module, first)]
                places[name] = places[name].flatten(1).index_select(1, _listed(op.keep))
            case _:
                pass
    return places


def spare_dead(cuts: Cuts, dead: Cuts) -> Cuts:
    """The log of a cut as if units that `dead` removes had stayed: what is left of it removes living units
    alone.

    dead: the log of a cut of the same model whose recipe names no amount, so that it removes dead units and
    no others.
    """
    removed = {
        (op.tensor, op.dim): _complement(op.keep, op.size) for op in dead.operations if isinstance(op, Narrow)
    }

    def spared(op: Narrow) -> Narrow:
        stays = {*_listed(op.keep).tolist(), *removed.get((op.tensor, op.dim), ())}
        return op.model_copy(update={"keep": tuple((i, i + 1) for i in sorted(stays))})

    operations = tuple(spared(op) if isinstance(op, Narrow) else op for op in cuts.operations)
    return cuts.model_copy(update={"operations": operations})


def dense_names(model: nn.Module, cuts: Cuts | Rounds) -> dict[str, str]:
    """Each name of a parameter or buffer of the cut model -> the first name of the same tensor in the dense
    one: members of a shorter list have other numbers."""
    names = _first_names(model)
    for op in _operations(cuts):
        if isinstance(op, Shorten):
            names = _rename_members(op, names)
    return names


def _rename_members(op: Shorten, names: Mapping[str, str]) -> dict[str, str]:
    """The names when the list is shorter: the members that stay are counted from 0."""
    stay = _listed(op.keep).tolist()
    found = {}
    for name, first in names.items():
        member, _, rest = name.removeprefix(f"{op.module}.").partition(".")
        if not name.startswith(f"{op.module}."):
            found[name] = first
        elif (number := int(member.removeprefix(op.prefix))) in stay:
            found[f"{op.module}.{op.prefix}{stay.index(number)}.{rest}"] = first
    return found


def _list_left(op: Shorten, names: Mapping[str, str]) -> list[str]:
    """The first names of the tensors of members that leave."""
    gone = tuple(f"{op.module}.{op.prefix}{at}." for at in _complement(op.keep, op.size))
    return [first for name, first in names.items() if name.startswith(gone)]


def _operations(cuts: Cuts | Rounds) -> Iterator[Any]:
    for part in cuts.rounds if isinstance(cuts, Rounds) else (cuts,):
        yield from part.operations


def _listed(keep: Iterable[Range]) -> Tensor:
    return torch.tensor([i for start, end in keep for i in range(start, end)], dtype=torch.int64)


def _complement(keep: Iterable[Range], size: int) -> set[int]:
    return set(range(size)) - set(_listed(keep).tolist())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensors under each of their names."""
    plain = {
        f"{prefix}.{name}".lstrip("."): value
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, value in vars(module).items()
        if type(value) is Tensor and value.is_floating_point()
    }
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **plain,
    }


def _first_names(model: nn.Module) -> dict[str, str]:
    """Each name of a parameter or buffer -> the first name of the same tensor; tied weights have several."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in _tensors(model).items()}


def _weight_name(module: str, names: Mapping[str, str]) -> str:
    """The stored weight of a layer; torch.nn.utils.prune stores it under another name."""
    prefix = f"{module}." if module else ""
    return next(prefix + own for own in ("weight", "weight_orig") if prefix + own in names)


# the masked dense model


class Masked(nn.Module):
    """The dense model in float64 with zeros where the log removes elements; takes what the dense model
    takes."""

    def __init__(
        self,
        inner: nn.Module,
        kept: Mapping[int, Tensor],
        skip_zeros: bool,
        routers: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        super().__init__()
        self.inner = inner
        self.kept = kept
        """id of a parameter -> which of its elements stay, for those that lost some"""
        self.skip_zeros = skip_zeros
        self.routers = list(routers)
        """the weight of each router, and the numbers of the experts that left"""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Statistics(self.kept, self.skip_zeros), _Scores(self.routers):
            return self.inner(*args, **kwargs)


class _Scores(TorchFunctionMode):
    """Scores of experts that left are minus infinity: in the result of each product with a router's weight,
    whose last dimension counts the experts."""

    def __init__(self, routers: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.left = {id(weight): (weight, gone) for weight, gone in routers}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        own = next((self.left[id(a)] for a in args if id(a) in self.left), None)
        if own is None or not isinstance(made, Tensor):
            return made
        if func in _PRODUCTS:
            return made.index_fill(-1, own[1], -math.inf)
        self.left[id(made)] = (made, own[1])  # transposed, or cast
        return made


_PRODUCTS = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.einsum, torch.mm, Tensor.mm)


def masked(
    model: nn.Module,
    cuts: Cuts | Rounds,
    *,
    constants_kept: Cuts | None = None,
    zeros: Mapping[str, Tensor] | None = None,
    skip_zeros: bool = False,
    double: bool = True,
    experts: "Experts | None" = None,
) -> Masked:
    """The reference: a copy of the dense model in which every element that does not stay is zero.

    constants_kept: the log of a cut that removes the dead units alone; what those units emit stays in the
    reference.
    zeros: name of a tensor -> flat indices that a rule on groups inside tensors set to zero.
    skip_zeros: statistics over activations leave out slices that are zero throughout.
    double: in float64.
    experts: what gives the experts of mixtures their scores, which are minus infinity for those that left.
    """
    if constants_kept is not None:
        assert isinstance(cuts, Cuts)
        cuts = spare_dead(cuts, constants_kept)
    places = kept_places(model, cuts)
    copy = _copied(model)
    copy = (copy.double() if double else copy).eval()
    tensors = _tensors(copy)
    kept: dict[int, Tensor] = {}
    for name, own in places.items():
        stays = torch.zeros(tensors[name].numel(), dtype=torch.bool)
        stays[own.flatten()] = True
        stays = stays.view(tensors[name].shape)
        if bool(stays.all()):
            continue
        kept[id(tensors[name])] = stays
        _empty(tensors[name], stays, name)
    for name, gone in (zeros or {}).items():
        empty = torch.zeros(tensors[name].numel(), dtype=torch.bool)
        empty[gone] = True
        tensors[name].data.masked_fill_(empty.view(tensors[name].shape), 0)
    _keep_divisible(copy, kept)
    for module in copy.modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if type(module).__name__ in RMS_NORMS and id(weight) in kept:
            module.forward = _written_out(module, kept[id(weight)])  # type: ignore[method-assign]
        if type(module).__name__ in LAYER_NORMS and id(weight) in kept:
            module.forward = _centred(module, kept[id(weight)])  # type: ignore[method-assign]
    _put_stubs(copy, cuts)
    experts = experts or Experts({})
    for name in experts.offsets:
        stays = kept[id(tensors[name])]
        tensors[name].data.masked_fill_(~stays, -math.inf)
    left = []
    for name, dim in experts.routers.items():
        index = places[name].movedim(dim, 0).flatten(1)[:, 0]
        own = (index % tensors[name].shape[1]) if dim else index // tensors[name].shape[1]
        gone = sorted(set(range(tensors[name].shape[dim])) - set(own.tolist()))
        left.append((tensors[name], torch.tensor(gone, dtype=torch.int64)))
    return Masked(copy, kept, skip_zeros, left)


@dataclass(frozen=True)
class Experts:
    """What gives the experts of a model's mixtures their scores. A test names it; nothing looks for it."""

    routers: Mapping[str, int]
    """each router's weight, and its dimension that counts the experts"""
    offsets: tuple[str, ...] = ()
    """vectors that are added to scores on the way to a choice"""


def _empty(tensor: Tensor, stays: Tensor, name: str) -> None:
    """Zero where nothing stays. A variance becomes one, so that nothing is divided by zero: the number that
    a removed unit emits does not matter as long as it is finite, because the columns of all its consumers
    are zero."""
    with torch.no_grad():
        rest = 1.0 if name.rpartition(".")[2] == "running_var" else 0
        tensor.data.copy_(torch.where(stays, tensor.data, torch.full_like(tensor.data, rest)))


def _keep_divisible(model: nn.Module, kept: Mapping[int, Tensor]) -> None:
    """weight_norm computes g * v / |v|. Where a whole row of v left, |v| is zero: v becomes one there, and
    g, which left too, makes the row zero."""
    for module in model.modules():
        for magnitude, direction in (("original0", "original1"), ("weight_g", "weight_v")):
            own = dict(module.named_parameters(recurse=False))
            g, v = own.get(magnitude), own.get(direction)
            if g is None or v is None or id(v) not in kept or g.dim() != v.dim():
                continue
            alone = [d for d in range(v.dim()) if g.shape[d] == 1]
            left = kept[id(v)].sum(alone, keepdim=True) > 0
            with torch.no_grad():
                v.data.copy_(torch.where(left.expand_as(v), v.data, torch.ones_like(v.data)))
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if type(hook).__name__ == "WeightNorm":
                hook(module, ())


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy; tensors that hooks computed (torch.nn.utils.weight_norm), which torch does not copy, are
    detached."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return deepcopy(model, memo)


class _Stub(nn.Module):
    """Takes the place of a module that left with a residual branch: its first tensor input, or zeros of
    that shape."""

    def __init__(self, old: nn.Module, zeros: bool, returns: Sequence[bool]) -> None:
        super().__init__()
        plain = {k: v for k, v in vars(old).items() if isinstance(v, str | int | float) and k != "training"}
        vars(self).update(plain)
        self.zeros_in_place, self.returned = zeros, tuple(returns)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        made = x * 0 if self.zeros_in_place else x
        return tuple(made if here else None for here in self.returned) if self.returned else made


def _put_stubs(model: nn.Module, cuts: Cuts | Rounds) -> None:
    for op in _operations(cuts):
        if isinstance(op, Bypass | Silence):
            parent, _, child = op.module.rpartition(".")
            stub = _Stub(model.get_submodule(op.module), isinstance(op, Silence), op.returns)
            model.get_submodule(parent)._modules[child] = stub


# statistics over what stays


class _Statistics(TorchFunctionMode):
    """Takes statistics over what stays, where a normalisation's own weight tells that, or a parameter is
    what is averaged."""

    def __init__(self, kept: Mapping[int, Tensor], skip_zeros: bool) -> None:
        super().__init__()
        self.kept, self.skip_zeros = kept, skip_zeros

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = _NORMS[func](self.kept, *args, **kwargs) if func in _NORMS else None
        if made is None and func in _MIXING and self.skip_zeros:
            made = _over_nonzero(func, args, kwargs)
        return func(*args, **kwargs) if made is None else made


def _layer_norm(
    kept: Mapping[int, Tensor],
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor | None:
    if id(weight) not in kept:
        return None
    stays = kept[id(weight)].to(x.dtype)
    dims = list(range(-len(normalized_shape), 0))
    mean = (x * stays).sum(dims, keepdim=True) / stays.sum()
    variance = ((x - mean).square() * stays).sum(dims, keepdim=True) / stays.sum()
    y = (x - mean) / (variance + eps).sqrt() * weight
    return y if bias is None else y + bias


def _rms_norm(
    kept: Mapping[int, Tensor],
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor | None:
    if id(weight) not in kept:
        return None
    stays = kept[id(weight)].to(x.dtype)
    dims = list(range(-len(normalized_shape), 0))
    power = (x.square() * stays).sum(dims, keepdim=True) / stays.sum()
    return x / (power + (torch.finfo(x.dtype).eps if eps is None else eps)).sqrt() * weight


def _group_norm(
    kept: Mapping[int, Tensor],
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor | None:
    """Each group of the dense model takes its statistics over the channels that stay in it; one that lost
    all of them gives zeros."""
    if id(weight) not in kept:
        return None
    stays = kept[id(weight)].to(x.dtype).view(1, num_groups, -1, 1)
    y = x.reshape(len(x), num_groups, x.shape[1] // num_groups, -1)
    count = (stays.sum(2, keepdim=True) * y.shape[3]).clamp(min=1)
    mean = (y * stays).sum((2, 3), keepdim=True) / count
    variance = ((y - mean).square() * stays).sum((2, 3), keepdim=True) / count
    y = ((y - mean) * stays / (variance + eps).sqrt()).view(x.shape)
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = y * weight.view(shape)  # type: ignore[union-attr]
    return y if bias is None else y + bias.view(shape)


def _batch_norm(
    kept: Mapping[int, Tensor],
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Of a weight that is brought to mean 0 and spread 1 before each use."""
    root = x._base if x._base is not None else x
    if id(root) not in kept or not training or running_mean is not None:
        return None
    stays = kept[id(root)].view(x.shape).to(x.dtype)
    count = stays.sum((0, 2), keepdim=True).clamp(min=1)
    mean = (x * stays).sum((0, 2), keepdim=True) / count
    variance = ((x - mean).square() * stays).sum((0, 2), keepdim=True) / count
    y = (x - mean) * stays / (variance + eps).sqrt()
    y = y if weight is None else y * weight.view(1, -1, 1)
    return y if bias is None else y + bias.view(1, -1, 1)


def _written_out(module: nn.Module, stays: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        power = (wide.square() * stays).sum(-1, keepdim=True) / stays.sum()
        normal: Tensor = wide / (power + module.variance_epsilon).sqrt()
        return module.weight * normal.to(x.dtype)

    return forward


def _centred(module: nn.Module, stays: Tensor) -> Callable[[Tensor], Tensor]:
    """Mean and variance over the last dimension, of the places that stay. A whole row that left is zero."""
    more, bias = LAYER_NORMS[type(module).__name__], getattr(module, "bias", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))

    def forward(x: Tensor) -> Tensor:
        count = stays.sum(-1, keepdim=True).clamp_min(1)
        apart = (x - (x * stays).sum(-1, keepdim=True) / count) * stays
        normal = apart / (apart.square().sum(-1, keepdim=True) / count + epsilon).sqrt()
        scaled: Tensor = (module.weight + more) * normal
        return scaled if bias is None else scaled + bias

    return forward


_NORMS: dict[Any, Callable[..., Tensor | None]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
}

_MIXING = frozenset(
    getattr(owner, name)
    for owner in (torch, Tensor, F)
    for name in (
        "mean",
        "softmax",
        "log_softmax",
        "std",
        "var",
        "var_mean",
        "std_mean",
        "amax",
        "amin",
        "logsumexp",
        "rms_norm",
        "max",
        "min",
        "layer_norm",
    )
    if hasattr(owner, name)
)


_OVER_LAST = frozenset([F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm])


def _over_nonzero(func: Any, args: Any, kwargs: Any) -> Any:
    """The same on the slices that are not zero throughout; where one value is made of each place, zeros
    return to theirs."""
    x = args[0] if args else kwargs.get("input")
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.dim():
        return None
    found = x
    places: dict[int, Tensor] = {}
    for dim in _axes(func, x, args, kwargs):
        living = x.detach().movedim(dim, 0).flatten(1).abs().amax(1) > 0
        if bool(living.any()) and not bool(living.all()):
            places[dim] = living.nonzero().flatten()
            found = found.index_select(dim, places[dim])
    if not places:
        return None
    rest = args[1:]
    if func in _OVER_LAST:
        if (len(args) > 2 and args[2] is not None) or kwargs.get("weight") is not None:
            return None
        shape = tuple(found.shape[-len(args[1]) :])
        rest = (shape, *args[2:])
    made = func(found, *rest, **{k: v for k, v in kwargs.items() if k != "input"})
    if isinstance(made, torch.return_types.max | torch.return_types.min):  # a place keeps its number
        numbers = next(iter(places.values()))[made.indices] if len(places) == 1 else made.indices
        return type(made)((made.values, numbers))
    if not isinstance(made, Tensor) or made.shape != found.shape:
        return made
    for dim, own in places.items():
        made = made.new_zeros([x.shape[d] if d == dim else n for d, n in enumerate(made.shape)]).index_copy(
            dim, own, made
        )
    return made


def _axes(func: Any, x: Tensor, args: Any, kwargs: Any) -> list[int]:
    if func in _OVER_LAST:
        return [x.dim() - 1 - i for i in range(len(args[1]))]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if isinstance(dim, bool) or not isinstance(dim, int | tuple | list):
        return list(range(1, x.dim()))
    return [d % x.dim() for d in ((dim,) if isinstance(dim, int) else dim)]


# comparing


def difference(
    result: Cut,
    dense: nn.Module,
    inputs: Inputs,
    *,
    constants_kept: Cuts | None = None,
    experts: Experts | None = None,
) -> float:
    """Largest difference between the cut model and the reference, relative to the largest value of an
    output; inf where the shapes differ. See `compare`."""
    return compare(result, dense, inputs, constants_kept=constants_kept, experts=experts).difference


def compare(
    result: Cut,
    dense: nn.Module,
    inputs: Inputs,
    *,
    constants_kept: Cuts | None = None,
    enough: float = 1e-6,
    method: str = "forward",
    reference: bool = True,
    experts: Experts | None = None,
) -> Comparison:
    """Run the cut model, the dense one and the reference on the same inputs, in float64 where the network
    runs in it.

    Zeros in the weights come first. Where they differ by more than `enough`, statistics over activations
    leave out slices that are zero throughout; the answer says which of the two it was. reference: false
    where the dense model is all that the cut one is compared with.
    """
    whole, double = dense_outputs(dense, inputs, method)
    found = run(result.model, inputs, double, method)
    by, least = "weights", math.inf
    zeros = set_to_zero(result, dense)
    for skip_zeros in (False, True) if reference else ():
        more: dict[str, Any] = {"zeros": zeros, "skip_zeros": skip_zeros, "double": double}
        twin = masked(dense, result.cuts, constants_kept=constants_kept, experts=experts, **more)
        own = relative(found, _outputs(twin, twin.inner, inputs, double, method))
        if own < least:
            by, least = "zeros" if skip_zeros else "weights", own
        if least <= enough:
            break
    return Comparison(least, by, double, relative(found, whole), _spread(whole))


def to_dense(result: Cut, dense: nn.Module, inputs: Inputs) -> float:
    """Largest difference between the cut model and the dense one as it is, relative to the largest value of
    an output."""
    return compare(result, dense, inputs, reference=False).to_dense


def _spread(outputs: Sequence[Tensor]) -> float:
    """How far the first and the last index of dimension 0 of the largest output are apart, relative to its
    largest value."""
    first = max(outputs, key=Tensor.numel)
    return (
        float((first[0] - first[-1]).abs().max() / first.abs().max().clamp(min=1e-30)) if first.dim() else 0.0
    )


def set_to_zero(result: Cut, dense: nn.Module) -> dict[str, Tensor]:
    """What rules on groups inside tensors set to zero, read off the cut model: the log says how many, not
    which."""
    places, first = kept_places(dense, result.cuts), dense_names(dense, result.cuts)
    tensors = _tensors(result.model)
    found: dict[str, Tensor] = {}
    for op in result.cuts.operations:
        if isinstance(op, Zero):
            left, own = places[first[op.tensor]], tensors[op.tensor].detach()
            if own.numel() == left.numel():
                found[first[op.tensor]] = left.flatten()[(own.flatten() == 0).cpu()]
    return found


def dense_outputs(model: nn.Module, inputs: Inputs, method: str = "forward") -> tuple[list[Tensor], bool]:
    """Outputs, and whether they are in float64: some networks cast inside and do not run in it."""
    try:
        return run(model, inputs, True, method), True
    except Exception:
        return run(model, inputs, False, method), False


def run(model: nn.Module, inputs: Inputs, double: bool = True, method: str = "forward") -> list[Tensor]:
    """Outputs of a copy in eval mode."""
    copy = _copied(model).eval()
    copy = copy.double() if double else copy
    return _outputs(copy, copy, inputs, double, method)


def _outputs(called: nn.Module, inner: nn.Module, inputs: Inputs, double: bool, method: str) -> list[Tensor]:
    own = converted(inputs) if double else converted(inputs, torch.float32)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _slow_attention():
        torch.manual_seed(0)
        if method == "forward":
            return list(tensors_of(called(**own) if isinstance(own, Mapping) else called(*own)))
        context = _Statistics(called.kept, called.skip_zeros) if isinstance(called, Masked) else _nothing()
        with context:
            function = getattr(inner, method)
            return list(tensors_of(function(**own) if isinstance(own, Mapping) else function(*own)))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _slow_attention() -> Iterator[None]:
    """torch's fused encoder layers read weights without calling the modules that hold them, and do not run
    in float64."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def converted(value: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Copies of the inputs, floating-point tensors in another dtype."""
    if isinstance(value, Tensor):
        return value.clone().to(dtype) if value.is_floating_point() else value.clone()
    if isinstance(value, Mapping):
        return {k: converted(v, dtype) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(converted(v, dtype) for v in value)
    return value


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Every tensor of a nested output that holds numbers with a fraction, in a fixed order."""
    if isinstance(output, Tensor):
        if output.is_complex():
            yield torch.view_as_real(output)
        elif output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_of(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors_of(value)
    elif is_dataclass(output):
        for field in fields(output):
            yield from tensors_of(getattr(output, field.name))


def relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference of an output relative to its own largest value; inf for other shapes or
    numbers that are none."""
    if [t.shape for t in found] != [t.shape for t in wanted]:
        return math.inf
    gaps = [0.0]
    for a, b in zip(found, wanted, strict=True):
        if b.numel():
            gaps.append(float((a - b).abs().max()) / max(float(b.abs().max()), 1e-30))
    return math.inf if any(math.isnan(gap) for gap in gaps) else max(gaps)


# fresh inputs, dead units


def fresh(example: Inputs, batch: int, seed: int) -> Inputs:
    """Other inputs of the same kind at another batch size, dimension 0 of every tensor.

    Numbers with a fraction are normal. Integers lie between the least and the greatest of the example;
    those of one dimension (lengths) descend. Truth values are mixed.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return value
        shape = (batch, *value.shape[1:])
        if value.is_floating_point():
            return torch.randn(shape, generator=generator).to(value.dtype)
        if value.dtype == torch.bool:
            return torch.rand(shape, generator=generator) < 0.5
        found = torch.randint(int(value.min()), int(value.max()) + 1, shape, generator=generator).to(
            value.dtype
        )
        return found.sort(descending=True).values if value.dim() == 1 else found

    return (
        {k: drawn(v) for k, v in example.items()}
        if isinstance(example, Mapping)
        else tuple(drawn(v) for v in example)
    )


def kill(model: nn.Module, layers: Iterable[str], share: float, seed: int) -> dict[str, list[int]]:
    """Set to zero the weights that produce a share of the units of each convolution and linear layer; what
    was chosen.

    Biases and normalisations behind stay: a dead unit emits a constant. Layers of one width lose the same
    units, so that those whose outputs are added up are dead together.
    """
    chosen: dict[str, list[int]] = {}
    for name in layers:
        module = model.get_submodule(name)
        weight = _producing(module)
        if weight is None or not weight.dim():
            continue
        width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        generator = torch.Generator().manual_seed(seed + width)
        units = torch.randperm(width, generator=generator)[: int(share * width)].sort().values
        rows = producer_rows(module, weight)
        if len(rows) < width:  # magnitudes of something else than its units
            continue
        with torch.no_grad():
            for unit in units.tolist():
                rows[unit].zero_()
        chosen[name] = units.tolist()
    return chosen


def _producing(module: nn.Module) -> Tensor | None:
    """The stored tensor whose zeros make units of a convolution or a linear layer dead."""
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return None
    stored = dict(module.named_parameters())
    names = (
        "parametrizations.weight.original0",
        "parametrizations.weight.original",
        "weight_g",
        "weight_orig",
        "weight",
    )
    return next((stored[name] for name in names if name in stored), None)


def producer_rows(module: nn.Module, weight: Tensor) -> list[Tensor]:
    """Views of a weight, one for each unit that a layer puts out."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and weight.shape[0] == module.in_channels:
        per_group = weight.shape[1]
        parts = weight.view(module.groups, -1, *weight.shape[1:])
        return [parts[unit // per_group, :, unit % per_group] for unit in range(module.out_channels)]
    return list(weight)
