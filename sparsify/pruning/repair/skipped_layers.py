"""Layers that a repair leaves alone, and why."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from sparsify.graph.expert_numbers import find_shortened
from sparsify.pruning.layer_matrix import (
    is_product,
    weight_matrix,
)
from sparsify.pruning.repair.attention import ODD_INPUTS as ATTENTION_INPUTS
from sparsify.pruning.repair.attention import (
    is_attention,
    projection_names,
)
from sparsify.pruning.repair.recurrent import ODD_INPUTS as RECURRENT_INPUTS
from sparsify.pruning.repair.recurrent import (
    is_recurrent,
    weight_names,
)
from sparsify.pruning.repair.sites import Site, has_computed_weight
from sparsify_schemas.cuts import Cuts


def list_skipped(
    model: nn.Module,
    sites: Mapping[str, Site],
    dense_sites: Mapping[str, Site],
    outputs: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    dense: nn.Module,
) -> Iterator[tuple[str, str]]:
    """Layers that cannot be refitted -> why."""
    shared = _find_shared_weights(model)
    for name, site in sites.items():
        layer = model.get_submodule(name)
        if has_computed_weight(layer):
            yield name, COMPUTED
        elif site.calls != 1:
            yield name, f"it runs {site.calls} times in one call"
        elif name in shared or (is_attention(layer) and f"{name}.out_proj" in shared):
            yield name, "its weight is shared with another module"
        elif name not in dense_sites or not _are_alike(layer, dense.get_submodule(name)):
            yield name, "the dense model does not call it as a layer of its own"
        elif not _is_as_logged(name, layer, dense.get_submodule(name), outputs, rows):
            yield name, "its outputs are not those that the log says stayed"


COMPUTED = (
    "its weight is no parameter, or computed from others: weight_norm, spectral_norm, a parametrization or a "
    "mask"
)
OTHER_EXAMPLES = "its mixture lost experts: it is given other examples than in the dense model"


def make_member_test(rounds: Sequence[Cuts]) -> Callable[[str], bool]:
    """Whether a name is of a module inside a list of experts that lost some. What is left there has other
    numbers than in the dense model."""
    shortened = [op for cuts in rounds for op in find_shortened(cuts)]
    lists = tuple(f"{op.module}." for op in shortened)
    return lambda name: name.startswith(lists)


def _are_alike(layer: nn.Module, dense: nn.Module) -> bool:
    """Whether both are convolutions or Linear layers, attentions, or recurrent layers."""
    return any(kind(layer) and kind(dense) for kind in (is_product, is_attention, is_recurrent))


def _is_as_logged(
    name: str,
    layer: nn.Module,
    dense: nn.Module,
    outputs: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
) -> bool:
    """Whether a layer has as many outputs as the log of the cuts says."""
    if is_product(layer):
        stay = outputs.get(name)
        return _count_outputs(layer) == (len(stay) if stay is not None else _count_outputs(dense))
    for tensor in _name_row_tensors(layer):
        stay = rows.get(f"{name}.{tensor}" if name else tensor)
        wanted = len(stay) if stay is not None else len(dense.get_parameter(tensor))
        if len(layer.get_parameter(tensor)) != wanted:
            return False
    return True


def _name_row_tensors(module: nn.Module) -> Sequence[str]:
    """Names of the weights of an attention or a recurrent layer whose rows are its outputs."""
    if is_attention(module):
        return projection_names(module)
    return weight_names(module) if is_recurrent(module) else ()


def list_row_tensors(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        for tensor in _name_row_tensors(module):
            yield f"{name}.{tensor}" if name else tensor


def explain_not_run(module: nn.Module) -> str:
    """Why the dense model told nothing of a layer."""
    if isinstance(module, nn.MultiheadAttention):
        return ATTENTION_INPUTS
    return RECURRENT_INPUTS if isinstance(module, nn.RNNBase) else "the dense model did not run it here"


def _count_outputs(layer: nn.Module) -> int:
    matrix = weight_matrix(layer)
    return matrix.shape[0] * matrix.shape[2]


def list_layers(model: nn.Module) -> frozenset[str]:
    """Layers of the kinds that are refitted, those that cannot be for their shared weights left out."""
    shared = _find_shared_weights(model)

    def is_refitted(module: nn.Module) -> bool:
        return is_product(module) or is_attention(module) or is_recurrent(module)

    found = {name for name, module in model.named_modules() if is_refitted(module)}
    return frozenset(found - shared)


def _find_shared_weights(model: nn.Module) -> frozenset[str]:
    """Modules whose weight is a parameter of another module as well."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return frozenset(name for names in owners.values() if len(names) > 1 for name in names)
