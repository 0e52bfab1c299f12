"""Which outputs of each layer stayed, read from the log of the cuts."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from sparsify.forward.opaque import is_scripted
from sparsify.graph.layer_types import is_transposed_linear
from sparsify.graph.names import canonical_names
from sparsify.graph.surgery.operations import to_indices
from sparsify.pruning.layer_matrix import groups_of, is_product, weight_matrix
from sparsify_schemas.cuts import Cuts, Narrow, Zero


def kept_rows(dense: nn.Module, rounds: Sequence[Cuts], names: Iterable[str]) -> dict[str, Tensor]:
    """Tensor -> numbers of its rows in the dense model that stay, in order; of the tensors named, those that
    lost rows."""
    canonical = canonical_names(dense)
    narrowed = _narrowed(rounds)
    found = {}
    for name in names:
        operations = [one for one in narrowed.get(canonical.get(name, name), []) if not one.dim]
        if operations:
            numbers = torch.arange(len(dense.get_parameter(name)))
            for operation in operations:
                numbers = numbers[to_indices(operation.keep)]
            found[name] = numbers
    return found


def find_kept_outputs(dense: nn.Module, rounds: Sequence[Cuts]) -> dict[str, Tensor]:
    """Layer -> numbers of its dense outputs that stay, in order; layers that kept all of them are left out.

    The operations of the log are replayed on a tensor of the weight's shape that holds, at each element, the
    number of the output that it belongs to.
    """
    canonical = canonical_names(dense)
    narrowed = _narrowed(rounds)
    found = {}
    for name, module in dense.named_modules():
        if is_scripted(module):
            continue
        weight = module._parameters.get("weight")
        tensor = f"{name}.weight" if name else "weight"
        operations = narrowed.get(canonical.get(tensor, tensor), [])
        if weight is not None and operations and weight.dim() > 1:
            found[name] = _follow_narrowing(module, weight, operations)
    return found


def find_kept_features(dense: nn.Module, rounds: Sequence[Cuts]) -> dict[str, Tensor]:
    """Module -> numbers of its dense outputs that stay, in order, also of modules between layers; those that
    kept all of them, or of which nothing is known, are left out.

    Layers by `find_kept_outputs`; normalisations by their weights or statistics; embeddings by the columns,
    attention by the rows of its last projection; activations, dropout and pooling in an nn.Sequential by what
    is before them, and an nn.Sequential by its last module.
    """
    canonical, narrowed = canonical_names(dense), _narrowed(rounds)
    found = find_kept_outputs(dense, rounds)
    for name, module in dense.named_modules():
        held = _find_unit_tensor(module)
        if held is None:
            continue
        inner, dim = held
        tensor = f"{name}.{inner}" if name else inner
        operations = [one for one in narrowed.get(canonical.get(tensor, tensor), []) if one.dim == dim]
        found.pop(name, None)
        if operations:
            numbers = torch.arange(_read_tensor(module, inner).shape[dim])
            for operation in operations:
                numbers = numbers[to_indices(operation.keep)]
            found[name] = numbers
    for name, module in reversed(list(dense.named_modules())):
        if isinstance(module, nn.Sequential):
            _follow_sequence(name, module, found)
    return found


def _find_unit_tensor(module: nn.Module) -> tuple[str, int] | None:
    """(tensor, dimension) that has an entry for each output of a module whose weight is no matrix of outputs
    and inputs; None of others."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "weight", 1
    if isinstance(module, nn.MultiheadAttention):
        return "out_proj.weight", 0
    for name in ("weight", "running_mean"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor) and tensor.dim() == 1:
            return name, 0
    return None


def _read_tensor(module: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), name)
    return tensor


def _follow_sequence(name: str, sequence: nn.Sequential, found: dict[str, Tensor]) -> None:
    """Add the modules of a sequence that pass on the outputs of what is before them, and the sequence."""
    before: Tensor | None = None
    for key, child in sequence.named_children():
        inner = f"{name}.{key}" if name else key
        passes_on = _passes_outputs_on(child) and inner not in found
        if passes_on and before is not None:
            found[inner] = before
        before = before if passes_on else found.get(inner)
    if before is not None:
        found[name] = before


def _passes_outputs_on(module: nn.Module) -> bool:
    """Whether a module has an output for each input, and no weights that were cut with them."""
    if isinstance(module, nn.PReLU):
        return True
    has_weights = any(True for _ in module.parameters())
    kind = type(module).__module__.removeprefix("torch.nn.modules.")
    return not has_weights and (
        kind in ("activation", "dropout", "pooling") or isinstance(module, nn.Identity)
    )


def find_zeroed_tensors(rounds: Sequence[Cuts]) -> frozenset[str]:
    """Tensors of which single weights were set to zero."""
    operations = chain.from_iterable(cuts.operations for cuts in rounds)
    return frozenset(one.tensor for one in operations if isinstance(one, Zero) and one.count)


def kept_columns(dense: nn.Module, rounds: Sequence[Cuts]) -> dict[str, Tensor]:
    """Layer -> columns of its dense weight as a matrix that stay, in order, as `layer_matrix.weight_matrix`
    numbers them; of layers without groups that lost some."""
    canonical = canonical_names(dense)
    narrowed = _narrowed(rounds)
    found = {}
    for name, module in dense.named_modules():
        if not is_product(module) or groups_of(module) != 1:
            continue
        weight, tensor = module.get_parameter("weight"), f"{name}.weight" if name else "weight"
        turned = is_transposed_linear(module) or isinstance(module, nn.modules.conv._ConvTransposeNd)
        dim = 0 if turned else 1
        operations = [one for one in narrowed.get(canonical.get(tensor, tensor), []) if one.dim == dim]
        if operations:
            numbers = torch.arange(weight.shape[dim])
            for operation in operations:
                numbers = numbers[to_indices(operation.keep)]
            taps = weight_matrix(module).shape[1] // weight.shape[dim]
            found[name] = (numbers[:, None] * taps + torch.arange(taps)).flatten()
    return found


def _narrowed(rounds: Sequence[Cuts]) -> dict[str, list[Narrow]]:
    """Tensor -> what was taken from it, in order."""
    narrowed: dict[str, list[Narrow]] = {}
    for operation in chain.from_iterable(cuts.operations for cuts in rounds):
        if isinstance(operation, Narrow):
            narrowed.setdefault(operation.tensor, []).append(operation)
    return narrowed


def _follow_narrowing(module: nn.Module, weight: Tensor, operations: Sequence[Narrow]) -> Tensor:
    numbers = _number_outputs(module, weight)
    for operation in operations:
        numbers = numbers.index_select(operation.dim, to_indices(operation.keep))
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        numbers = numbers.reshape(numbers.shape[0], numbers.shape[1], -1)[:, :, 0]
        unique: Tensor = torch.unique(numbers)
        return unique
    return numbers.reshape(numbers.shape[0], -1)[:, 0] if not is_transposed_linear(module) else numbers[0]


def _number_outputs(module: nn.Module, weight: Tensor) -> Tensor:
    """At each element of a weight, the number of the output that it belongs to."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        inputs, outputs = weight.shape[0], weight.shape[1]
        group = torch.arange(inputs) // (inputs // module.groups)
        numbers = group[:, None] * outputs + torch.arange(outputs)
        return numbers.reshape(inputs, outputs, *[1] * (weight.dim() - 2)).expand(weight.shape)
    if is_transposed_linear(module):
        return torch.arange(weight.shape[1]).expand(weight.shape)
    return torch.arange(weight.shape[0]).reshape(-1, *[1] * (weight.dim() - 1)).expand(weight.shape)
