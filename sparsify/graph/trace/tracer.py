"""Trace one forward call operator by operator: what happens to the elements happens to their labels.

The model runs once in eval mode with example inputs, on real or meta tensors. Composite operators are seen
as the few dozen primitive ones that they consist of (attention as matrix products and a softmax, an LSTM
as products and chunks).
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from sparsify.forward.opaque import LEAVES_TORCH, is_nested, is_scripted, is_sparse
from sparsify.graph.layer_types import layer_type
from sparsify.graph.names import named_tensors, walk_modules
from sparsify.graph.surgery.module_integers import find_numbers
from sparsify.graph.surgery.transformers_config import is_built_from_config
from sparsify.graph.trace.axis_labels import (
    AxisLabels,
    flexible_dims,
    take_first,
    varying_dims,
)
from sparsify.graph.trace.choose_rule import follow_operator
from sparsify.graph.trace.given_tensors import count_heads, list_own_numbers, offer_given
from sparsify.graph.trace.index_rules import WRITES_IN_PLACE
from sparsify.graph.trace.known_labels import KnownResult, MetaLabels
from sparsify.graph.trace.label_algebra import LabelAlgebra
from sparsify.graph.trace.labels import CREATED, Labels
from sparsify.graph.trace.meta_kernels import (
    KnownResults,
    describe_result,
    make_result,
    run_on_meta,
    short_name,
)
from sparsify.graph.trace.module_stack import ModuleStack, find_owner_of_code
from sparsify.graph.trace.operators import (
    NORMS,
    UNIFORM,
    dims_run_over,
    flatten_arguments,
)
from sparsify.graph.trace.part_writes import follow_write, follow_write_by_number
from sparsify.graph.trace.products import PRODUCTS, TracedProduct, trace_product

COMPARES_WIDTH = (nn.RMSNorm, nn.Transformer)
"""modules that compare the width of their input with an attribute, outside of any operator"""


class LeavingTorch(TorchFunctionMode):
    """Notices when values leave torch, for NumPy or Python: what is computed there cannot be traced."""

    def __init__(self, watch: "Tracer") -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        way = LEAVES_TORCH.get(func)
        if way is not None:
            self._watch.protect(args, f"its values leave torch through {way}")
        if func is Tensor.__getitem__ and type(args[1]) is tuple:
            args = args[0], tuple(map(_write_as_slice, args[1]))
        return func(*args, **(kwargs or {}))


def _write_as_slice(index: Any) -> Any:
    """A list of one number as a slice, with the same result: torch makes a tensor of a list, without values
    where it is traced."""
    if type(index) is not list or len(index) != 1 or type(index[0]) is not int:
        return index
    return slice(index[0], index[0] + 1 or None)


def _list_lengths(model: nn.Module) -> frozenset[int]:
    """The lengths of all dimensions of the parameters."""
    return frozenset(size for parameter in model.parameters() for size in parameter.shape)


class Tracer(ModuleStack):  # type: ignore[no-untyped-call]
    """Follows labels through every operator that runs under it."""

    def __init__(self, labels: Labels, numbers: bool = True) -> None:
        super().__init__()
        self.labels = labels
        self.algebra = LabelAlgebra(labels)
        self.labels_by_tensor: MetaLabels | WeakTensorKeyDictionary = (
            WeakTensorKeyDictionary() if numbers else MetaLabels()
        )
        self.has_values = numbers
        self.names: dict[AxisLabels, str] = {}
        self.known: dict[Any, KnownResult] = {}
        self.shapes_known: KnownResults = {}
        self.plain: dict[tuple[int, ...], AxisLabels] = {}
        self.hidden: dict[str, list[Tensor]] = {}
        self.comparing: set[str] = set()
        self.group_counts: dict[str, tuple[str, int]] = {}
        """module -> (attribute, number) of its channel groups"""
        self.products: dict[Any, TracedProduct] = {}
        self.ran: Counter[Any] = Counter()
        """how often each product ran, with the keys of `products`"""
        self.counting = False
        self.modules: dict[str, nn.Module] = {}
        self.module_names: dict[nn.Module, str] = {}
        self.own_numbers: dict[str, frozenset[int]] = {}
        """module of a user's own -> the integers that it holds"""
        self.head_counts: dict[str, frozenset[int]] = {}
        """module of a user's own -> those that count heads, as their names say"""

    def enter_tensor(self, name: str, tensor: Tensor, lengths: Collection[int] | None = None) -> None:
        """Give a parameter or buffer its labels: one per index of each dimension, or of those with one of
        these lengths."""
        aspects = []
        for dim, size in enumerate(tensor.shape):
            if lengths is not None and size not in lengths:
                continue
            axis = self.labels.add_axis(name, dim, size)
            if size > 1:
                shape = [1] * tensor.dim()
                shape[dim] = size
                aspects.append(torch.arange(axis.first, axis.first + size).view(shape))
        axis_labels = AxisLabels(tuple(tensor.shape), tuple(aspects), parameter=True)
        self.labels_by_tensor[tensor] = axis_labels
        self.names[axis_labels] = name

    def enter_model(self, model: nn.Module) -> None:
        """Label every parameter and saved buffer. Of what is not saved (computed positions) the dimensions
        that may be as long as a layer is wide; where a configuration builds the model, and so computes it
        anew (rotary frequencies), those alone that are as long as its module has heads (slopes of ALiBi)."""
        self.modules = dict(walk_modules(model))
        self.module_names = {module: name for name, module in self.modules.items()}
        computed_anew = any(is_built_from_config(module) for module in self.modules.values())
        widths = frozenset() if computed_anew else _list_lengths(model)
        for name, tensor, saved in named_tensors(model):
            if is_nested(tensor):
                continue
            counts = None if saved else count_heads(self.modules[name.rpartition(".")[0]]) | widths
            if counts is None or (counts.intersection(tensor.shape) and tensor.is_floating_point()):
                self.enter_tensor(name, tensor, counts)
                if is_sparse(tensor):
                    self.fix(self.labels_unread(tensor), f"the sparse tensor '{name}' keeps its shape")
        for name, module in self.modules.items():
            if isinstance(module, COMPARES_WIDTH):
                self.comparing.add(name)
            if not type(module).__module__.startswith("torch."):
                self.own_numbers[name] = list_own_numbers(module)
                self.head_counts[name] = count_heads(module)
            attribute = layer_type(module).group_count
            if attribute is not None:
                self.group_counts[name] = attribute, getattr(module, attribute)
            if isinstance(module, nn.RNNBase):
                self._enter_recurrent(name, module)

    def _enter_recurrent(self, name: str, module: nn.RNNBase) -> None:
        """Join the hidden units of a recurrent module: one index of every gate, layer and direction; so those
        that it projects to, if it does.

        The states that such a module starts from have that size too. Source: Wen et al., arXiv:1709.05027
        (ISS).
        """
        found = []
        for weight in ("weight_hh", "weight_hr"):
            units = [
                self.labels_of(p).aspects
                for n, p in module.named_parameters(recurse=False)
                if n.startswith(weight)
            ]
            columns = []
            for aspects in units:
                columns += [aspect.flatten() for aspect in aspects if varying_dims(aspect) == {1}]
            for other in columns[1:]:
                self.algebra.join(columns[0], other)
            found += columns[:1]
        self.hidden[name] = found

    def labels_of(self, tensor: Tensor) -> AxisLabels:
        found = self.labels_unread(tensor)
        if found in self.names:
            self.labels.used.add(self.names[found])
        for aspect, over in found.reduced_over:
            self.labels.note_statistics(aspect.numpy(), over)
        self.algebra.hold_numbered(found)
        return found

    def labels_unread(self, tensor: Tensor) -> AxisLabels:
        """The labels of a tensor, without counting as a use of it."""
        found: AxisLabels | None = self.labels_by_tensor.get(tensor)
        return self._unlabelled(tensor) if found is None else found

    def _unlabelled(self, tensor: Tensor) -> AxisLabels:
        shape = tuple(tensor.shape)
        return self.plain.setdefault(shape, AxisLabels(shape))

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator, and follow the labels through it."""
        name = short_name(func)
        if (
            any(is_nested(t) for t in flatten_arguments(args, kwargs) if isinstance(t, Tensor))
            or "nested" in name
        ):
            return self.run_untraced(
                func, args, kwargs, f"it passes through '{name}', which works on nested tensors"
            )
        key = self._key(name, func, args, kwargs)
        known = self.known.get(key)
        if known is not None and known.made is not None:
            out = make_result(known.made, known.alone)
        else:
            out = self.run_plain(name, func, args, kwargs)
        in_place = name.endswith("_") and not name.startswith("_")
        if in_place:
            name = name[:-1]
            if name not in WRITES_IN_PLACE:
                self._note_write(name, args)
        if self.counting and name in PRODUCTS:
            if key not in self.products:
                module = self.within[-1] if self.within else ""
                self.products[key] = trace_product(name, module, args, out, self.labels_unread)
            self.ran[key] += 1
        results: tuple[Any, ...] | list[Any] = ()
        if isinstance(out, Tensor):
            results = (out,)
        elif isinstance(out, tuple | list):
            results = out
        if known is None:
            result = self._apply_rule(name, func, args, kwargs, out)
            all_labels = result if isinstance(result, list) else [result]
            known = self.known[key] = KnownResult(
                (*all_labels, *[None] * len(results)),
                None if name in NORMS else describe_result(func, out),
                isinstance(out, Tensor),
            )
        if in_place and name in WRITES_IN_PLACE:
            follow_write_by_number(self, name, args[0], known.labels[0])
        for value, axis_labels in zip(results, known.labels, strict=False):
            if isinstance(value, Tensor):
                self.labels_by_tensor[value] = self._unlabelled(value) if axis_labels is None else axis_labels
        return out

    def _key(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Everything that a rule reads: the operator, its arguments with labels for tensors, the running
        module."""
        within = self.within[-1] if self.within else None
        if name in NORMS:
            # In train and eval mode its rule only differs in the labels that statistics are taken over.
            over = dims_run_over(name, args, kwargs)
            aspects = self.labels_unread(args[0]).aspects
            has_statistics = any(varying_dims(aspect) & over for aspect in aspects)
            return "norm", within, has_statistics, *map(self._describe_argument, args[:5])
        named = ((key, self._describe_argument(value)) for key, value in kwargs.items())
        return func, within, *map(self._describe_argument, args), *named

    def _describe_argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.labels_unread(value), None if is_sparse(value) else value.stride(), value.dtype
        if isinstance(value, list | tuple):
            return tuple(map(self._describe_argument, value))
        return value if value is None or type(value) is int else (type(value), value)

    def run_higher_order(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self.run_untraced(
            func, args, kwargs, f"it passes through '{func.name()}', whose functions are not followed"
        )

    def run_untraced(self, func: Any, args: Any, kwargs: Any, reason: str) -> Any:
        """Run what cannot be traced: all labels that flow in must stay, and the result has none."""
        self.protect((args, kwargs), reason)
        return func(*args, **kwargs)

    def protect(self, values: Any, reason: str) -> None:
        """Fix the labels of every tensor in nested values."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and not is_nested(value):
                self.fix(self.labels_of(value), reason)

    def on_enter(self, name: str, args: Any, kwargs: Any) -> None:
        for value in (*args, *kwargs.values()) if name in self.comparing else ():
            if isinstance(value, Tensor):
                self.note_length(self.labels_of(value))
        numbers = self.own_numbers.get(name)
        for value in (*args, *kwargs.values()) if numbers else ():
            if isinstance(value, Tensor) and not is_nested(value):
                self._note_input(name, numbers, self.labels_unread(value))

    def _note_input(self, name: str, numbers: Collection[int] | None, axis_labels: AxisLabels) -> None:
        """Remember the lengths of an input that the module holds a number for: it may compare the two."""
        for aspect in axis_labels.aspects:
            for d in varying_dims(aspect):
                if aspect.shape[d] in (numbers or ()):
                    own = take_first(aspect, varying_dims(aspect) - {d}).flatten().numpy()
                    self.labels.inputs.append((name, own))

    @contextmanager
    def track_modules(self, model: nn.Module) -> Iterator[None]:
        """Track which module is running, by wrapping `forward`: this comes before any hook."""
        before = {}
        for name, module in walk_modules(model):
            before[module] = vars(module).get("forward")
            if is_scripted(module):
                vars(module)["forward"] = self._wrap_scripted(name, module, module.forward)
            else:
                vars(module)["forward"] = self._wrap_forward(name, module.forward)
        try:
            yield
        finally:
            for module, own in before.items():
                del vars(module)["forward"]
                if own is not None:
                    vars(module)["forward"] = own

    def _wrap_forward(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.within.append(name)
            self.labels.ran.add(name)
            self.on_enter(name, args, kwargs)
            before = offer_given(self, name, self.head_counts.get(name, ()), args, kwargs)
            try:
                return forward(*args, **kwargs)
            finally:
                self.within.pop()
                for tensor, axis_labels in before:
                    self.set_labels(tensor, axis_labels)

        return run

    def _wrap_scripted(self, name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of a TorchScript module, whose tensors and lengths no cut can change."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.protect((args, kwargs), f"it enters the scripted module '{name}'")
            self.protect([*module.parameters(), *module.buffers()], f"the scripted module '{name}' holds it")
            return forward(*args, **kwargs)

        return run

    def note_length(self, axis_labels: AxisLabels) -> AxisLabels:
        """Remember where a length was used: a module's attribute may hold it."""
        module = self._find_running()
        if module is not None:
            for aspect in axis_labels.aspects:
                for d in varying_dims(aspect):
                    own = take_first(aspect, varying_dims(aspect) - {d}).flatten().numpy()
                    self.labels.note_length(module, own)
        return axis_labels

    def _find_running(self) -> str | None:
        """The module whose code runs."""
        if not self.within:
            return None
        called = self.within[-1]
        return find_owner_of_code(self.modules.get(called), self.module_names) or called

    def note_part(self, part: AxisLabels, dim: int, lengths: Sequence[int], number: int) -> None:
        """Remember which of several lengths a part has: the running module may hold a list of them."""
        module = self._find_running()
        for aspect in part.aspects:
            varying = varying_dims(aspect)
            if module is not None and dim in varying:
                own = take_first(aspect, varying - {dim}).flatten().numpy()
                self.labels.note_part(module, lengths, number, own)

    def note_slice(self, labels: Tensor, length: int, reason: str) -> None:
        """Remember that the running module takes a slice of a dimension with these labels."""
        self.labels.note_slice(self._find_running() or "", labels.numpy(), length, reason)

    def follows_widths(self, length: int) -> bool:
        """Whether a part of this length may follow the widths of layers.

        Without values it may, as nothing that is computed decides on it. With values it must be a number that
        the running module or its configuration holds, or a product of two of them.
        """
        if not self.has_values:
            return True
        running = self._find_running()
        if running is None or running not in self.modules:
            return False
        module = self.modules[running]
        numbers = (held.value for held in find_numbers(module, set()))
        held = {number for number in numbers if type(number) is int and number > 0}
        return any(length % number == 0 and length // number in held | {1} for number in held)

    def find_group_count(self, groups: int) -> str | None:
        """`module:attribute` of the running layer that holds its number of channel groups."""
        module = self.within[-1] if self.within else ""
        attribute, held = self.group_counts.get(module, ("", 0))
        return f"{module}:{attribute}" if held == groups else None

    def run_plain(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator."""
        return run_on_meta(name, func, args, kwargs, self.shapes_known)

    def _note_write(self, name: str, args: Any) -> None:
        """Follow an operator that wrote into its first argument; if that fails, fix all labels involved."""
        try:
            follow_write(self, name, args)
        except Exception as error:
            self.protect(args, self._failure_reason(name, error))

    def label_created(self, name: str, out: Any) -> AxisLabels | None:
        """Label a tensor that an operator creates.

        A uniform one can have any size (a trial cut shows whether the size comes from elsewhere), others
        have a fixed size. The initial state of a recurrent module has its hidden units. An identity matrix
        passes on what it is multiplied by, so its rows and columns have labels of their own.
        """
        if name == "eye" and out.dim() == 2 and out.shape[0] == out.shape[1] > 1:
            axis = self.labels.add_axis(CREATED, 0, out.shape[0])
            own = torch.arange(axis.first, axis.first + axis.size)
            return AxisLabels(tuple(out.shape), (own.view(-1, 1), own.view(1, -1)))
        within = self.within[-1] if self.within else ""
        length = out.shape[-1] if isinstance(out, Tensor) and out.dim() else 0
        units = next((own for own in self.hidden.get(within, ()) if len(own) == length), None)
        if units is not None:
            return AxisLabels(tuple(out.shape), (units.view([1] * (out.dim() - 1) + [-1]),))
        if name not in UNIFORM:
            return None
        flexible = flexible_dims(out.shape, range(out.dim()), within)
        return AxisLabels(tuple(out.shape), flexible=flexible)

    def set_labels(self, tensor: Tensor, axis_labels: AxisLabels) -> None:
        """Replace the labels of a tensor."""
        self.labels_by_tensor[tensor] = axis_labels

    def fix(self, axis_labels: AxisLabels, reason: str) -> None:
        """These labels must stay, for this reason."""
        for aspect in axis_labels.aspects:
            self.labels.fix(aspect.numpy(), reason)

    def _apply_rule(
        self, name: str, func: Any, args: Any, kwargs: Any, out: Any
    ) -> AxisLabels | list[AxisLabels] | None:
        """Apply an operator's rule; if the rule fails, fix the labels that flow in."""
        try:
            with torch._C._DisableTorchDispatch():  # rules work on labels, which no outer mode need see
                return follow_operator(self, name, func, args, kwargs, out)
        except Exception as error:
            self.protect((args, kwargs), self._failure_reason(name, error))
            return None

    def _failure_reason(self, name: str, error: Exception) -> str:
        module = f" in '{self.within[-1]}'" if self.within and self.within[-1] else ""
        return f"it passes through '{name}'{module}, which could not be followed ({type(error).__name__})"
