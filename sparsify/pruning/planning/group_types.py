"""Group types as planning knows them: one row a type.
What the recipe language knows of them is in its `group.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, assert_never

from sparsify.graph.layer_types import PROJECTIONS, Family, layer_type_of
from sparsify.graph.model_map import Coupled, Layer, ModelMap
from sparsify_schemas.group import KINDS, Group, Kind, kind_of
from sparsify_schemas.table import Steps


@dataclass(frozen=True)
class GroupType:
    """What planning knows of a group type."""

    acts_on: str
    """the layers that it acts on, as messages call them"""
    fits: Callable[[ModelMap, Layer], bool]
    """whether a layer is one of them"""
    reaches: Callable[[ModelMap, Layer], list[Coupled]]
    """the coupled groups that it chooses in, of one layer; none where groups lie inside a weight tensor"""
    covers: Callable[[ModelMap, Layer], list[str]]
    """the tensors of a layer that a penalty of single weights or of the layer's own slices acts on"""
    role: Literal["out", "in"]
    """whether the layer that a rule matches makes a unit or takes it in"""
    step: Literal["convolution", "linear"] | None
    """by which width step of a target `multiple_of: auto` goes; None where no step is known to pay"""
    clashes: tuple[Kind, ...]
    """types that another rule cannot have on the same layer, where one of the two says so:
    n:m patterns of other numbers, and what lies in a row where columns leave"""
    zeros: Literal["stay", "columns", "kernel"] | None
    """inside one tensor: whether zeros stay, or a layer may gather its live columns, or its kernel may shrink
    to the live positions; None where units leave"""
    instead: str = ""
    """the type that messages suggest for layers that it does not act on, where these are all linear"""
    without: str = ""
    """what the plan says of a layer without a group of this type, where that alone is no error"""
    refused: tuple[str, str] | None = None
    """what is said, and advised, where none of a rule's layers has a group of this type, where that is an
    error; {layers} stands for their names"""


def group_type(kind: Kind) -> GroupType:
    """The row of a group type."""
    match kind:
        case "filter":
            return GroupType(
                acts_on="convolutions",
                fits=_is_convolution_or_bare,
                reaches=_outputs,
                covers=_weight,
                role="out",
                step="convolution",
                clashes=(),
                zeros=None,
                instead="neuron",
            )
        case "channel":
            return GroupType(
                acts_on="convolutions",
                fits=_is_convolution,
                reaches=_inputs,
                covers=_weight,
                role="in",
                step="convolution",
                clashes=(),
                zeros=None,
                instead="neuron",
                without="nothing that could be narrowed feeds it",
            )
        case "neuron":
            return GroupType(
                acts_on="Linear layers and embeddings",
                fits=_is_linear_or_bare,
                reaches=_outputs,
                covers=_weight,
                role="out",
                step="linear",
                clashes=(),
                zeros=None,
            )
        case "head":
            return GroupType(
                acts_on="linear projections of an attention",
                fits=_is_projection,
                reaches=_heads,
                covers=_weight,
                role="out",
                step=None,
                clashes=(),
                zeros=None,
                refused=("there are no heads in {layers}: the rows leave one by one", "use group 'neuron'"),
            )
        case "hidden":
            return GroupType(
                acts_on="recurrent layers",
                fits=_is_recurrent,
                reaches=_hidden_units,
                covers=_recurrent_weights,
                role="out",
                step=None,
                clashes=(),
                zeros=None,
            )
        case "expert":
            return GroupType(
                acts_on="mixtures of experts",
                fits=_is_no_layer,
                reaches=_named_group,
                covers=_parameters_of_group,
                role="out",
                step=None,
                clashes=(),
                zeros=None,
            )
        case "depth":
            return GroupType(
                acts_on="residual blocks and branches",
                fits=_is_no_layer,
                reaches=_named_group,
                covers=_parameters_of_group,
                role="out",
                step=None,
                clashes=(),
                zeros=None,
            )
        case "shape":
            return GroupType(
                acts_on="convolutions without groups and Linear layers",
                fits=_has_columns,
                reaches=_nothing,
                covers=_weight,
                role="out",
                step=None,
                clashes=("n:m", "block"),
                zeros="columns",
            )
        case "tap":
            return GroupType(
                acts_on="convolutions",
                fits=_has_kernel,
                reaches=_nothing,
                covers=_weight,
                role="out",
                step=None,
                clashes=("n:m", "block"),
                zeros="kernel",
            )
        case "weight":
            return GroupType(
                acts_on="layers with a weight matrix",
                fits=_has_matrix,
                reaches=_nothing,
                covers=_weight,
                role="out",
                step=None,
                clashes=(),
                zeros="stay",
            )
        case "block":
            return GroupType(
                acts_on="convolutions and Linear layers",
                fits=_has_kernel_or_is_linear,
                reaches=_nothing,
                covers=_weight,
                role="out",
                step=None,
                clashes=("shape", "tap"),
                zeros="stay",
            )
        case "n:m":
            return GroupType(
                acts_on="convolutions and Linear layers",
                fits=_has_kernel_or_is_linear,
                reaches=_nothing,
                covers=_weight,
                role="out",
                step=None,
                clashes=("n:m", "shape", "tap"),
                zeros="stay",
            )
        case _:
            assert_never(kind)


def group_type_of(group: Group) -> GroupType:
    """The row of a group's type, whatever its numbers."""
    return group_type(kind_of(group))


def list_clashing(kind: Kind) -> list[Kind]:
    """The types that cannot be on the same layer, whichever of the two says so."""
    own = group_type(kind).clashes
    others = [other for other in KINDS if other not in own and kind in group_type(other).clashes]
    return [*own, *others]


def find_groups(group: Group | None, map: ModelMap, layer: Layer) -> list[Coupled]:
    """The coupled groups of a layer that a rule on this group chooses in."""
    return [] if group is None else group_type_of(group).reaches(map, layer)


def find_tensors(group: Group | None, map: ModelMap, layer: Layer) -> list[str]:
    """The tensors of a layer that a rule on this group covers."""
    return _weight(map, layer) if group is None else group_type_of(group).covers(map, layer)


def width_step(group: Group | None, steps: Steps) -> int:
    """What the widths of a group type are multiples of where they pay on a
    target; 1 where no step is known."""
    match None if group is None else group_type_of(group).step:
        case "convolution":
            return steps.convolution
        case "linear":
            return steps.linear
        case None:
            return 1


def find_coupled(map: ModelMap, layer: Layer, role: str) -> list[Coupled]:
    """Coupled groups of which a unit is among a layer's outputs ("out"), or among its inputs ("in")."""
    places = {place for name in _name_matrices(layer) for place in map.reached_from.get((name, role), ())}
    if role == "out":
        names = (layer.name, *map.tensors_of.get(layer.name, ()))
        places |= {map.places[name] for name in names if name in map.places}
        places |= set(map.reached_from.get((f"{layer.name}:groups", "size"), ()))  # those of whole groups
    return [map.coupled[place] for place in sorted(places)]


def find_bare_groups(map: ModelMap, layer: Layer) -> list[Coupled]:
    """Groups made by a parameter that a network's own module holds without a layer;
    they go by the parameter's name."""
    places = {map.places[name] for name in map.tensors_of.get(layer.name, ()) if name in map.places}
    return [map.coupled[place] for place in sorted(places)]


def _name_matrices(layer: Layer) -> set[str]:
    """The weight of a layer, under the names that it may have in torch: an attention has projections,
    a parametrized layer has what its weight is computed from."""
    return {*layer.weights, *(f"{layer.name}.{name}" for name in PROJECTIONS)}


def _family(layer: Layer) -> Family:
    return layer_type_of(layer.kind).family


def _is_convolution(_map: ModelMap, layer: Layer) -> bool:
    return _family(layer) in ("convolution", "transposed convolution")


def _is_convolution_or_bare(map: ModelMap, layer: Layer) -> bool:
    return _is_convolution(map, layer) or bool(find_bare_groups(map, layer))


def _is_linear_or_bare(map: ModelMap, layer: Layer) -> bool:
    linear = _family(layer) in ("linear", "transposed linear", "bilinear", "embedding")
    return linear or bool(find_bare_groups(map, layer))


def _is_projection(_map: ModelMap, layer: Layer) -> bool:
    return _family(layer) in ("linear", "transposed linear", "attention")


def _is_recurrent(_map: ModelMap, layer: Layer) -> bool:
    return _family(layer) == "recurrent"


def _is_no_layer(_map: ModelMap, _layer: Layer) -> bool:
    """Residual branches and mixtures are matched by their own names."""
    return False


def _has_kernel(_map: ModelMap, layer: Layer) -> bool:
    return _family(layer) == "convolution"


def _has_kernel_or_is_linear(_map: ModelMap, layer: Layer) -> bool:
    return _family(layer) in ("convolution", "linear")


def _has_columns(map: ModelMap, layer: Layer) -> bool:
    grouped = len(layer.weight) > 2 and layer.weight[1] != layer.inputs
    return _has_kernel_or_is_linear(map, layer) and not grouped


def _has_matrix(_map: ModelMap, layer: Layer) -> bool:
    return len(layer.weight) > 1


def _outputs(map: ModelMap, layer: Layer) -> list[Coupled]:
    return find_coupled(map, layer, "out")


def _inputs(map: ModelMap, layer: Layer) -> list[Coupled]:
    """A depthwise convolution makes its own channels; so does one that loses whole groups."""
    depthwise = layer.weight[1:2] == (1,) and layer.inputs == layer.outputs > 1
    read = [] if depthwise else find_coupled(map, layer, "in")
    grouped = _family(layer) == "convolution" and layer.weight[1] < layer.inputs
    return read or (find_coupled(map, layer, "out") if depthwise or grouped else [])


def _heads(map: ModelMap, layer: Layer) -> list[Coupled]:
    """Groups of which several rows of the layer's weight leave with one unit."""
    return [group for group in find_coupled(map, layer, "out") if _count_rows(group, layer) > 1]


def _count_rows(group: Coupled, layer: Layer) -> int:
    """How many rows of a layer's weight leave with one unit."""
    matrices = _name_matrices(layer)
    own = [s for s in group.slices if s.tensor in matrices and s.role == "out"]
    rows = sum(span.units * span.repeat for s in own for span in s.spans)
    return rows // max(group.width, 1)


def _hidden_units(map: ModelMap, layer: Layer) -> list[Coupled]:
    weights = f"{layer.name}.weight_hh"
    found = []
    for group in map.coupled:
        if any(part.tensor.startswith(weights) for part in group.slices):
            found.append(group)
    return found


def _named_group(map: ModelMap, layer: Layer) -> list[Coupled]:
    return [map.by_name[layer.name]]


def _nothing(_map: ModelMap, _layer: Layer) -> list[Coupled]:
    """Groups inside a weight tensor are chosen by their zeros."""
    return []


def _weight(map: ModelMap, layer: Layer) -> list[str]:
    matrices = _name_matrices(layer)
    return [t.name for t in map.tensors if t.name in matrices] or [f"{layer.name}.weight"]


def _recurrent_weights(map: ModelMap, layer: Layer) -> list[str]:
    return [t.name for t in map.tensors if t.name.startswith(f"{layer.name}.weight_")]


def _parameters_of_group(map: ModelMap, layer: Layer) -> list[str]:
    own = {s.tensor for s in map.by_name[layer.name].slices}
    return [t.name for t in map.tensors if t.name in own and t.parameter and t.shape]
