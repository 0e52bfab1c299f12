"""Layer classes: one row for each class of layer that has a width.

A row is found by the name of a class, as `Layer.kind` has it, or for a module by its classes, its own first.
A layer of no row is followed all the same; no rule names it by a group type, and its cost goes by its
multiply-accumulates. Nothing here imports torch, so that reports and plans can look a class up by its name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

Family = Literal[
    "convolution",
    "transposed convolution",
    "linear",
    "transposed linear",
    "bilinear",
    "embedding",
    "attention",
    "recurrent",
    "normalisation",
    "activation",
    "other",
]
"""what group types act by; the weight of the transposed ones is [inputs, outputs, ...],
of the others [outputs, inputs, ...]"""
Widths = dict[str, int | tuple[int, ...]]
Timed = Literal["convolution", "linear", "attention"]


@dataclass(frozen=True)
class LayerType:
    """What is the same for all layers of one class."""

    family: Family
    widths: Callable[[Any], Widths]
    """width attributes of a module, as its tensors imply them"""
    names: tuple[str, str] | None = None
    """attributes that hold the width of the inputs and that of the outputs"""
    outputs: int | None = None
    """dimension of the weight along which the outputs lie, where a rule can name their width"""
    hidden: str | None = None
    """recurrent: the weight whose dimension 1 are the hidden units"""
    timed: Timed | None = None
    """as what it is timed: its widths are then steps of a convolution or of a
    linear layer; None: by its MACs alone"""
    group_count: str | None = None
    """attribute that holds into how many groups its channels fall"""
    foreign: Callable[[Any], bool] | None = None
    """a class that is not torch's is known by its name, and by this"""

    @property
    def reads_indices(self) -> bool:
        """Whether its inputs are numbers of rows, so that no width of another layer is what it reads."""
        return self.family == "embedding"


WEIGHTS = (
    "weight",
    "in_proj_weight",
    "q_proj_weight",
    "parametrizations.weight.original1",
    "parametrizations.weight.original",
    "weight_v",
    "weight_orig",
)
"""names of a layer's weight: as it is, of an attention's projections, computed from one of its own shape
(weight norm), under a mask of torch.nn.utils.prune"""
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""names of an attention's weights"""


def layer_type(module: "nn.Module") -> LayerType:
    """The row of a module: of the nearest of its classes that torch.nn has,
    else of one that is known by its name."""
    bases = type(module).__mro__
    own = (TABLE[base.__name__] for base in bases if base.__name__ in TABLE and _is_of_torch(base))
    named = (FOREIGN[base.__name__] for base in bases if base.__name__ in FOREIGN)
    fitting = (row for row in named if row.foreign is not None and row.foreign(module))
    return next(own, None) or next(fitting, OTHER)


def layer_type_of(kind: str) -> LayerType:
    """The row of a class by its name, as `Layer.kind` has it."""
    return TABLE.get(kind) or FOREIGN.get(kind, OTHER)


def attributes(module: "nn.Module") -> Widths:
    """Width attributes as the module's tensors now imply them."""
    with without_power_iteration(module):
        return layer_type(module).widths(module)


@contextmanager
def without_power_iteration(module: "nn.Module") -> Iterator[None]:
    """Weights that a parametrization computes can be read inside: in train mode, reading one that
    `spectral_norm` computes takes another step of its estimate, which changes buffers."""
    training: list[nn.Module] = []
    for own in module.modules():
        for name, inner in own.named_children():
            if name == "parametrizations":
                training += [part for part in inner.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def layer_widths(module: "nn.Module") -> tuple[int, int]:
    """Widths of a module's inputs and outputs, by its attributes; (0, 0) where it has no such."""
    names = layer_type(module).names
    return (0, 0) if names is None else (getattr(module, names[0]), getattr(module, names[1]))


def is_depthwise(module: Any) -> bool:
    """groups == in > 1: each channel has filters of its own."""
    return bool(module.groups == module.in_channels > 1)


def _is_of_torch(kind: type[Any]) -> bool:
    """Whether a class is torch's, or what a cut puts in the place of one."""
    return kind.__module__.startswith(("torch.nn.", "sparsify.nn."))


def is_transposed_linear(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return hasattr(module, "nf") and weight is not None and weight.dim() == 2


def _of_convolution(module: Any) -> Widths:
    rows, columns = module.weight.shape[:2]
    if is_depthwise(module):
        groups = rows // (module.out_channels // module.in_channels)
        return {"out_channels": rows, "in_channels": groups, "groups": groups}
    return {"out_channels": rows, "in_channels": columns * module.groups}


def _of_transposed_convolution(module: Any) -> Widths:
    rows, columns = module.weight.shape[:2]
    if is_depthwise(module):
        return {"out_channels": rows * columns, "in_channels": rows, "groups": rows}
    return {"in_channels": rows, "out_channels": columns * module.groups}


def _of_gathered_convolution(module: Any) -> Widths:
    return {"out_channels": module.weight.shape[0], "in_channels": module.in_channels}


def _of_linear(module: Any) -> Widths:
    rows, columns = module.weight.shape
    return {"out_features": rows, "in_features": columns}


def _of_gathered_linear(module: Any) -> Widths:
    return {"out_features": module.weight.shape[0], "in_features": module.in_features}


def _of_transposed_linear(module: Any) -> Widths:
    rows, columns = module.weight.shape
    return {"nx": rows, "nf": columns} if hasattr(module, "nx") else {"nf": columns}


def _of_bilinear(module: Any) -> Widths:
    out, left, right = module.weight.shape
    return {"out_features": out, "in1_features": left, "in2_features": right}


def _of_embedding(module: Any) -> Widths:
    return {"embedding_dim": module.weight.shape[1]}


def _of_attention(module: Any) -> Widths:
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    if module.in_proj_weight is not None:  # the three are packed into one
        weights = (module.in_proj_weight,) * 3
    queries, keys, values = (weight.shape[1] for weight in weights)
    return {
        "embed_dim": queries,
        "kdim": keys,
        "vdim": values,
        "num_heads": module.out_proj.weight.shape[1] // module.head_dim,
        "head_dim": module.head_dim,
    }


def _of_recurrent(module: Any) -> Widths:
    # Not by `get_parameter`: under weight_norm a weight is computed.
    read, kept = (getattr(module, f"weight_{name}_l0").shape[1] for name in ("ih", "hh"))
    if module.proj_size:
        kept, hidden = module.weight_hr_l0.shape
        return {"input_size": read, "hidden_size": hidden, "proj_size": kept}
    return {"input_size": read, "hidden_size": kept}


def _of_recurrent_cell(module: Any) -> Widths:
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


def _of_statistics(module: Any) -> Widths:
    """Of a BatchNorm or InstanceNorm."""
    first = module.weight if module.weight is not None else module.running_mean
    return {} if first is None else {"num_features": first.shape[0]}


def _of_group_norm(module: Any) -> Widths:
    return {} if module.weight is None else {"num_channels": module.weight.shape[0]}


def _of_layer_norm(module: Any) -> Widths:
    return {} if module.weight is None else {"normalized_shape": tuple(module.weight.shape)}


def _of_activation(module: Any) -> Widths:
    return {"num_parameters": module.weight.shape[0]}


def _none(_module: Any) -> Widths:
    return {}


def _rows(row: LayerType, names: Iterable[str]) -> Mapping[str, LayerType]:
    return dict.fromkeys(names, row)


_CHANNELS, _FEATURES = ("in_channels", "out_channels"), ("in_features", "out_features")
_CONVOLUTION = LayerType(
    "convolution", _of_convolution, _CHANNELS, outputs=0, timed="convolution", group_count="groups"
)
_LINEAR = LayerType("linear", _of_linear, _FEATURES, outputs=0, timed="linear")
_RECURRENT = LayerType("recurrent", _of_recurrent, ("input_size", "hidden_size"), hidden="weight_hh_l0")
_NORM = LayerType("normalisation", _of_statistics)

TABLE: Mapping[str, LayerType] = {
    **_rows(_CONVOLUTION, ("Conv1d", "Conv2d", "Conv3d")),
    **_rows(
        replace(_CONVOLUTION, widths=_of_gathered_convolution, group_count=None),
        ("GatheredConv1d", "GatheredConv2d", "GatheredConv3d"),
    ),
    **_rows(
        LayerType(
            "transposed convolution",
            _of_transposed_convolution,
            _CHANNELS,
            outputs=1,
            timed="convolution",
            group_count="groups",
        ),
        ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    ),
    "Linear": _LINEAR,
    "GatheredLinear": replace(_LINEAR, widths=_of_gathered_linear),
    "Bilinear": LayerType("bilinear", _of_bilinear, ("in1_features", "out_features"), outputs=0),
    **_rows(
        LayerType("embedding", _of_embedding, ("num_embeddings", "embedding_dim"), outputs=1),
        ("Embedding", "EmbeddingBag"),
    ),
    "MultiheadAttention": LayerType(
        "attention", _of_attention, ("embed_dim", "embed_dim"), outputs=0, timed="attention"
    ),
    **_rows(_RECURRENT, ("RNNBase", "RNN", "LSTM", "GRU")),
    **_rows(
        replace(_RECURRENT, widths=_of_recurrent_cell, hidden="weight_hh"),
        ("RNNCellBase", "RNNCell", "LSTMCell", "GRUCell"),
    ),
    **_rows(
        replace(_NORM, names=("num_features", "num_features")),
        ("_BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"),
    ),
    **_rows(_NORM, ("_InstanceNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")),
    "GroupNorm": replace(_NORM, widths=_of_group_norm, group_count="num_groups"),
    **_rows(replace(_NORM, widths=_of_layer_norm), ("LayerNorm", "RMSNorm")),
    "PReLU": LayerType("activation", _of_activation),
}
"""class of torch.nn, or of what a cut puts in its place -> its row"""

FOREIGN: Mapping[str, LayerType] = {
    "Conv1D": LayerType(  # transformers: a Linear layer with weight [inputs, outputs]
        "transposed linear", _of_transposed_linear, outputs=1, timed="linear", foreign=is_transposed_linear
    ),
}
"""class of another package -> its row"""

OTHER = LayerType("other", _none)
"""the row of a class that is not known"""
