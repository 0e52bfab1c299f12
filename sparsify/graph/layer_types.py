"""The width attributes of torch.nn layers, as their tensors imply them."""

from torch import nn

from sparsify.graph.layer_classes import is_transposed_linear
from sparsify.nn.gathered import GatheredConv1d, GatheredConv2d, GatheredConv3d, GatheredLinear

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
BatchNorm = nn.modules.batchnorm._BatchNorm
InstanceNorm = nn.modules.instancenorm._InstanceNorm


def is_depthwise(module: Conv | ConvTranspose) -> bool:
    """groups == in > 1: each channel has filters of its own."""
    return module.groups == module.in_channels > 1


def attributes(module: nn.Module) -> dict[str, int | tuple[int, ...]]:
    """Width attributes as the module's tensors now imply them."""
    match module:
        case GatheredLinear():
            return {"out_features": module.weight.shape[0], "in_features": module.in_features}
        case GatheredConv1d() | GatheredConv2d() | GatheredConv3d():
            return {"out_channels": module.weight.shape[0], "in_channels": module.in_channels}
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            rows, columns = module.weight.shape[0], module.weight.shape[1]
            if is_depthwise(module):
                groups = rows // (module.out_channels // module.in_channels)
                return {"out_channels": rows, "in_channels": groups, "groups": groups}
            return {"out_channels": rows, "in_channels": columns * module.groups}
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            rows, columns = module.weight.shape[0], module.weight.shape[1]
            if is_depthwise(module):
                return {"out_channels": rows * columns, "in_channels": rows, "groups": rows}
            return {"in_channels": rows, "out_channels": columns * module.groups}
        case nn.Linear():
            return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
        case BatchNorm() | InstanceNorm():
            first = module.weight if module.weight is not None else module.running_mean
            return {} if first is None else {"num_features": first.shape[0]}
        case nn.GroupNorm():
            return {} if module.weight is None else {"num_channels": module.weight.shape[0]}
        case nn.LayerNorm() | nn.RMSNorm():
            return {} if module.weight is None else {"normalized_shape": tuple(module.weight.shape)}
        case nn.PReLU():
            return {"num_parameters": module.weight.shape[0]}
        case nn.Embedding() | nn.EmbeddingBag():
            return {"embedding_dim": module.weight.shape[1]}
        case nn.Bilinear():
            out, left, right = module.weight.shape
            return {"out_features": out, "in1_features": left, "in2_features": right}
        case nn.MultiheadAttention():
            separate = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
            queries, keys, values = (
                w.shape[1]
                for w in (separate if module.in_proj_weight is None else (module.in_proj_weight,) * 3)
            )
            heads = module.out_proj.weight.shape[1] // module.head_dim
            return {
                "embed_dim": queries,
                "kdim": keys,
                "vdim": values,
                "num_heads": heads,
                "head_dim": module.head_dim,
            }
        case nn.RNNBase():
            read, kept = (module.get_parameter(f"weight_{name}_l0").shape[1] for name in ("ih", "hh"))
            return {"input_size": read, "hidden_size": kept}
        case nn.RNNCellBase():
            return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
        case _ if is_transposed_linear(module):
            rows, columns = module.get_parameter("weight").shape
            return {"nx": rows, "nf": columns} if hasattr(module, "nx") else {"nf": columns}
        case _:
            return {}


CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


WEIGHTS = (
    "weight",
    "in_proj_weight",
    "q_proj_weight",
    "parametrizations.weight.original1",
    "parametrizations.weight.original",
    "weight_v",
    "weight_orig",
)
"""names of a layer's weight: as it is, of an attention's projections, computed from one of its own shape (weight norm), under
a mask of torch.nn.utils.prune"""


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
