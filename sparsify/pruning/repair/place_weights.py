"""How much each place of a layer's output counts in a repair: by how much the predictions depend on it.

    w = (0.1 + s / mean of s over the example) / 1.1,    s = |g|

with g the gradient, at one place of the layer's output in the dense model, of log p(y), y being classes drawn
from the model's own predictions p, one for each place of these: no label is looked at.

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
from sparsify.pruning.criteria.drawn_classes import measure_lengths, sum_surprise, weigh
from sparsify.pruning.criteria.layer_gradients import LayerOutput, differentiate
from sparsify.pruning.layer_matrix import is_product
from sparsify.pruning.repair.agreement import take_examples
from sparsify_schemas.stage import Repair
from sparsify_schemas.task import Task

CHUNK = 16
"""examples of one backward pass"""


def choose_weights(
    dense: nn.Module, task: Task, inputs: Inputs, examples: int, seed: int, stage: Repair
) -> dict[str, Tensor]:
    """What `weigh_places` finds, where the stage asks for it or the task is a segmentation; else nothing.

    Raises ModelError where the stage asks for it and the model returns no scores of classes.
    """
    why = task.explain_unweighable(stage.weigh, stage.name)
    if why is not None:
        raise ModelError(f"repair: 'weigh': {why}")
    if stage.method != "least_squares" or not task.weighs_places(stage.weigh):
        return {}
    try:
        return weigh_places(dense, task, inputs, examples, seed)
    except (ModelError, TrainingError):
        if stage.weigh is None:
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
    return {name: weigh(sizes, examples) for name, sizes in whole.items()}


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
            surprise = sum_surprise(scores, task, generator, "repair: ")
    finally:
        for handle in handles:
            handle.remove()
    gradients = differentiate(surprise, list(outputs.values()))
    found = {}
    for (name, own), gradient in zip(outputs.items(), gradients, strict=True):
        if gradient is not None and own.values.dim() > 1:
            found[name] = measure_lengths(layers[name], gradient)
    return found
