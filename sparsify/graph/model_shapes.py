"""Whether a model has the widths that its map was read from."""

from torch import nn

from sparsify.errors import ModelError
from sparsify.graph.model_map import ModelMap
from sparsify.graph.names import all_tensors


def check_shapes(map: ModelMap, model: nn.Module) -> None:
    """Refuse a model of other widths than those the map was read from. Raises ModelError."""
    shapes = {name: tuple(tensor.shape) for name, tensor in all_tensors(model).items()}
    reached = {part.tensor for group in map.coupled for part in group.slices}
    wrong = next((t for t in map.tensors if t.name in reached and shapes.get(t.name) != t.shape), None)
    if wrong is not None:
        now = f"it is {shapes[wrong.name]} now" if wrong.name in shapes else "there is none now"
        raise ModelError(
            f"the plan was made of another model: '{wrong.name}' was {wrong.shape}, {now}; "
            "make a plan of this model (of a cut model, after the cut)"
        )
