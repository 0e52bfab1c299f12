"""Check a cut that somebody else made: the dense model with zeros where elements left, against the cut model.

It knows the log alone, and nothing of what is coupled to what. In float64, on inputs that the choice did not
see.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from sparsify.errors import describe_error
from sparsify.forward.call_model import call_model, convert_inputs, float_tensors
from sparsify.forward.calls import Inputs
from sparsify.graph.names import all_names
from sparsify.graph.verify.equivalence import TOLERANCE, TRIAL_TOLERANCE, copy_in_double
from sparsify.graph.verify.failed_allocations import raise_out_of_memory
from sparsify.graph.verify.masked_statistics import run_without_removed
from sparsify.graph.verify.run_models import relative_difference, run_model
from sparsify.peers.limited_process import PeerError
from sparsify_schemas.cuts import Cuts, Narrow
from sparsify_schemas.report import Verdict


@dataclass(frozen=True)
class _Pair:
    """Both models as they are compared."""

    dense: nn.Module
    cut: nn.Module
    tolerance: float
    inputs: Sequence[Inputs]


def check_cut(dense: nn.Module, cut: nn.Module, log: Cuts, inputs: Sequence[Inputs]) -> Verdict:
    """Compare a cut model with the dense one in which every element that left is zero.

    `equal`: to TOLERANCE of the largest output. `statistics change`: the same once normalisations, means and
    softmaxes leave the removed units out. `wrong`: neither, or outputs of other shapes.

    Args:
        dense: The model before.
        cut: The model after, which `replay_cuts` makes of `dense` and `log`.
        log: Its `narrow` operations say what left.
        inputs: One or several batches.

    Raises:
        PeerError: The cut model does not run, in eval mode or, with a backward pass, in train mode.
    """
    gone = _list_removed(log)
    pair = _choose_precision(dense, cut, inputs)
    masked = deepcopy(pair.dense)
    _zero_removed(masked, gone)
    difference, control, without = 0.0, 0.0, 0.0
    for given in pair.inputs:
        wanted, zeroed = run_model(pair.dense, given), run_model(masked, given)
        found = _run_cut(pair.cut, given)
        if _list_shapes(found) != _list_shapes(wanted):
            return _make_verdict("wrong", 0.0, 0.0, "outputs of other shapes")
        difference = max(difference, relative_difference(found, zeroed))
        control = max(control, relative_difference(wanted, zeroed))
        if difference > pair.tolerance:
            rest = run_without_removed(masked, given, gone)
            without = max(without, relative_difference(found, rest))
    _check_training(dense, cut, inputs[0])
    if not gone:
        return _make_verdict("nothing cut", difference, control)
    if difference <= pair.tolerance:
        return _make_verdict("equal", difference, control)
    outcome = "statistics change" if without <= pair.tolerance else "wrong"
    return _make_verdict(outcome, without, control)


def _list_shapes(outputs: Sequence[torch.Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in outputs]


def _make_verdict(outcome: str, difference: float, control: float, note: str = "") -> Verdict:
    body = {"outcome": outcome, "difference": difference, "control": control, "note": note}
    return Verdict.model_validate(body)


def _list_removed(log: Cuts) -> dict[tuple[str, int], list[int]]:
    """(tensor, dimension) -> the indices that left."""
    found = {}
    for op in log.operations:
        if isinstance(op, Narrow):
            left = torch.ones(op.size, dtype=torch.bool)
            for start, end in op.keep:
                left[start:end] = False
            found[op.tensor, op.dim] = left.nonzero().flatten().tolist()
    return found


@torch.no_grad()
def _zero_removed(model: nn.Module, gone: Mapping[tuple[str, int], Sequence[int]]) -> None:
    tensors = all_names(model)
    for (name, dim), indices in gone.items():
        # the variance of a channel that is gone divides nothing: zero over it, and one below
        rest = 1.0 if name.rpartition(".")[2] == "running_var" else 0.0
        tensors[name].index_fill_(dim, torch.tensor(indices), rest)


def _choose_precision(dense: nn.Module, cut: nn.Module, inputs: Sequence[Inputs]) -> _Pair:
    """float64, else the model's own precision where it does not run in it."""
    double = [convert_inputs(given, torch.float64) for given in inputs]
    wide = copy_in_double(dense)
    try:
        for given in double:
            run_model(wide, given)
    except Exception as error:
        raise_out_of_memory(error)
        return _Pair(deepcopy(dense).eval(), deepcopy(cut).eval(), TRIAL_TOLERANCE, inputs)
    return _Pair(wide, copy_in_double(cut), TOLERANCE, double)


def _run_cut(cut: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    try:
        return run_model(cut, inputs)
    except Exception as error:
        raise_out_of_memory(error)
        raise PeerError(f"raised: its cut model does not run: {describe_error(error)}") from error


def _check_training(dense: nn.Module, cut: nn.Module, inputs: Inputs) -> None:
    """Run both in train mode with a backward pass, where the dense model can be."""
    try:
        _train_once(cut, inputs)
    except Exception as error:
        raise_out_of_memory(error)
        try:
            _train_once(dense, inputs)
        except Exception:
            return
        raise PeerError(f"raised: its cut model does not train: {describe_error(error)}") from error


def _train_once(model: nn.Module, inputs: Inputs) -> None:
    copy = deepcopy(model).train()
    with torch.random.fork_rng(devices=[]):
        outputs = [t for t in float_tensors(call_model(copy, inputs)) if t.requires_grad]
        if outputs:
            torch.stack([t.sum() for t in outputs]).sum().backward()  # type: ignore[no-untyped-call]
