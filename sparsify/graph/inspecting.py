"""Reading a model's structure: model + example inputs -> ModelMap. The only importer of torch_pruning."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from sparsify.errors import ModelError
from sparsify.graph.call import Inputs, call, check_model, named, tensors
from sparsify.graph.slices import Unsupported, side
from sparsify.plan import Coupled, Layer, ModelMap, Slice, Span, Tensor

ROOTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def inspect(model: nn.Module, inputs: Inputs, macs: Mapping[str, int]) -> ModelMap:
    """What is coupled to what, traced from one forward call; the model is left as it was.

    inputs: a tuple, or a mapping for keyword inputs; macs: multiply-accumulates by module name.
    Raises ModelError when the model cannot be traced.
    """
    check_model(model)
    names = canonical_names(model)
    return ModelMap(
        layers=layers(model, macs),
        tensors=tuple(_tensors(model)),
        coupled=tuple(_coupled(model, inputs, names)),
        macs=sum(macs.values()),
        inputs=tuple((name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in named(inputs)),
    )


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of the same tensor (tied weights have several)."""
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    for name, parameter in model.named_parameters():
        yield Tensor(name, tuple(parameter.shape), parameter.element_size(), True)
    for name, buffer in model.named_buffers():
        yield Tensor(name, tuple(buffer.shape), buffer.element_size(), False)


def layers(model: nn.Module, macs: Mapping[str, int]) -> tuple[Layer, ...]:
    """Every module with parameters of its own, in order; macs: multiply-accumulates by module name."""
    return tuple(_layers(model, macs))


def _layers(model: nn.Module, macs: Mapping[str, int]) -> Iterable[Layer]:
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        weight = tuple(own["weight"].shape) if "weight" in own else ()
        yield Layer(name, type(module).__name__, weight, macs.get(name, 0), *_widths(module))


def _widths(module: nn.Module) -> tuple[int, int]:
    match module:
        case nn.Linear():
            return module.in_features, module.out_features
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() | nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return module.in_channels, module.out_channels
        case nn.Embedding():
            return module.num_embeddings, module.embedding_dim
        case nn.modules.batchnorm._BatchNorm():
            return module.num_features, module.num_features
        case _:
            return 0, 0


def _coupled(model: nn.Module, inputs: Inputs, names: Mapping[str, str]) -> Iterable[Coupled]:
    """One Coupled per set of channels that can only leave together, in the order of the model's layers."""
    copy = deepcopy(model).eval().requires_grad_(True)
    graph = _trace(copy, inputs)
    of_module = {module: name for name, module in copy.named_modules()}
    of_parameter = {id(p): name for name, p in copy.named_parameters()}
    covered: dict[nn.Module, set[int]] = defaultdict(set)
    for name, module in copy.named_modules():
        if not isinstance(module, ROOTS):
            continue
        if module not in graph.module2node:
            yield Coupled(name, _widths(module)[1], (), protected="takes no part in a forward call with these inputs")
            continue
        pruner = graph.get_pruner_of_module(module)
        channels = [c for c in range(pruner.get_out_channels(module)) if c not in covered[module]]
        if not channels:
            continue
        group = graph.get_pruning_group(module, pruner.prune_out_channels, channels)
        for dep, index in group:
            if graph.is_out_channel_pruning_fn(dep.handler):
                covered[dep.target.module] |= set(index)
        yield _one_group(name, channels, graph, group, of_module, of_parameter, names)


def _trace(model: nn.Module, inputs: Inputs) -> Any:
    import torch_pruning

    def outputs(out: Any) -> list[torch.Tensor]:
        # A product gives every output a node of its own, so that the engine sees an output even where the last
        # layer's result is returned as it is.
        found = [t * 1.0 for t in tensors(out) if t.grad_fn is not None]
        if not found:
            raise ModelError("no output of the model depends on its parameters; does forward run under no_grad or detach its result?")
        return found

    graph = torch_pruning.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph.build_dependency(
                model,
                example_inputs=inputs,
                forward_fn=call,
                output_transform=outputs,
                unwrapped_parameters=[],
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the model could not be traced with the inputs of the recipe: {type(error).__name__}: {error}") from error
    return graph


def _one_group(
    name: str, channels: Sequence[int], graph: Any, group: Any, of_module: Mapping[nn.Module, str], of_parameter: Mapping[int, str], names: Mapping[str, str]
) -> Coupled:
    owners: dict[tuple[str, int, str], dict[int, int]] = defaultdict(dict)
    merge = _Classes(channels)
    statistics, protected = False, None
    for item in group:
        dep, index, roots = item.dep, item.idxs, item.root_idxs
        target, module = dep.target, dep.target.module
        if target.type.name == "OUTPUT":
            protected = protected or "it feeds the network's output"
        elif isinstance(module, nn.Parameter):
            tensor = names[of_parameter[id(module)]]
            owners[tensor, target.pruning_dim % module.dim(), "out"].update(zip(index, roots, strict=True))
        elif isinstance(module, nn.Module) and module in of_module:
            out = graph.is_out_channel_pruning_fn(dep.handler)
            try:
                found = side(module, out)
            except Unsupported as error:
                protected = protected or f"it reaches '{of_module[module]}', a {error}"
                continue
            if None in roots or max(index) >= found.channels:
                protected = protected or f"its channels could not be followed to '{of_module[module]}'"
                continue
            if found.tied > 1 and len(index) != found.channels:
                protected = protected or f"'{of_module[module]}' ties its channels to those of other layers"
                continue
            statistics |= found.statistics
            of_root = dict(zip(index, roots, strict=True))
            if found.tied > 1:
                merge.tie(of_root, found.channels // found.tied)
            for attribute, dim in found.tensors:
                owner = owners[names[f"{of_module[module]}.{attribute}"], dim, found.role]
                for channel, root in of_root.items():
                    merge.join(owner.setdefault(found.index(channel), root), root)
    units = merge.numbered()
    slices = tuple(Slice(t, d, r, _spans(owner, units)) for (t, d, r), owner in owners.items())
    count = max(units.values()) + 1
    if protected is None and not any(s.role == "in" for s in slices):
        protected = "nothing that could be narrowed consumes it"
    if protected is None and count == 1:
        protected = "its channels can only leave all together"
    return Coupled(name, count, slices, statistics, protected)


class _Classes:
    """Union-find over root channels: which must leave together."""

    def __init__(self, channels: Sequence[int]) -> None:
        self.parent = {c: c for c in channels}

    def find(self, a: int) -> int:
        while self.parent[a] != a:
            self.parent[a] = self.parent[self.parent[a]]
            a = self.parent[a]
        return a

    def join(self, a: int, b: int) -> None:
        if a == b:
            return
        low, high = sorted((self.find(a), self.find(b)))
        self.parent[high] = low

    def tie(self, channels: Mapping[int, int], block: int) -> None:
        """Join the channels that stand at the same position of their block of so many channels."""
        for channel, root in channels.items():
            self.join(channels[channel % block], root)

    def numbered(self) -> dict[int, int]:
        """Root channel -> unit, numbered in the order of first appearance."""
        numbers: dict[int, int] = {}
        return {c: numbers.setdefault(self.find(c), len(numbers)) for c in self.parent}


def _spans(owner: Mapping[int, int], units: Mapping[int, int]) -> tuple[Span, ...]:
    """Compress index -> unit into spans: runs of one unit, then runs of such runs."""
    runs: list[tuple[int, int, int]] = []  # first index, unit, length
    for index in sorted(owner):
        unit = units[owner[index]]
        if runs and runs[-1][0] + runs[-1][2] == index and runs[-1][1] == unit:
            runs[-1] = (runs[-1][0], unit, runs[-1][2] + 1)
        else:
            runs.append((index, unit, 1))
    spans: list[Span] = []
    for first, unit, length in runs:
        last = spans[-1] if spans else None
        if last and last.repeat == length and last.unit + last.units == unit and last.start + last.units * length == first:
            spans[-1] = Span(last.start, last.unit, last.units + 1, length)
        else:
            spans.append(Span(first, unit, 1, length))
    return tuple(spans)
