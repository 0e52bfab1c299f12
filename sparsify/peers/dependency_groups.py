"""What the dependency graph of torch-pruning couples with the channels of some layers."""

from typing import Any

from torch import nn

from sparsify.errors import describe_error
from sparsify.forward.call_model import call_model, float_tensors
from sparsify.peers.requests import GroupsRequest
from sparsify.peers.torch_pruning_import import torch_pruning


def list_groups(request: GroupsRequest) -> dict[str, Any]:
    """Root -> [[module, is_out, {channel: channel of the root}], ...]; what was raised, as a text; None where
    its graph does not have the root.

    A parameter that no layer of its own holds stands under its own name.
    """
    graph = build_graph(request.model, request.inputs)
    names = graph._module2name
    found: dict[str, Any] = {}
    for root in request.roots:
        module = request.model.get_submodule(root)
        if module not in graph.module2node:
            found[root] = None
            continue
        try:
            group = _find_group(graph, module)
        except MemoryError:
            raise
        except Exception as error:
            found[root] = describe_error(error)
            continue
        rows: list[list[Any]] = []
        for item in group:
            node = item.dep.target
            name = names.get(node.module) or graph._param_to_name.get(node.module)
            if name is not None:
                is_out = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
                rows.append([name, is_out, dict(zip(item.idxs, item.root_idxs, strict=True))])
        found[root] = rows
    return {"groups": found}


def build_graph(model: nn.Module, inputs: Any) -> Any:
    """Its graph of a model. Every output that holds numbers counts, however it is returned."""
    model.requires_grad_(True)  # it does not see what lies before the first weight with a gradient
    return (
        torch_pruning()
        .DependencyGraph()
        .build_dependency(model, example_inputs=inputs, forward_fn=call_on_inputs, verbose=False)
    )


def call_on_inputs(model: nn.Module, inputs: Any) -> list[Any]:
    """The outputs of a model, as its graph takes them."""
    return list(float_tensors(call_model(model, inputs)))


def _find_group(graph: Any, root: nn.Module) -> Any:
    pruner = graph.get_pruner_of_module(root)
    channels = list(range(pruner.get_out_channels(root)))
    return graph.get_pruning_group(root, pruner.prune_out_channels, channels)
