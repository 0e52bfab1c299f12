"""Example inputs as a plan takes them: checked against the model, and drawn like those of an earlier plan."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.cost.measure import detach_inputs
from sparsify.errors import ModelError
from sparsify.formatting.numbers import list_few
from sparsify.forward.calls import (
    Call,
    Inputs,
    add_argument_names,
    batch_axes,
    count_examples,
    flatten_value,
    list_calls,
    map_tensors,
    normalize_inputs,
    tensors_by_path,
)
from sparsify.forward.fresh_inputs import redraw
from sparsify.forward.input_records import draw_from_record
from sparsify.forward.trial_calls import accepts_inputs
from sparsify.pruning.planning.plan import Plan


def check_inputs(inputs: Any, model: nn.Module) -> Inputs:
    """Copies, as a forward call may change them. Refuses what would only fail somewhere inside the model.
    Raises ModelError."""
    if isinstance(inputs, Tensor):
        raise ModelError("inputs is a single tensor; pass a tuple, (x,), as a forward call may take several")
    given = normalize_inputs(inputs)
    if not given:
        raise ModelError("inputs is empty; pass what one forward call takes, a tuple or a mapping of tensors")
    for each in list_calls(given):
        _check_call(each, model)
    return detach_inputs(given)


def _check_call(each: Call, model: nn.Module) -> None:
    if not callable(getattr(model, each.method, None)):
        raise ModelError(
            f"the model has no method '{each.method}' to call; {_suggest_name(each.method, dir(model))}"
        )
    for path, value in flatten_value(each.inputs):
        if not (value is None or isinstance(value, Tensor | bool | int | float | str)):
            raise ModelError(
                f"inputs holds a {type(value).__name__} ('{path}'); an argument can be a "
                "tensor, a number, text, true, false, None, "
                "or a list, tuple, mapping or dataclass of these"
            )
    found = tensors_by_path(each)
    if isinstance(each.batch, Mapping):
        known = {name for path in found for name in (path, path.partition(".")[0])} | set(
            add_argument_names(model, (each,))[0].names
        )
        stranger = next((name for name in each.batch if name not in known), None)
        if stranger is not None:
            hint = _suggest_name(stranger, list(found))
            raise ModelError(f"batch names '{stranger}', which is no tensor of the call; {hint}")
    for path, axis in batch_axes(each).items():
        shape = tuple(found[path].shape)
        if axis is not None and shape[axis] == 0:
            which = "the first input" if path == next(iter(found)) else f"'{path}'"
            dimension = "its first dimension" if axis == 0 else f"its dimension {axis}"
            raise ModelError(
                f"{which} has shape {shape}; {dimension} must be a batch of at least one example"
            )


def note_batches(inputs: Inputs) -> Iterator[str]:
    for each in list_calls(inputs):
        if each.fixed:
            what = "the model" if each.method == "forward" else f"'{each.method}'"
            yield (
                f"{what} takes no other batch than the {count_examples(each)} examples "
                "that it was given, so it is timed, measured and exported with these"
            )


def _suggest_name(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, 1)
    if close:
        return f"did you mean '{close[0]}'?"
    public = tuple(other for other in known if not other.startswith("_"))
    return f"it has {list_few(public, 4)}"


def redraw_planned_inputs(plan: Plan, model: nn.Module) -> Inputs:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return map_tensors(draw_from_record(plan.map.inputs), lambda tensor: tensor.to(device))


def move_inputs(inputs: Inputs, model: nn.Module) -> Inputs:
    """On the model's device and in its precision; an average is often kept elsewhere and in more of it."""
    like = next(model.parameters())

    def fit(value: Tensor) -> Tensor:
        return value.to(like) if value.is_floating_point() else value.to(like.device)

    return map_tensors(inputs, fit)


EXAMPLES = (1, 2, 5)
"""batch sizes at which a cut is proven, where the model takes them"""


def draw_fresh_inputs(plan: Plan, dense: nn.Module, inputs: Inputs) -> tuple[Inputs, ...]:
    """Inputs that nothing was planned or chosen with; as many as were given where the model takes no other
    number."""
    fresh = tuple(redraw(inputs, derive_seed(plan, batch), batch) for batch in EXAMPLES)
    if any(accepts_inputs(dense, one) for one in fresh):
        return fresh
    return (redraw(inputs, derive_seed(plan, 0)),)


def derive_seed(plan: Plan, batch: int) -> int:
    """A seed that nothing was planned or chosen with."""
    return int(plan.digest[:12], 16) + batch
