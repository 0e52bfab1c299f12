"""Which model a follower of a cut holds: a moving average is often an object around the averaged model."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.graph.model_map import ModelMap
from sparsify.graph.model_shapes import check_shapes

ATTRIBUTES = ("module", "ema_model", "model", "ema")
"""under which a wrapper may hold the averaged model: torch and timm say `module`, others `ema_model`,
`model` or `ema`"""
DEPTH = 3
"""how many attributes deep an averaged model is looked for, so that a message can name it"""


def find_averaged_attribute(map: ModelMap, follower: Any, model: nn.Module) -> str | None:
    """The attribute of a follower that holds its averaged model; None where the follower is such a model
    itself.

    map: of the model that is cut. model: that model, which a wrapper may hold as well, beside its average.
    Raises ModelError, naming the attribute to pass where there is one, when the follower cannot be cut.
    """
    if isinstance(follower, nn.Module) and _check_shapes(map, follower):
        return None
    held = [name for name in ATTRIBUTES if _is_average(map, _read_attribute(follower, name), model)]
    if len(held) == 1:
        return held[0]
    kind = type(follower).__name__
    if held:
        raise ModelError(
            f"follow holds a {kind} with several models of this plan; pass its attribute {_join_names(held)}"
        )
    inside = list(_find_inside(map, follower, model))
    if inside:
        raise ModelError(
            f"follow holds a {kind} that is no model of this plan; pass its attribute {_join_names(inside)}"
        )
    where = _tensors_at(map, follower)
    if where is not None:
        raise ModelError(
            f"follow holds a {kind} that keeps averages as tensors{where} and no model; "
            f"load them into a copy of the model, pass that copy, and make a new {kind} "
            "of what comes back in followers"
        )
    if not isinstance(follower, nn.Module):
        raise ModelError(
            f"follow holds a {kind} that is no model of this plan, and none of its attributes holds one; "
            "pass the averaged model, a torch.nn.Module"
        )
    check_shapes(map, follower)  # says which tensor differs
    return None


def _check_shapes(map: ModelMap, model: nn.Module) -> bool:
    try:
        check_shapes(map, model)
    except ModelError:
        return False
    return True


def _is_average(map: ModelMap, value: object, model: nn.Module) -> bool:
    """Whether it is a model of the plan, or a wrapper that holds one, and not the model that is cut
    itself."""
    if not isinstance(value, nn.Module) or value is model:
        return False
    return (
        _check_shapes(map, value)
        or sum(_is_average(map, _read_attribute(value, name), model) for name in ATTRIBUTES) == 1
    )


def _read_attribute(value: object, name: str) -> object:
    """What was stored under this name; no property is run."""
    return _list_stored(value).get(name)


def _list_stored(value: object) -> Mapping[str, Any]:
    own = getattr(value, "__dict__", {})
    return {**own, **own.get("_modules", {})} if isinstance(value, nn.Module) else own


def _find_inside(
    map: ModelMap, value: object, model: nn.Module, path: str = "", depth: int = DEPTH
) -> Iterator[str]:
    """Paths of attributes that `follow` takes; of those inside each other the outermost."""
    for name, item in _list_stored(value).items():
        own = f"{path}.{name}" if path else name
        if _is_average(map, item, model):
            yield own
        elif (
            depth > 1
            and hasattr(item, "__dict__")
            and item is not model
            and not isinstance(item, Tensor | type)
        ):
            yield from _find_inside(map, item, model, own, depth - 1)


def _tensors_at(map: ModelMap, value: object) -> str | None:
    """Where an object keeps a tensor for each parameter that the plan reaches, in words; None where it does
    not."""
    shapes = [tensor.shape for tensor in map.tensors if tensor.parameter]
    places = [
        ("", value),
        *((f" in '{name}'", item) for name, item in _list_stored(value).items() if not name.startswith("_")),
    ]
    for where, item in places:
        if isinstance(item, Mapping):
            found = list(item.values())
        elif isinstance(item, list | tuple):
            found = list(item)
        else:
            continue
        held = [tuple(tensor.shape) for tensor in found if isinstance(tensor, Tensor)]
        if shapes and all(held.count(shape) >= shapes.count(shape) for shape in shapes):
            return where
    return None


def _join_names(names: list[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)
