"""Read a model's structure: model + example inputs -> ModelMap."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import TypeGuard

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from sparsify.errors import ModelError, describe_error
from sparsify.forward.call_model import check_model, move_inputs_to_meta
from sparsify.forward.calls import Inputs
from sparsify.forward.copies import copy_model
from sparsify.forward.input_records import record_calls
from sparsify.graph.class_names import class_names
from sparsify.graph.copy import copy_to_meta
from sparsify.graph.coupled_groups import find_coupled_groups
from sparsify.graph.layer_types import (
    WEIGHTS,
    attributes,
    layer_type,
    layer_widths,
    without_power_iteration,
)
from sparsify.graph.model_map import Coupled, Layer, ModelMap, Tensor
from sparsify.graph.names import canonical_names, named_tensors, walk_modules
from sparsify.graph.peft_adapters import find_adapter_names
from sparsify.graph.product_macs import TraceResult, find_products
from sparsify.graph.surgery.module_integers import AXES, HeldNumber, find_numbers, read_axes
from sparsify.graph.surgery.width_names import Meaning, read_meaning
from sparsify.graph.trace.channel_groups import Leaving
from sparsify.graph.trace.labels import Ints, Labels
from sparsify.graph.trace.products import TracedProduct
from sparsify.graph.trace.trace_model import trace_model


def build_map(
    model: nn.Module,
    inputs: Inputs,
    macs: Mapping[str, int],
    leaving: Leaving = "most units",
    on_other_sides: bool = False,
) -> ModelMap:
    """Trace one forward call to find what is coupled to what; the model is left as it was.

    inputs: a tuple, or a mapping for keyword inputs. macs: multiply-accumulates by module name.
    leaving: what leaves of channels that fall into groups. on_other_sides: where one of several dimensions
    (heads, the places in each) can leave, take the one that gives the second most units, not the most.
    Raises ModelError if the model cannot be traced.
    """
    check_model(model)
    own = tuple(list_tensors(model))
    copy, labels, ran = _trace_model(model, inputs)
    unreached, in_training = _find_unreached(copy, labels)
    classes = labels.find_classes(leaving, on_other_sides)
    coupled = tuple(
        find_coupled_groups(
            labels,
            classes,
            _find_producers(copy, labels),
            [*_find_length_attributes(copy, labels), *labels.group_counts],
            list(_find_length_settings(copy, labels)),
        )
    )
    coupled = tuple(_protect_ranks(coupled, find_adapter_names(model).inside))
    coupled = tuple(_bound_hidden_units(coupled, copy))
    reached = {(part.tensor, part.dim) for group in coupled for part in group.slices}
    return ModelMap(
        layers=tuple(list_layers(model, macs)),
        tensors=own,
        coupled=coupled,
        macs=sum(macs.values()),
        inputs=record_calls(inputs),
        shared=tuple(sorted((labels.produced | labels.looked_up) & labels.consumed)),
        products=find_products(ran, TraceResult(labels, classes, reached), macs, own),
        unreached=unreached,
        in_training=in_training,
    )


PROJECTION = "weight_hr_l0"
"""weight of an LSTM that projects its hidden states: [projected, hidden]"""
_NO_ROOM = "an LSTM needs more hidden units than it projects to"


def _bound_hidden_units(coupled: Iterable[Coupled], model: nn.Module) -> Iterator[Coupled]:
    """The groups; of hidden units of LSTMs with `proj_size` one more must stay than there are projected ones:
    torch takes an LSTM with equally many as one that does not project."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in walk_modules(model):
        if isinstance(module, nn.RNNBase) and module.proj_size:
            weight = f"{name}.{PROJECTION}" if name else PROJECTION
            sizes[weight] = module.proj_size, module.hidden_size
    for group in coupled:
        for part in group.slices:
            if part.dim == 1 and part.tensor in sizes:
                projected, hidden = sizes[part.tensor]
                least = ceil((projected + 1) * group.width / hidden)
                group = replace(group, least=max(group.least, least))
        if group.least >= group.width > 1 and group.protected is None:
            group = replace(group, protected=_NO_ROOM)
        yield group


_RANK = "it is the rank of an adapter, which peft's configuration states"


def _protect_ranks(coupled: Iterable[Coupled], inside: frozenset[str]) -> Iterator[Coupled]:
    """The groups; those that lie in adapters alone are marked to stay."""
    for group in coupled:
        if group.protected is None and inside.issuperset(group.layers):
            group = replace(group, protected=_RANK)
        yield group


def list_tensors(model: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers, tied ones once."""
    for name, tensor, saved in named_tensors(model):
        yield Tensor(
            name, tuple(tensor.shape), tensor.element_size() if saved else 0, isinstance(tensor, nn.Parameter)
        )


def list_layers(model: nn.Module, macs: Mapping[str, int]) -> Iterable[Layer]:
    """Modules with parameters of their own, in the order of the model."""
    adapters = find_adapter_names(model)
    for name, module in walk_modules(model):
        weight = _find_weight(module)
        if isinstance(module, ParametrizationList) or (
            weight is None and all(p is None for p in module._parameters.values())
        ):
            continue
        shape = () if weight is None else tuple(weight[1].shape)
        own, *ancestors = class_names(module)
        yield Layer(
            name,
            own,
            shape,
            macs.get(name, 0),
            *layer_widths(module),
            tuple(ancestors),
            adapters.plain.get(name, ""),
            name in adapters.inside,
        )


def _find_weight(module: nn.Module) -> tuple[str, nn.Parameter] | None:
    """The name in its module of a layer's weight, and the weight."""
    own = {n: p for n, p in module._parameters.items() if p is not None}
    if is_parametrized(module, "weight"):
        with without_power_iteration(module):
            shape = module.weight.shape
        own = {n: p for n, p in module.named_parameters() if n in WEIGHTS and p.shape == shape}
    return next(((n, own[n]) for n in WEIGHTS if n in own), None)


def _find_unreached(model: nn.Module, labels: Labels) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Layers that no call reached, by themselves or by a parameter, and those reached only in train mode."""
    names, unreached, in_training = canonical_names(model), [], []
    for layer in list_layers(model, {}):
        own = model.get_submodule(layer.name).named_parameters()
        prefix = f"{layer.name}." if layer.name else ""
        known = {layer.name, *(names[f"{prefix}{name}"] for name, _ in own)}
        if not known & (labels.used | labels.ran):
            unreached.append(layer.name)
        elif not known & labels.evaluated:
            in_training.append(layer.name)
    return tuple(unreached), tuple(in_training)


def _trace_model(
    model: nn.Module, inputs: Inputs
) -> tuple[nn.Module, Labels, list[tuple[TracedProduct, int]]]:
    try:
        return _trace_copy(model, inputs)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the model could not be traced with the inputs of the recipe: {describe_error(error)}"
        ) from error


def _trace_copy(
    model: nn.Module, inputs: Inputs
) -> tuple[nn.Module, Labels, list[tuple[TracedProduct, int]]]:
    """Trace a copy without values or, if the forward call needs values, a copy with them."""
    if not any(p.is_meta for p in model.parameters()):
        try:
            copy = copy_to_meta(model)
            return copy, *trace_model(copy, move_inputs_to_meta(inputs), lenient=False)
        except Exception:
            pass
    copy = copy_model(model)
    return copy, *trace_model(copy, inputs, lenient=True)


def _find_length_attributes(model: nn.Module, labels: Labels) -> Iterable[tuple[str, Ints]]:
    """Attributes of modules (`num_heads`, a shape) whose value is a length that the module reshapes or
    splits by."""
    seen = set()
    for module, own in labels.shapes:
        if (module, own.tobytes()) in seen:
            continue
        seen.add((module, own.tobytes()))
        implied = attributes(model.get_submodule(module))  # by the shapes of its tensors: set with them
        for attribute, value in vars(model.get_submodule(module)).items():
            if attribute in implied:
                continue
            if type(value) is int and value == len(own):
                yield f"{module}:{attribute}", own
            elif _is_whole_numbers(value) and list(value).count(len(own)) == 1:
                yield f"{module}:{attribute}[{list(value).index(len(own))}]", own
        for axis, length in read_axes(model.get_submodule(module)).items():
            if length == len(own):
                yield f"{module}:{AXES}.{axis}", own
    yield from _find_lengths_of_parts(model, labels)


def _is_whole_numbers(value: object) -> TypeGuard[Sequence[int]]:
    return isinstance(value, tuple | list) and all(type(item) is int for item in value)


def _find_lengths_of_parts(model: nn.Module, labels: Labels) -> Iterator[tuple[str, Ints]]:
    """Places of a list that holds the lengths of all parts of a split, several of which are equal: each place
    is the length of the part that comes there."""
    for module, lengths, number, own in labels.parts:
        if lengths.count(len(own)) == 1:
            continue  # one length is told by its value
        for attribute, value in vars(model.get_submodule(module)).items():
            if _is_whole_numbers(value) and tuple(value) == lengths:
                yield f"{module}:{attribute}[{number}]", own


def _find_length_settings(model: nn.Module, labels: Labels) -> Iterable[tuple[str, Ints]]:
    """Further numbers that may be a length, as their names say: in configurations of modules that reshape or
    split by it (`config.num_attention_heads`), in lists of such modules that have it several times, and of
    modules that are given something as wide."""
    known: dict[str, list[HeldNumber]] = {}
    seen = set()
    ways = ((True, labels.shapes), (False, labels.inputs))
    for reshapes, module, own in ((way, *entry) for way, entries in ways for entry in entries):
        if (reshapes, module, own.tobytes()) in seen:
            continue
        seen.add((reshapes, module, own.tobytes()))
        if module not in known:
            known[module] = list(filter(_may_be_width, find_numbers(model.get_submodule(module), set())))
        for held in known[module]:
            nested = "." in held.path
            if reshapes and not nested:
                yield from ((f"{module}:{place}", own) for place in _find_repeated(held, len(own)))
            elif reshapes is nested and held.value == len(own):
                yield f"{module}:{held.path}", own
            elif not reshapes and held.value == (len(own),):
                yield f"{module}:{held.path}[0]", own


def _find_repeated(held: HeldNumber, length: int) -> Iterator[str]:
    """The places of a list at which a length stands, if it stands at several."""
    if isinstance(held.value, tuple) and held.value.count(length) > 1:
        yield from (f"{held.path}[{place}]" for place, value in enumerate(held.value) if value == length)


def _may_be_width(held: HeldNumber) -> bool:
    return read_meaning(held.name) not in (Meaning.NEVER, Meaning.UNKNOWN)


def _find_producers(model: nn.Module, labels: Labels) -> dict[tuple[str, int], str]:
    """(weight, dimension of its outputs) -> layer, for every layer whose width a rule can name.

    A weight that belongs to no layer goes by its own name: stacked experts of a mixture, or a parameter in
    a functional call.
    """
    names = canonical_names(model)
    found: dict[tuple[str, int], str] = {}
    for name, module in walk_modules(model):
        prefix = f"{name}." if name else ""
        row, own = layer_type(module), _find_weight(module)
        if getattr(module, "proj_size", 0) and f"{prefix}{PROJECTION}" in names:
            found.setdefault((names[f"{prefix}{PROJECTION}"], 1), name)
            found.setdefault((names[f"{prefix}{PROJECTION}"], 0), name)
        elif row.hidden is not None and f"{prefix}{row.hidden}" in names:  # else it is computed (weight_norm)
            found.setdefault((names[f"{prefix}{row.hidden}"], 1), name)
        if own is not None and row.outputs is not None and row.family != "embedding":
            found.setdefault((names[f"{prefix}{own[0]}"], row.outputs), name)
    # Last: a group is named after an embedding only where nothing else makes it.
    for name, module in walk_modules(model):
        row = layer_type(module)
        if row.family == "embedding" and row.outputs is not None and _find_weight(module) is not None:
            found.setdefault((names[f"{name}.weight" if name else "weight"], row.outputs), name)
    known = {tensor for tensor, _ in found}
    bare = {name for name, _ in model.named_parameters() if name not in known and _is_bare(model, name)}
    for tensor, dim in sorted(labels.produced - labels.consumed):
        if tensor in bare:
            found.setdefault((tensor, dim), tensor)
    return found


def _is_bare(model: nn.Module, name: str) -> bool:
    """Whether a user's module holds the parameter, rather than a layer of torch."""
    return not type(model.get_submodule(name.rpartition(".")[0])).__module__.startswith("torch.")
