"""Refit every layer of a cut model, in the order they run, towards what the dense model computes at the same
place.

The dense and the cut model run the same calibration inputs side by side, one step apart: when the cut model
reaches a layer, the dense model has just passed it. So each layer sees inputs from layers that are repaired
already, and no more is kept than the outputs of one layer.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.call_model import call_model
from sparsify.forward.calls import Inputs, first_tensor
from sparsify.pruning.layer_matrix import (
    Places,
    groups_of,
    input_rows,
    output_rows,
    set_weight,
    weight_matrix,
)
from sparsify.pruning.repair.agreement import take_examples
from sparsify.pruning.repair.attention import (
    AttentionOutputs,
    is_attention,
    refit_attention,
)
from sparsify.pruning.repair.choose_fit import Settings, choose_fit, repair_row
from sparsify.pruning.repair.dense_outputs import DenseRun, LayerOutputs, StoppedEarly
from sparsify.pruning.repair.kept_outputs import find_kept_outputs, find_zeroed_tensors, kept_rows
from sparsify.pruning.repair.recurrent import (
    RecurrentOutputs,
    is_recurrent,
    refit_recurrent,
)
from sparsify.pruning.repair.regression import Fit
from sparsify.pruning.repair.sites import OperatorCounter, Site, find_sites, list_operators
from sparsify.pruning.repair.skipped_layers import (
    OTHER_EXAMPLES,
    explain_not_run,
    list_row_tensors,
    list_skipped,
    make_member_test,
)
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.report import LayerRepair

LEAST_GAIN = 0.01
"""a channel that the norm behind scales by less than this cannot make up for what its sum lost"""


def refit_layers(
    dense: nn.Module,
    model: nn.Module,
    rounds: Sequence[Cuts],
    inputs: Inputs,
    examples: int,
    settings: Settings,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LayerRepair, ...]:
    """Refit the layers of `model` in place.

    Args:
        dense: the model before any cut, in eval mode; it stays as it is.
        model: what the cuts left, in eval mode.
        rounds: the logs of the cuts, in order.
        inputs: one call with all calibration examples, on the device of the models.
        examples: how many there are.
        settings: see `Settings`.
        progress: called with the number of layers done and that of all, before the first and after each.
    """
    first = take_examples(inputs, examples, 0, 2)  # enough to see which layers run
    (dense_sites, _), (sites, _) = find_sites(dense, first), find_sites(model, first)
    outputs, rows = find_kept_outputs(dense, rounds), kept_rows(dense, rounds, list_row_tensors(dense))
    partners = _find_shared_addends(dense_sites, sites) if settings.shortcuts else frozenset()
    settings = replace(settings, zeroed=find_zeroed_tensors(rounds))
    skipped = dict(list_skipped(model, sites, dense_sites, outputs, rows, dense))
    skipped |= dict.fromkeys(filter(make_member_test(rounds), sites), OTHER_EXAMPLES)
    partners -= skipped.keys()
    repairs = [repair_row(name, "skipped", reason=reason) for name, reason in skipped.items()]
    asked = sites if settings.layers is None else settings.layers
    todo = [name for name in sites if name not in skipped and name in asked]
    if not todo:
        return tuple(repairs)
    done: list[str] = []
    watch = OperatorCounter(list_operators(sites, partners))
    run_dense = DenseRun(
        dense, dense_sites, partners, outputs, rows, inputs, examples, settings, frozenset(todo)
    )

    def before_layer(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            with watch.pause():
                message = run_dense.outputs_of(name)
                operator = sites[name].addend
                value = first_tensor(args, kwargs)
                addend = watch.kept.pop(operator, None) if name in partners and operator is not None else None
                match message:
                    case AttentionOutputs() if is_attention(module):
                        rows = refit_attention(module, (args, kwargs), message, addend, examples, settings)
                        repairs.extend(rows)
                    case RecurrentOutputs() if is_recurrent(module):
                        repairs.extend(refit_recurrent(module, (args, kwargs), message, examples, settings))
                    case LayerOutputs() if value is not None:
                        repairs.append(
                            _refit_layer(model, sites[name], value, message, addend, examples, settings)
                        )
                    case _:
                        reason = explain_not_run(module)
                        repairs.append(repair_row(name, "skipped", reason=reason))
                done.append(name)
                if progress is not None:
                    progress(len(done), len(todo))
            # The last layer itself need not run: of a language model, whose scores over the vocabulary are
            # by far its largest tensor, the last layer to refit is often the one before.
            if len(done) == len(todo):
                raise StoppedEarly

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(before_layer(name), with_kwargs=True)
        for name in todo
    ]
    if progress is not None:
        progress(0, len(todo))
    try:
        with run_dense, torch.no_grad(), watch, suppress(StoppedEarly):
            call_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(repairs)


def _refit_layer(
    model: nn.Module,
    site: Site,
    value: Tensor,
    message: LayerOutputs,
    addend: Tensor | None,
    examples: int,
    settings: Settings,
) -> LayerRepair:
    """Refit one layer, and keep the old one where the new one is no better on examples that were held out."""
    layer = model.get_submodule(site.name)
    norm = model.get_submodule(site.norm) if site.norm is not None else None
    if not _is_laid_out(layer, value, message.places):
        return repair_row(site.name, "skipped", reason="its input has another shape than in the dense model")
    rows = input_rows(layer, value, message.places).float()
    targets = message.targets.float()
    if len(rows) != len(targets):
        return repair_row(site.name, "skipped", reason="it runs at other places than in the dense model")
    if not len(rows):
        return repair_row(site.name, "skipped", reason="no example reaches it")
    groups = groups_of(layer)
    wanted, sizes = [targets.reshape(len(targets), groups, -1)], None
    if message.addend is not None and addend is not None and _has_places(layer, addend, message):
        own = output_rows(layer, addend, message.places)
        lost = (message.addend - own).float()
        lost = lost / _find_gain(norm, lost) if site.through_norm else lost
        both = (targets + lost).reshape(len(targets), groups, -1)
        if isinstance(layer, nn.Linear):
            # What comes behind such a sum in a transformer divides each row by its size.
            sizes = (targets + message.addend).float().square().mean(1).sqrt()
            wanted = [both, *wanted]
        else:
            wanted = [both]
    mean = message.mean if norm is not None else None
    outputs = wanted[0].shape[2]
    start = Fit(weight_matrix(layer).double(), _find_intercept(layer, norm, mean, groups, outputs))
    shiftable = layer._parameters.get("bias") is not None or mean is not None
    dtype = layer.get_parameter("weight").dtype
    mask = settings.mask_of(f"{site.name}.weight" if site.name else "weight", start.weight)
    for aim in wanted:
        row, fit = choose_fit(
            site.name,
            rows,
            aim,
            start,
            dtype,
            examples,
            settings,
            shiftable=shiftable,
            mask=mask,
            sizes=sizes,
            weights=message.weights,
        )
        if row.outcome != "reverted":
            break
    if fit is not None:
        set_weight(layer, fit.weight)
        _set_intercept(layer, norm, mean, fit.intercept.flatten())
    return row


def _is_laid_out(layer: nn.Module, value: object, places: Places) -> bool:
    """Whether an input has the dimensions that the layer's places speak of."""
    if not isinstance(value, Tensor) or not places.fit_batch(value):
        return False
    if isinstance(layer, nn.modules.conv._ConvNd):
        return value.dim() == 2 + len(layer.kernel_size) and len(places.shape) == len(layer.kernel_size)
    return value.dim() > 1 and tuple(value.shape[1:-1]) == places.shape


def _has_places(layer: nn.Module, addend: Tensor, message: LayerOutputs) -> bool:
    """Whether the addend of the cut model lies where that of the dense model does."""
    convolution = isinstance(layer, nn.modules.conv._ConvNd)
    places = addend.shape[2:] if convolution else addend.shape[1:-1]
    channels = addend.shape[1] if convolution else addend.shape[-1]
    same = tuple(places) == message.places.shape and channels == message.targets.shape[1]
    rows = message.places.count_rows(len(addend))
    return same and message.places.fit_batch(addend) and rows == len(message.targets)


def _find_gain(norm: nn.Module | None, like: Tensor) -> Tensor:
    """What a batch normalisation multiplies each channel by; infinite where that is next to nothing."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None
    gain = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight
    small = gain.abs() < LEAST_GAIN
    return torch.where(small, torch.inf, gain).to(like.dtype)


def _find_intercept(
    layer: nn.Module, norm: nn.Module | None, mean: Tensor | None, groups: int, outputs: int
) -> Tensor:
    """The intercept that a layer has now: its bias, or what an earlier repair put into the mean behind it."""
    bias = layer._parameters.get("bias")
    if bias is not None:
        return bias.detach().double().reshape(groups, outputs)
    if norm is not None and mean is not None:
        return (mean - norm.get_buffer("running_mean")).double().reshape(groups, outputs)
    weight = layer.get_parameter("weight")
    return torch.zeros(groups, outputs, dtype=torch.float64, device=weight.device)


def _set_intercept(layer: nn.Module, norm: nn.Module | None, mean: Tensor | None, intercept: Tensor) -> None:
    """Into the bias; without one, into the mean behind: that of the dense model, less the intercept."""
    bias = layer._parameters.get("bias")
    if bias is not None:
        bias.copy_(intercept.to(bias.dtype))
    elif norm is not None and mean is not None:
        own = norm.get_buffer("running_mean")
        own.copy_((mean.double() - intercept).to(own.dtype))


def _find_shared_addends(dense: Mapping[str, Site], cut: Mapping[str, Site]) -> frozenset[str]:
    """Layers that end a sum in both models, in the same way."""
    both = (name for name in dense if name in cut)
    known = (name for name in both if dense[name].addend is not None and cut[name].addend is not None)
    return frozenset(name for name in known if dense[name].through_norm == cut[name].through_norm)
