"""Find the true cause where a dense model computes NaN or infinity, before anything else stumbles over it."""

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.forward.call_model import call_model, float_tensors, named_inputs
from sparsify.forward.calls import Inputs
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import is_nested, is_sparse
from sparsify.forward.scratch import copy_to_call

LARGE = 1e18
"""a weight above it is refused: float32 does not hold the sum of a few squares of it"""


def check_sound(model: nn.Module, inputs: Inputs) -> None:
    """That variances are above zero, weights not beyond all measure, inputs and outputs finite in eval mode.

    Outputs of -inf are let through, as masked logits are. A model that cannot be called so is left to others.
    Raises ModelError with the first layer that computes such numbers.
    """
    if any(value.is_meta for value in (*model.parameters(), *model.buffers())):
        return
    _check_variances(model)
    _check_sizes(model)
    for path, value in named_inputs(inputs):
        if value.is_floating_point() and not bool(value.isfinite().all()):
            hint = hint_at_mask(value) or "; are they too large once they are normalised?"
            raise ModelError(f"the example inputs are not finite ('{path}'){hint}")
    outputs, spoilt = _run_watched(model, inputs)
    if any(map(_is_unsound, outputs)):
        raise ModelError(f"the outputs of the dense model are not finite: {_describe_cause(spoilt)}")


def hint_at_mask(value: Tensor) -> str:
    """What to do about an input of which -inf alone is not finite; '' for others."""
    if bool((value.isfinite() | (value == -torch.inf)).all()):
        return "; write -inf of a mask as booleans, or as a large negative number such as -1e9"
    return ""


def _check_variances(model: nn.Module) -> None:
    for name, module in model.named_modules():
        variance = getattr(module, "running_var", None)
        if not isinstance(variance, Tensor) or is_sparse(variance) or is_nested(variance):
            continue
        bad = int((variance + float(getattr(module, "eps", 0.0)) <= 0).sum())
        if bad:
            raise ModelError(
                f"'{name}.running_var' is not above zero in {bad} of {variance.numel()} channels, and the "
                "layer divides by its root; the weights are damaged, or the training that made them failed"
            )


def _is_unsound(value: Tensor) -> bool:
    if value.is_complex() or is_sparse(value) or is_nested(value):
        return False
    real = value.float()
    return bool((real.isnan() | real.isposinf()).any())


def _run_watched(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], str | None]:
    """The outputs, and the first layer whose own outputs are not finite."""
    spoilt: list[str] = []

    def watch(name: str) -> object:
        def look(_module: nn.Module, _given: object, output: object) -> None:
            if not spoilt and any(map(_is_unsound, float_tensors(output))):
                spoilt.append(name)

        return look

    try:
        copy = copy_to_call(model).eval()
        for name, module in copy.named_modules():
            if not list(module.children()):
                module.register_forward_hook(watch(name))
        with torch.no_grad(), torch.random.fork_rng(devices=[]), without_fused_attention():
            found = list(float_tensors(call_model(copy, inputs)))
    except Exception:  # that it does not run is said where that matters
        return [], None
    return found, spoilt[0] if spoilt else None


def _describe_cause(spoilt: str | None) -> str:
    where = f"'{spoilt}' is the first layer to compute NaN or infinity" if spoilt else "no layer alone is"
    return f"{where}; the training that made the weights may have failed, or the inputs are not its own"


def _check_sizes(model: nn.Module) -> None:
    for name, value in model.named_parameters():
        is_plain = value.is_floating_point() and not (is_sparse(value) or is_nested(value))
        if not is_plain or not value.numel() or value.dtype == torch.float64:
            continue
        least, most = torch.aminmax(value.detach())
        largest = max(abs(float(least)), abs(float(most)))
        if largest > LARGE:
            raise ModelError(
                f"'{name}' holds weights as large as {largest:.1e}, whose squares float32 cannot hold; the "
                "weights are damaged, or the training that made them failed"
            )
