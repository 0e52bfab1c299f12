"""How much each place of a layer's output counts in a repair: by how much the predictions depend on it.

    w = (FLOOR + s / mean of s over the example) / (FLOOR + 1),    s = |g|

with g the gradient, at one place of the layer's output in the dense model, of log p(y), y being classes drawn
from the model's own predictions p, one for each place of these: no label is looked at. (The mean of g g' over
such draws is the Fisher information. |g| in place of its square makes less of the luck of one draw.)

Most pixels of a segmentation are background, which the model is sure of: g is next to zero there. Weighed
alike they are most of the squared error, and a refit follows them where it should follow the objects.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError, TrainingError
from sparsify.forward.call_model import call_model
from sparsify.forward.calls import Inputs
from sparsify.objective.predictions import find_prediction
from sparsify.pruning.criteria.layer_gradients import LayerOutput, differentiate
from sparsify.pruning.layer_matrix import is_product, move_channels_last
from sparsify.pruning.repair.agreement import take_examples
from sparsify_schemas.stage import Repair
from sparsify_schemas.task import Task

FLOOR = 0.1
"""of the mean: what a place counts that the predictions do not depend on"""
CHUNK = 16
"""examples of one backward pass"""


def choose_weights(
    dense: nn.Module, task: Task, inputs: Inputs, examples: int, seed: int, stage: Repair
) -> dict[str, Tensor]:
    """What `weigh_places` finds, where the stage asks for it or the task is a segmentation; else nothing.

    Raises ModelError where the stage asks for it and the model returns no scores of classes.
    """
    why = stage.explain_unweighable(task)
    if why is not None:
        raise ModelError(f"repair: 'weigh': {why}")
    by_default = stage.weigh is None and task.kind == "segmentation" and task.loss is None
    if stage.method != "least_squares" or not (by_default or stage.weigh == "places"):
        return {}
    try:
        return weigh_places(dense, task, inputs, examples, seed)
    except (ModelError, TrainingError):
        if by_default:
            return {}
        raise


def weigh_places(dense: nn.Module, task: Task, inputs: Inputs, examples: int, seed: int) -> dict[str, Tensor]:
    """Layer -> weights of the places of its output, [batch, *places], with a mean of 1 over each example.

    Layers that the predictions do not depend on are left out.

    Args:
        dense: the model in eval mode; it stays as it is.
        task: whose predictions are scores of classes, along dimension 1 of a segmentation and the last one of
            other tasks.
        inputs: one call with all examples.
        examples: how many.
        seed: of the classes that are drawn.

    Raises ModelError where the model returns no such scores.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {name: module for name, module in dense.named_modules() if is_product(module)}
    found: dict[str, list[Tensor]] = {}
    wanted = [parameter for parameter in dense.parameters() if not parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        for start in range(0, examples, CHUNK):
            part = take_examples(inputs, examples, start, min(start + CHUNK, examples))
            for name, sizes in _measure_gradients(dense, layers, task, part, generator).items():
                found.setdefault(name, []).append(sizes)
    finally:
        for parameter in wanted:
            parameter.requires_grad_(False)
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    whole = {name: sizes for name, sizes in joined.items() if len(sizes) % examples == 0}
    return {name: _weigh(sizes, examples) for name, sizes in whole.items()}


def _measure_gradients(
    dense: nn.Module, layers: dict[str, nn.Module], task: Task, inputs: Inputs, generator: torch.Generator
) -> dict[str, Tensor]:
    """|g| of each layer, [batch, *places]."""
    outputs: dict[str, LayerOutput] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[name] = LayerOutput.of(output)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    try:
        with torch.enable_grad():
            scores = find_prediction(call_model(dense, inputs), task)
            surprise = _draw_and_score(scores, task.kind == "segmentation", generator)
    finally:
        for handle in handles:
            handle.remove()
    gradients = differentiate(surprise, list(outputs.values()))
    found = {}
    for (name, own), gradient in zip(outputs.items(), gradients, strict=True):
        if gradient is not None and own.values.dim() > 1:
            rows = move_channels_last(layers[name], gradient)
            found[name] = rows.float().square().sum(-1).sqrt().nan_to_num(0.0)
    return found


def _draw_and_score(scores: Any, is_segmentation: bool, generator: torch.Generator) -> Tensor:
    """- log p(y) summed over all places, y drawn from p."""
    axis = 1 if is_segmentation else -1
    if is_segmentation and isinstance(scores, Tensor) and scores.dim() > 1 and scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], 1)  # whose softmax is the sigmoid
    if not isinstance(scores, Tensor) or scores.dim() < 2 or scores.shape[axis] < 2:
        raise ModelError(
            "repair: 'weigh': places are weighed by predictions that score two classes or more, and the "
            "model returns none; leave it out"
        )
    log = scores.movedim(axis, -1).flatten(0, -2).float().log_softmax(-1)
    drawn = torch.multinomial(log.detach().exp().cpu(), 1, generator=generator).to(log.device)
    return -log.gather(-1, drawn).sum()


def _weigh(sizes: Tensor, examples: int) -> Tensor:
    each = sizes.reshape(examples, -1)
    mean = each.mean(1, keepdim=True)
    # An example on which nothing depends weighs its places alike.
    relative = torch.where(mean > 0, each / mean, 1.0)
    return ((FLOOR + relative) / (FLOOR + 1)).reshape(sizes.shape)
