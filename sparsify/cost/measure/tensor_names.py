"""What the inputs and outputs of an exported model are called: as in the model itself."""

import torch
from torch import Tensor, nn

from sparsify.forward.calls import (
    Inputs,
    add_argument_names,
    argument_name,
    call_without_copies,
    flatten_value,
    tensors_by_path,
)
from sparsify.forward.copies import copy_model
from sparsify.forward.trial_calls import detach_inputs


def name_inputs(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """The names of the tensors that the first call takes.

    These are arguments of the method, 'images.1' for the second of a list; 'input.0' where there is no name.
    """
    first = add_argument_names(model, inputs)[0]
    return tuple(_name_value(argument_name(first, path), "input") for path in tensors_by_path(first))


def name_outputs(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """The names of the tensors that the first call returns.

    These are keys of a mapping and fields of a dataclass; 'output' for a tensor, 'output.0' in a tuple. A
    name that an input has too gets '.output' at its end. Empty where the model does not run.
    """
    first = add_argument_names(model, inputs)[0]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            (made,) = call_without_copies(copy_model(model).eval(), detach_inputs((first,)))
    except Exception:  # that it does not run is said by who needs it
        return ()
    taken = name_inputs(model, inputs)
    paths = [path for path, value in flatten_value(made) if isinstance(value, Tensor)]
    names = [_name_value(path, "output") for path in paths]
    return tuple(f"{name}.output" if name in taken else name for name in names)


def _name_value(path: str, kind: str) -> str:
    if not path:
        return kind
    return f"{kind}.{path}" if path[0].isdigit() else path
