"""Refit the weights inside torch's recurrent layers, one layer and direction after the other.

With x the inputs and h the hidden states of the step before, the sums that go into the gates are

    a = W_ih x + b_ih + W_hh h + b_hh

(of a GRU's new gate, W_ih x + b_ih and W_hh h + b_hh go in apart). Each is refitted towards that of the
dense model, from the inputs x of the cut model and the hidden states h of the dense model's units that
stayed: those are what the repaired layer is to compute. A layer keeps its old weights where its outputs, run
with the new ones on examples held out, come no nearer to the dense ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from sparsify.pruning.layer_matrix import find_forward
from sparsify.pruning.repair.choose_fit import (
    NO_INTERCEPT,
    Settings,
    fit_rows,
    is_unchanged,
    repair_row,
    split_rows,
    spread_of,
)
from sparsify.pruning.repair.positions import Positions, draw_positions, keep_columns, rows_at
from sparsify.pruning.repair.regression import Fit, mean_of_all
from sparsify_schemas.report import LayerRepair

ODD_INPUTS = "its inputs are no batches of sequences of one length"
_CLASSES: Mapping[str, Any] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN_TANH": nn.RNN,
    "RNN_RELU": nn.RNN,
}
_FORWARDS = tuple({kind.forward for kind in _CLASSES.values()})


@dataclass(frozen=True)
class DirectionOutputs:
    """What one layer and direction of the dense model computes at sampled steps; units that stayed, examples
    first."""

    places: Positions
    """the steps, in the order in which the direction takes them"""
    inputs_part: Tensor
    """W_ih x + b_ih, [rows, gates * units]"""
    hidden_part: Tensor
    """W_hh h + b_hh, [rows, gates * units]"""
    hidden_before: Tensor
    """h, [rows, units]"""
    outputs: Tensor
    """[rows, units]"""


@dataclass(frozen=True)
class RecurrentOutputs:
    """What a recurrent layer of the dense model computes."""

    name: str
    directions: Mapping[str, DirectionOutputs]
    """by the end of the names of the weights: l0, l0_reverse, ..."""


def is_recurrent(module: nn.Module) -> TypeGuard[nn.RNNBase]:
    """Whether a module is one of torch's recurrent layers, with weights of its own.

    Those that project their outputs (`proj_size`) are not.
    """
    return _recurs(module) and _has_own_weights(module)


def is_recurrent_of_computed(module: nn.Module) -> bool:
    """Whether it is one but for its weights, which are computed, such as under weight_norm."""
    return _recurs(module) and not _has_own_weights(module)


def _recurs(module: nn.Module) -> TypeGuard[nn.RNNBase]:
    is_known = isinstance(module, nn.RNNBase) and find_forward(module) in _FORWARDS
    return is_known and not module.proj_size


def _has_own_weights(module: nn.RNNBase) -> bool:
    return all(isinstance(module._parameters.get(name), nn.Parameter) for name in weight_names(module))


def weight_names(module: nn.RNNBase) -> list[str]:
    """Names of the weights whose rows are gates, of all layers and directions."""
    return [f"weight_{part}_{end}" for end in _ends(module) for part in ("ih", "hh")]


def sample_recurrent(
    name: str,
    module: nn.RNNBase,
    stay: Mapping[str, Tensor],
    call: tuple[Any, Mapping[str, Any]],
    count: int,
    generator: torch.Generator,
) -> RecurrentOutputs | None:
    """Run the layers of the dense model one by one; None where they are called in another way.

    Args:
        stay: tensor -> numbers of its rows that the cuts kept; left out where all stay.
        count: steps of each example that are sampled.
    """
    inputs = _inputs(module, call)
    if inputs is None:
        return None
    x, states = inputs
    found = {}
    for layer in range(module.num_layers):
        outputs = []
        for end in _ends_of(module, layer):
            single = _single(module, end)
            steps = x.flip(1) if _is_reversed(end) else x
            before, made = _run(single, steps, _state(module, states, end))
            places = draw_positions(steps, count, generator)
            rows = stay.get(f"weight_ih_{end}")
            units = None if rows is None else rows[: len(rows) // _gates(module)]
            found[end] = DirectionOutputs(
                places,
                keep_columns(_product(single, "ih", rows_at(steps, places)), rows),
                keep_columns(_product(single, "hh", rows_at(before, places)), rows),
                keep_columns(rows_at(before, places), units),
                keep_columns(rows_at(made, places), units),
            )
            outputs.append(made.flip(1) if _is_reversed(end) else made)
        x = torch.cat(outputs, dim=2)
    return RecurrentOutputs(name, found)


def refit_recurrent(
    module: nn.RNNBase,
    call: tuple[Any, Mapping[str, Any]],
    dense: RecurrentOutputs,
    examples: int,
    settings: Settings,
) -> list[LayerRepair]:
    """Refit a recurrent layer of the cut model, given the arguments that it is about to be called with."""
    inputs = _inputs(module, call)
    if inputs is None:
        return [repair_row(dense.name, "skipped", reason=ODD_INPUTS)]
    x, states = inputs
    found = []
    for layer in range(module.num_layers):
        outputs = []
        for end in _ends_of(module, layer):
            steps = x.flip(1) if _is_reversed(end) else x
            state = _state(module, states, end)
            name = f"{dense.name}.{end}"
            single, target = _single(module, end), dense.directions[end]
            found.append(_refit_direction(name, single, steps, state, target, examples, settings))
            made = _run(single, steps, state)[1]
            outputs.append(made.flip(1) if _is_reversed(end) else made)
        x = torch.cat(outputs, dim=2)
    return found


def _refit_direction(
    name: str,
    single: nn.RNNBase,
    steps: Tensor,
    state: Any,
    dense: DirectionOutputs,
    examples: int,
    settings: Settings,
) -> LayerRepair:
    """Refit one layer and direction, whose parameters `single` shares."""
    rows = rows_at(steps, dense.places).float()
    same = len(rows) == len(dense.outputs) and single.hidden_size == dense.outputs.shape[1]
    if not same:
        reason = "it runs at other places than in the dense model"
        return repair_row(name, "skipped", reason=reason)
    fitted, judged = split_rows(len(rows), examples, settings)

    def error() -> float:
        made = rows_at(_run(single, steps, state)[1], dense.places).float()
        wanted = dense.outputs.float()
        distance = mean_of_all((made[judged] - wanted[judged]).square(), settings.processes)
        return distance / spread_of(wanted[judged], settings.processes)

    before = error()
    if is_unchanged(before, single.get_parameter("weight_ih_l0").dtype):
        return repair_row(name, "unchanged", before, before)
    if settings.method == "mean" and not single.bias:
        return repair_row(name, "skipped", before, before, NO_INTERCEPT)
    saved = [parameter.detach().clone() for parameter in single.parameters()]
    hidden = dense.hidden_before.float()
    for gates, parts in _fits(single):
        inputs = torch.cat([{"ih": rows, "hh": hidden}[part] for part in parts], dim=1)
        sums = {"ih": dense.inputs_part, "hh": dense.hidden_part}
        targets = sum(sums[part][:, gates].float() for part in parts)
        assert isinstance(targets, Tensor)
        _refit_gates(single, gates, parts, inputs[fitted], targets[fitted], settings)
    after = error()
    if not after < before:
        with torch.no_grad():
            for parameter, value in zip(single.parameters(), saved, strict=True):
                parameter.copy_(value)
        return repair_row(name, "reverted", before, after)
    return repair_row(name, "refitted", before, after)


def _fits(single: nn.RNNBase) -> Iterator[tuple[slice, tuple[str, ...]]]:
    """Rows of the weights, and the products that go into these gates as one sum."""
    if not isinstance(single, nn.GRU):
        yield slice(None), ("ih", "hh")
        return
    new = 2 * single.hidden_size  # the reset and the update gate lie before the new gate
    yield slice(new), ("ih", "hh")
    yield slice(new, None), ("ih",)
    yield slice(new, None), ("hh",)


def _refit_gates(
    single: nn.RNNBase,
    gates: slice,
    parts: tuple[str, ...],
    inputs: Tensor,
    targets: Tensor,
    settings: Settings,
) -> None:
    """Refit some rows of the weights in place; the intercept goes into the first bias."""
    weights = [single.get_parameter(f"weight_{part}_l0").detach()[gates] for part in parts]
    biases = [single.get_parameter(f"bias_{part}_l0").detach()[gates] for part in parts if single.bias]
    weight = torch.cat(weights, dim=1)
    intercept = torch.zeros(1, len(weight), dtype=torch.float64, device=weight.device)
    for bias in biases:
        intercept += bias.double()
    start = Fit(weight.T[None].double(), intercept)
    fit = fit_rows(inputs[:, None], targets[:, None], start, settings, shiftable=bool(biases))
    found = torch.split(fit.weight[0].T, [own.shape[1] for own in weights], dim=1)
    with torch.no_grad():
        for own, value in zip(weights, found, strict=True):
            own.copy_(value.to(own.dtype))
        if biases:
            shift = (fit.intercept - intercept)[0]
            biases[0].copy_((biases[0].double() + shift).to(biases[0].dtype))


def _inputs(module: nn.RNNBase, call: tuple[Any, Mapping[str, Any]]) -> tuple[Tensor, Any] | None:
    """Inputs, batch first, and the states given; None where they are no batches of sequences."""
    args, kwargs = call
    given = dict(zip(("input", "hx"), args, strict=False)) | dict(kwargs)
    x = given.get("input")
    if not isinstance(x, Tensor) or x.dim() != 3:
        return None
    return (x if module.batch_first else x.transpose(0, 1)), given.get("hx")


def _ends_of(module: nn.RNNBase, layer: int) -> list[str]:
    return [f"l{layer}", f"l{layer}_reverse"] if module.bidirectional else [f"l{layer}"]


def _ends(module: nn.RNNBase) -> list[str]:
    return [end for layer in range(module.num_layers) for end in _ends_of(module, layer)]


def _is_reversed(end: str) -> bool:
    return end.endswith("_reverse")


def _gates(module: nn.RNNBase) -> int:
    return int(module.get_parameter("weight_ih_l0").shape[0]) // module.hidden_size


def _single(module: nn.RNNBase, end: str) -> nn.RNNBase:
    """One layer and direction by itself, of the same parameters."""
    kind = _CLASSES[module.mode]
    options = {"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}
    read, kept = (module.get_parameter(f"weight_{part}_{end}").shape[1] for part in ("ih", "hh"))
    single: nn.RNNBase = kind(read, kept, bias=module.bias, batch_first=True, device="meta", **options)
    for parameter in [name for name, _ in single.named_parameters()]:
        setattr(single, parameter, module.get_parameter(parameter.removesuffix("l0") + end))
    return single.eval()


def _state(module: nn.RNNBase, states: Any, end: str) -> Any:
    """The first state of one layer and direction, as `_single` takes it."""
    if states is None:
        return None
    number = _ends(module).index(end)
    if isinstance(states, tuple):
        return tuple(value[number : number + 1] for value in states)
    return states[number : number + 1]


def _run(single: nn.RNNBase, steps: Tensor, state: Any) -> tuple[Tensor, Tensor]:
    """Hidden states before and after each step: [examples, steps, units]."""
    with torch.no_grad():
        made = single(steps, state)[0]
    first = state[0] if isinstance(state, tuple) else state
    if first is None:
        first = made.new_zeros(1, len(made), made.shape[2])
    return torch.cat([first.transpose(0, 1), made[:, :-1]], dim=1), made


def _product(single: nn.RNNBase, part: str, rows: Tensor) -> Tensor:
    bias = single.get_parameter(f"bias_{part}_l0").detach() if single.bias else None
    return nn.functional.linear(rows, single.get_parameter(f"weight_{part}_l0").detach(), bias)
