"""Reading a model's structure: model + example inputs -> ModelMap."""

from collections.abc import Iterable, Mapping
from copy import deepcopy

from torch import nn

from sparsify.errors import ModelError
from sparsify.graph.call import Inputs, call, check_model, named, tensors
from sparsify.graph.gathering import STANDS_FOR
from sparsify.graph.grouping import coupled_groups
from sparsify.graph.labels import Ints, Labels
from sparsify.graph.tracing import watch
from sparsify.graph.widths import attributes
from sparsify.plan import Coupled, Layer, ModelMap, Tensor

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def inspect(model: nn.Module, inputs: Inputs, macs: Mapping[str, int]) -> ModelMap:
    """What is coupled to what, traced from one forward call; the model is left as it was.

    inputs: a tuple, or a mapping for keyword inputs; macs: multiply-accumulates by module name.
    Raises ModelError when the model cannot be traced.
    """
    check_model(model)
    return ModelMap(
        layers=tuple(layers(model, macs)),
        tensors=tuple(all_tensors(model)),
        coupled=tuple(_coupled(model, inputs)),
        macs=sum(macs.values()),
        inputs=tuple((name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in named(inputs)),
    )


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of the same tensor (tied weights have several)."""
    first: dict[int, str] = {}
    found = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in found}


def all_tensors(model: nn.Module) -> Iterable[Tensor]:
    """Parameters and buffers, tied ones once."""
    for name, parameter in model.named_parameters():
        yield Tensor(name, tuple(parameter.shape), parameter.element_size(), True)
    saved = set(model.state_dict(keep_vars=True))
    for name, buffer in model.named_buffers():
        yield Tensor(name, tuple(buffer.shape), buffer.element_size() if name in saved else 0, False)


def layers(model: nn.Module, macs: Mapping[str, int]) -> Iterable[Layer]:
    """Modules with parameters of their own, in the order of the model."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        weight = tuple(own["weight"].shape) if "weight" in own else ()
        kind = type(module).__name__
        yield Layer(name, STANDS_FOR.get(kind, kind), weight, macs.get(name, 0), *_widths(module))


def _widths(module: nn.Module) -> tuple[int, int]:
    match module:
        case nn.Linear():
            return module.in_features, module.out_features
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d() | nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return module.in_channels, module.out_channels
        case nn.RNNBase():
            return module.input_size, module.hidden_size
        case nn.Embedding():
            return module.num_embeddings, module.embedding_dim
        case nn.modules.batchnorm._BatchNorm():
            return module.num_features, module.num_features
        case _:
            return 0, 0


def _coupled(model: nn.Module, inputs: Inputs) -> Iterable[Coupled]:
    copy = deepcopy(model).eval()
    try:
        if not list(tensors(call(copy, inputs))):
            raise ModelError("the model returns no floating-point tensor; a cut could not be checked")
        labels = watch(copy, inputs)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the model could not be traced with the inputs of the recipe: {type(error).__name__}: {error}") from error
    return coupled_groups(labels, _producers(copy), list(_written(copy, labels)))


def _written(model: nn.Module, labels: Labels) -> Iterable[tuple[str, Ints]]:
    """Attributes of modules (`num_heads`, a shape) that hold a length which the module wrote into a reshape or split."""
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
            elif isinstance(value, tuple | list) and all(type(v) is int for v in value) and list(value).count(len(own)) == 1:
                yield f"{module}:{attribute}[{list(value).index(len(own))}]", own


def _producers(model: nn.Module) -> dict[tuple[str, int], str]:
    """(weight, dimension of its outputs) -> layer, for every layer whose width a rule can speak of."""
    names = canonical_names(model)
    found: dict[tuple[str, int], str] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.RNNBase) and not module.proj_size:
            found.setdefault((names[f"{prefix}weight_hh_l0"], 1), name)
        weight = names.get(f"{prefix}weight")
        if weight is None:
            continue  # computed from other parameters, by a parametrization for one
        if isinstance(module, (*CONVS, nn.Linear)):
            found.setdefault((weight, 0), name)
        elif isinstance(module, TRANSPOSED) or type(module).__name__ == "Conv1D":  # transformers' Linear, transposed
            found.setdefault((weight, 1), name)
    return found
