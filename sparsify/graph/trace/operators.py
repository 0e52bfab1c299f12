"""The operators of torch by what they do to elements, and how to read their arguments."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import without_compiling
from sparsify.graph.names import walk_modules

MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "numpy_T",
        "unsqueeze",
        "squeeze",
        "expand",
        "flip",
        "roll",
        "repeat",
        "diagonal",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "native_channel_shuffle",
        "repeat_interleave",
        "detach",
        "alias",
        "clone",
        "contiguous",
        "_to_copy",
        "lift_fresh",
        "unfold",
        "diagonal_copy",
        "movedim",
        "swapaxes",
        "rot90",
    ]
)
SPATIAL = frozenset(
    [
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact2d",
        "upsample_bilinear2d",
        "_upsample_bilinear2d_aa",
        "upsample_linear1d",
        "upsample_bicubic2d",
        "_upsample_bicubic2d_aa",
        "upsample_trilinear3d",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "mkldnn_max_pool2d",
        "mkldnn_max_pool3d",
        "fractional_max_pool2d",
        "fractional_max_pool3d",
    ]
)
REDUCTIONS = frozenset(
    [
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "std",
        "var_mean",
        "std_mean",
        "logsumexp",
        "prod",
        "all",
        "any",
        "norm",
        "linalg_vector_norm",
        "nansum",
        "argmax",
        "argmin",
        "aminmax",
        "count_nonzero",
    ]
)
ALONG = frozenset(
    [
        "_softmax",
        "_log_softmax",
        "softmax",
        "log_softmax",
        "_safe_softmax",
        "cumsum",
        "cumprod",
        "sort",
        "topk",
        "logcumsumexp",
        "glu",
        "kthvalue",
        "median",
        "nanmedian",
        "mode",
        "cummax",
        "cummin",
    ]
)
NORMS = frozenset(
    [
        "native_batch_norm",
        "_native_batch_norm_legit_no_training",
        "_native_batch_norm_legit",
        "cudnn_batch_norm",
        "_batch_norm_with_update",
        "miopen_batch_norm",
        "batch_norm",
    ]
)
POINTWISE = frozenset(
    "where _prelu_kernel masked_fill lerp addcmul addcdiv clamp clamp_min clamp_max hardswish hardsigmoid "
    "hardtanh silu gelu mish elu celu selu leaky_relu rrelu_with_noise softplus softshrink hardshrink "
    "threshold log_sigmoid_forward glu_jvp fmod remainder nan_to_num normal".split()
)
LIKE = frozenset(
    [
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand_like",
        "randn_like",
        "bernoulli",
        "native_dropout",
        "dropout",
        "logical_not",
        "uniform",
        "exponential",
        "geometric",
        "log_normal",
        "cauchy",
        "random",
        "poisson",
    ]
)
FRESH = frozenset(
    [
        "arange",
        "zeros",
        "ones",
        "full",
        "empty",
        "scalar_tensor",
        "rand",
        "randn",
        "eye",
        "linspace",
        "tril_indices",
        "triu_indices",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "empty_strided",
        "new_empty_strided",
        "randint",
    ]
)

DISTANCES = frozenset(["_cdist_forward", "_euclidean_dist", "_pdist_forward"])
"""distances between rows: a sum over the last dimension"""
LOSSES = {
    "binary_cross_entropy": 3,
    "binary_cross_entropy_with_logits": 4,
    "dist": None,
    "huber_loss": 2,
    "mse_loss": 2,
    "smooth_l1_loss": 2,
    "soft_margin_loss": 2,
}
"""elementwise, then a sum or mean over all elements: operator -> place of the argument that can disable
that"""

UNIFORM = frozenset(
    [
        "_efficientzerotensor",
        "zeros",
        "ones",
        "full",
        "empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
    ]
)
"""created with all elements equal, or not written yet"""


def apply_move(func: Any, tensor: Tensor, rest: Any, kwargs: Any) -> Tensor:
    """A moving operator on labels: `reshape` in place of `view`, since labels are expanded views."""
    name = func._schema.name.split("::")[1]
    if name in ("view", "_unsafe_view", "_reshape_alias", "reshape"):
        return tensor.reshape(rest[0])
    result: Tensor = func(tensor, *rest, **kwargs)
    return result


def flatten_arguments(args: Any, kwargs: Mapping[str, Any]) -> Iterator[Any]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def read_argument(args: Any, kwargs: Mapping[str, Any], at: int, name: str, default: Any) -> Any:
    return args[at] if len(args) > at else kwargs.get(name, default)


def wrap_dim(dim: int, tensor: Tensor) -> int:
    return dim % max(tensor.dim(), 1)


def dims_run_over(name: str, args: Any, kwargs: Mapping[str, Any]) -> set[int]:
    """The dimensions that a reduction, a softmax or a normalisation runs over."""
    rank = args[0].dim()
    if name == "native_layer_norm":
        return set(range(rank - len(args[1]), rank))
    if name == "native_group_norm":
        return {1}
    if name == "_weight_norm_interface":
        return set(range(rank)) - {wrap_dim(read_argument(args, kwargs, 2, "dim", 0), args[0])}
    if name in NORMS:  # over everything but the channels, where the statistics are not stored ones
        is_training = next((a for a in args[3:] if isinstance(a, bool)), False)
        return set(range(rank)) - {1} if is_training else set()
    if name in DISTANCES:
        return {rank - 1}
    if name in LOSSES:
        return set() if loss_reduction(name, args, kwargs) == 0 else set(range(rank))
    if name in ("median", "nanmedian") and len(args) == 1 and "dim" not in kwargs:
        return set(range(rank))
    if name in ALONG:
        return {
            wrap_dim(
                read_argument(args, kwargs, 2 if name in ("topk", "kthvalue") else 1, "dim", -1), args[0]
            )
        }
    dims = read_argument(args, kwargs, 2 if name in ("norm", "linalg_vector_norm") else 1, "dim", None)
    if dims is None or dims == [] or isinstance(dims, Tensor):
        return set(range(rank))
    if not isinstance(dims, list | tuple):
        dims = [dims]
    return {wrap_dim(dim, args[0]) for dim in dims}


def loss_reduction(name: str, args: Any, kwargs: Mapping[str, Any]) -> int:
    """How a loss sums over elements: 0 none, 1 mean, 2 sum."""
    place = LOSSES[name]
    found: int = 2 if place is None else read_argument(args, kwargs, place, "reduction", 1)
    return found


@contextmanager
def decompose_operators(model: nn.Module) -> Iterator[None]:
    """Make torch run plain operators: no fused attention, no fused recurrent layers."""
    recurrent = any(isinstance(module, nn.RNNBase) for _, module in walk_modules(model))
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(without_compiling())
        stack.enter_context(without_fused_attention())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings(
            "ignore", message=".*TF32.*"
        )  # torch says it whenever the oneDNN flags are set
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


@contextmanager
def without_grouped_experts(model: nn.Module) -> Iterator[None]:
    """Have mixtures of transformers run one expert after the other: a grouped product knows no float64."""
    held = (vars(module).get("config") for _, module in walk_modules(model))
    configs = {id(config): config for config in held if hasattr(config, EXPERTS)}
    before = [(config, getattr(config, EXPERTS)) for config in configs.values()]
    for config, _ in before:
        setattr(config, EXPERTS, "eager")
    try:
        yield
    finally:
        for config, way in before:
            setattr(config, EXPERTS, way)


EXPERTS = "_experts_implementation_internal"
"""how a configuration of transformers says it"""
