"""Where a model can be repaired: its layers in the order they run, the norm behind each, the sum each ends
in.

One forward call is watched. A *sum* is an addition of two tensors of one shape, such as that of a residual
block. The layer of a sum that runs last can make up for what the other addend lost, if that addend is known
by then.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.call_model import call_model, every_tensor, restore_buffers
from sparsify.forward.calls import Inputs, first_tensor
from sparsify.forward.operator_mode import OperatorMode
from sparsify.pruning.layer_matrix import is_product, is_product_of_computed
from sparsify.pruning.repair.attention import is_attention, is_attention_of_computed
from sparsify.pruning.repair.recurrent import is_recurrent, is_recurrent_of_computed

_COPIES = (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.lift_fresh.default)
"""operators that torch adds to a call or leaves out, depending on who else holds a tensor"""
_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True)
class Operator:
    """An operator of a forward call: its number among those that compute something, and its name."""

    number: int
    name: str


@dataclass(frozen=True)
class Site:
    """A layer that multiplies its input by a weight, an attention or a recurrent layer; also one whose weight
    is computed and so is not refitted."""

    name: str
    calls: int
    """how often it runs in one forward call"""
    norm: str | None
    """the batch normalisation that its output alone goes into, if any"""
    addend: Operator | None = None
    """the operator that makes the other addend of the sum that this layer ends in, if it makes up
    for it"""
    through_norm: bool = False
    """whether the norm lies between the layer and the sum"""


def main_result(result: Any) -> Tensor | None:
    """The tensor that an operator or a layer is called for: some return statistics or states beside it."""
    first = result[0] if isinstance(result, tuple) and result else result
    return first if isinstance(first, Tensor) else None


class OperatorCounter(OperatorMode):
    """Numbers the operators of a forward call, and keeps the results of some.

    wanted: operators whose results are kept in `kept`. One of another name at this number is not kept: the
    call took another way.
    """

    def __init__(self, wanted: frozenset[Operator] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wanted = {operator.number: operator for operator in wanted}
        self.count = 0
        self.kept: dict[Operator, Tensor] = {}
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.paused and func not in _COPIES:
            self.note(func, args, result)
            self.count += 1
        return result

    def note(self, func: Any, _args: Any, result: Any) -> None:
        made = main_result(result)
        operator = self.wanted.get(self.count)
        if operator is not None and operator.name == str(func) and made is not None:
            self.kept[operator] = made

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Operators within the block are not counted."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


@dataclass
class _Addition:
    number: int
    left: Tensor
    right: Tensor


class _Watch(OperatorCounter):  # type: ignore[no-untyped-call]
    """Remembers which operator made each tensor, and every addition of two tensors of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.maker: dict[int, Operator] = {}
        self.alive: list[Any] = []  # an id is only a name while its object lives
        self.additions: list[_Addition] = []
        self.read: Counter[int] = Counter()
        """how many operators took each tensor, by its id; those within a norm are not counted"""
        self.norms = 0
        """norms that are running"""

    def note(self, func: Any, args: Any, result: Any) -> None:
        if (
            func in _ADDITIONS
            and all(isinstance(one, Tensor) for one in args[:2])
            and args[0].shape == args[1].shape
        ):
            self.additions.append(_Addition(self.count, args[0], args[1]))
        if not self.norms:
            self.read.update(map(id, every_tensor(args)))
        made = main_result(result)
        if made is not None:
            self.alive.append(made)
            self.maker[id(made)] = Operator(self.count, str(func))


@dataclass
class _Seen:
    """What the hooks saw of one layer."""

    calls: int = 0
    finished: int = 0
    """operators that had run when the layer had"""
    norm: str | None = None
    norms: int = 0
    """how often its output went into a norm"""
    results: set[int] = field(default_factory=set)
    """ids of its own outputs"""
    normed: set[int] = field(default_factory=set)
    """ids of the outputs of the norm behind it"""


def find_sites(model: nn.Module, inputs: Inputs) -> tuple[dict[str, Site], int]:
    """The layers of one forward call in the order they run, and the number of operators of that call.

    The model is left as it was.
    """
    watch, seen = _Watch(), dict[str, _Seen]()
    made_by: dict[int, str] = {}
    norm_calls: Counter[str] = Counter()
    handles = []

    def after_layer(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            own = seen.setdefault(name, _Seen())
            own.calls += 1
            own.finished = watch.count
            made = main_result(output)
            if made is not None:
                own.results.add(id(made))
                made_by[id(made)] = name
                watch.alive.append(made)

        return hook

    def before_norm(*_: Any) -> None:
        watch.norms += 1

    def after_norm(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            watch.norms -= 1
            norm_calls[name] += 1
            layer = made_by.get(id(first_tensor(args, kwargs)))
            if layer is not None and isinstance(output, Tensor):
                seen[layer].norm = name
                seen[layer].norms += 1
                seen[layer].normed.add(id(output))
                watch.alive.append(output)

        return hook

    attentions = (one for one in model.modules() if is_attention(one) or is_attention_of_computed(one))
    inside = {id(one.out_proj) for one in attentions}
    for name, module in model.named_modules():
        if _is_layer(module) and id(module) not in inside:
            # Before the user's hooks: a layer is fitted to what it returns, not to what they make of it.
            handles.append(module.register_forward_hook(after_layer(name), prepend=True))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
            handles.append(module.register_forward_hook(after_norm(name), with_kwargs=True))
    try:
        with torch.no_grad(), restore_buffers(model), watch:
            returned = call_model(model, inputs)
        watch.read.update(map(id, every_tensor(returned)))
    finally:
        for handle in handles:
            handle.remove()
    addends = dict(_list_addends(watch, seen))
    sites = {}
    for name, own in seen.items():
        addend, through_norm = addends.get(name, (None, False))
        is_read = own.norms > 1 or any(watch.read[one] for one in own.results)
        shared = own.norm is not None and (norm_calls[own.norm] > 1 or is_read)
        if shared and through_norm:
            addend, through_norm = None, False
        sites[name] = Site(name, own.calls, None if shared else own.norm, addend, through_norm)
    return sites, watch.count


def has_computed_weight(module: nn.Module) -> bool:
    """Whether a module would be refitted but for its weight, which other tensors are computed into."""
    tests = (is_product_of_computed, is_attention_of_computed, is_recurrent_of_computed)
    return any(test(module) for test in tests)


def _is_layer(module: nn.Module) -> bool:
    is_refitted = is_product(module) or is_attention(module) or is_recurrent(module)
    return is_refitted or has_computed_weight(module)


def _list_addends(watch: _Watch, seen: dict[str, _Seen]) -> Iterator[tuple[str, tuple[Operator, bool]]]:
    """Layer -> (operator that makes the other addend of its sum, whether a norm lies between)."""
    ends = {one: (name, False) for name, own in seen.items() for one in own.results}
    ends |= {one: (name, True) for name, own in seen.items() for one in own.normed}
    for addition in watch.additions:
        pairs = ((addition.left, addition.right), (addition.right, addition.left))
        for own, other in pairs:
            name, through_norm = ends.get(id(own), (None, False))
            maker = watch.maker.get(id(other))
            if name is None or maker is None or seen[name].calls != 1:
                continue
            if maker.number < seen[name].finished:
                yield name, (maker, through_norm)


def list_operators(sites: Mapping[str, Site], names: frozenset[str]) -> frozenset[Operator]:
    """The operators that make the other addends of some layers' sums."""
    operators = (sites[name].addend for name in names)
    return frozenset(operator for operator in operators if operator is not None)
