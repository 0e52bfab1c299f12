"""Multi-head attention whose inner width may differ from that of its inputs, for attentions that lost
heads."""

from functools import cache
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiheadAttention(nn.MultiheadAttention):
    """torch's nn.MultiheadAttention with as many heads of `head_dim` features as its weights have rows
    for.

        softmax(Q K^T / sqrt(head_dim) + mask) V   for each head, then out_proj

    Parameters, arguments and results are torch's. Nested tensors and torch's fused inference path are not
    supported. `adopt` makes it from a module of torch's.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attended values and, if asked for, weights.

        Returns [L, N, E] ([N, L, E] if batch_first, [L, E] unbatched), and weights [N, (heads,) L, S].
        is_causal is torch's hint that attn_mask is causal; the mask itself is used.
        Raises RuntimeError if is_causal is given without the mask.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask; pass the mask too")
        batched = query.dim() == 3
        first = self.batch_first and batched
        if batched:
            ours = [x if first else x.transpose(0, 1) for x in (query, key, value)]
        else:
            ours = [x.unsqueeze(0) for x in (query, key, value)]
        q, k, v = self._project(*ours)
        mask = self._make_mask(
            q,
            k,
            attn_mask,
            key_padding_mask if batched or key_padding_mask is None else key_padding_mask.unsqueeze(0),
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return (y if first else y.transpose(0, 1) if batched else y.squeeze(0)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values by head: [N, heads, L or S, head_dim]."""
        packed = self.in_proj_weight
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if packed is None
            else packed.chunk(3)
        )
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, more.expand(len(x), -1, -1)], 1)
                for x, more in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        return [x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for x in (q, k, v)]

    def _make_mask(
        self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None
    ) -> Tensor | None:
        """The mask that is added to the scores [N, heads, L, S]; keys that the module itself adds are
        never masked."""
        found = None
        if attn_mask is not None:
            found = _as_additive_mask(
                attn_mask if attn_mask.dim() == 2 else attn_mask.view(*q.shape[:2], *attn_mask.shape[1:]), q
            )
        if padding is not None:
            own = _as_additive_mask(padding, q)[:, None, None]
            found = own if found is None else found + own
        return None if found is None else F.pad(found, (0, k.shape[2] - found.shape[-1]))


def _as_additive_mask(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to be added to scores: -inf where a boolean mask is true."""
    if mask.dtype != torch.bool:
        return mask.to(like)
    zeros = torch.zeros_like(mask, dtype=like.dtype, device=like.device)
    return zeros.masked_fill(mask.to(like.device), -torch.inf)


_WRITTEN_BY_PYTHON = frozenset(
    "__static_attributes__ __firstlineno__ __dict__ __weakref__ "
    "__annotate__ __annotate_func__ __annotations_cache__".split()
)
"""names that a class statement defines by itself"""
_SAFE_TO_OVERRIDE = frozenset(
    "__init__ __module__ __doc__ __annotations__ __constants__ __setstate__ "
    "_reset_parameters extra_repr".split()
)
"""names that a subclass of torch's may define without changing what it computes"""


def can_adopt(module: nn.Module) -> bool:
    """Whether `adopt` takes a module: torch's MultiheadAttention, or a subclass that computes the same."""
    kind = type(module)
    if not isinstance(module, nn.MultiheadAttention) or isinstance(module, MultiheadAttention):
        return False
    if "parametrizations" in module._modules:
        return False
    subclasses = kind.__mro__[: kind.__mro__.index(nn.MultiheadAttention)]
    return not any(_overrides_computation(each) for each in subclasses)


def _overrides_computation(kind: type[Any]) -> bool:
    """Whether a subclass of torch's redefines what torch's class, nn.Module or our class defines."""
    known = {name for base in MultiheadAttention.__mro__[:-1] for name in vars(base)}
    return bool(vars(kind).keys() & known - _SAFE_TO_OVERRIDE - _WRITTEN_BY_PYTHON)


def adopt(model: nn.Module, name: str) -> None:
    """Turn a MultiheadAttention of torch's into one of ours, in place. Its tensors, hooks and name stay.

    name: of the module in the model. A subclass keeps what it adds. Layers around it that may run it on
    torch's fused path (TransformerEncoderLayer) no longer do. Raises TypeError if `can_adopt` says no.
    """
    module = model.get_submodule(name)
    if isinstance(module, MultiheadAttention):
        return
    if not can_adopt(module):
        what = type(module).__name__
        raise TypeError(f"'{name}' is a {what}, which does not compute as a MultiheadAttention of torch")
    assert isinstance(module, nn.MultiheadAttention)
    module.__class__ = _make_class(type(module))  # type: ignore[arg-type]
    module._qkv_same_embed_dim = False
    for outer in model.modules():
        if isinstance(outer, nn.TransformerEncoder) and any(inner is module for inner in outer.modules()):
            outer.use_nested_tensor = False


def original_class(kind: type[Any]) -> type[Any]:
    """The class that a module of this class had before it was adopted; any other class as it is."""
    if not issubclass(kind, MultiheadAttention):
        return kind
    return nn.MultiheadAttention if kind is MultiheadAttention else kind.__bases__[1]


@cache
def _make_class(kind: type[Any]) -> type[Any]:
    """Our class in place of torch's or of a subclass of torch's."""
    if kind is nn.MultiheadAttention:
        return MultiheadAttention
    own = {"__module__": kind.__module__, "__reduce_ex__": _reduce_module}
    return type(kind.__name__, (MultiheadAttention, kind), own)


def _reduce_module(module: nn.Module, _protocol: SupportsIndex) -> tuple[Any, ...]:
    """How to copy or pickle a module whose class no Python module holds under its name."""
    return _make_empty, (original_class(type(module)),), module.__dict__


def _make_empty(kind: type[Any]) -> nn.Module:
    ours: type[nn.Module] = _make_class(kind)  # type: ignore[arg-type]
    return ours.__new__(ours)
