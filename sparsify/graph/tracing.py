"""One forward call, watched operator by operator: what happens to the elements happens to their labels.

The model runs once in eval mode with example inputs, on real or meta tensors. Composite operators are seen as the few
dozen primitive ones that they are made of (attention as matrix products and a softmax, an LSTM as products and chunks).
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from sparsify.graph.call import Inputs, call, tensors
from sparsify.graph.labels import Labels
from sparsify.graph.shadow import Algebra, Shadow, first, varying

MOVES = frozenset(
    ["view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "numpy_T", "unsqueeze", "squeeze", "expand", "flip", "roll", "repeat", "diagonal", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "repeat_interleave", "detach", "alias", "clone", "contiguous", "_to_copy", "lift_fresh", "unfold", "view_as_real", "view_as_complex", "_conj", "movedim", "swapaxes"]
)
SPATIAL = frozenset(
    ["max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_linear1d", "upsample_bicubic2d", "_upsample_bicubic2d_aa", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "mkldnn_max_pool2d", "mkldnn_max_pool3d", "grid_sampler_2d"]
)
REDUCTIONS = frozenset(["mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "logsumexp", "prod", "all", "any", "norm", "linalg_vector_norm", "nansum", "argmax", "argmin"])
ALONG = frozenset(["_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", "sort", "topk", "logcumsumexp", "glu"])
NORMS = frozenset(
    ["native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm", "_batch_norm_with_update", "miopen_batch_norm", "batch_norm"]
)
POINTWISE = frozenset(
    "where _prelu_kernel masked_fill lerp addcmul addcdiv clamp clamp_min clamp_max hardswish hardsigmoid hardtanh silu gelu mish elu celu selu "
    "leaky_relu rrelu_with_noise softplus softshrink hardshrink threshold log_sigmoid_forward glu_jvp fmod remainder nan_to_num".split()
)
LIKE = frozenset(["zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli", "native_dropout", "dropout", "logical_not"])
FRESH = frozenset(["arange", "zeros", "ones", "full", "empty", "scalar_tensor", "rand", "randn", "eye", "linspace", "tril_indices", "triu_indices", "new_zeros", "new_ones", "new_full", "new_empty", "empty_strided", "new_empty_strided", "randint"])


@dataclass(frozen=True)
class Op:
    """One operator that ran."""

    name: str
    args: Any
    kwargs: Mapping[str, Any]
    out: Any


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows labels through every operator that runs under it."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = labels
        self.algebra = Algebra(labels)
        self.shadows: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.names: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.within: list[str] = []
        self.hidden: dict[str, Tensor] = {}

    def enter_tensor(self, name: str, tensor: Tensor) -> None:
        """Give a parameter or buffer its labels: one per index of each dimension."""
        aspects = []
        for dim, size in enumerate(tensor.shape):
            axis = self.labels.new(name, dim, size)
            if size > 1:
                aspects.append(torch.arange(axis.first, axis.first + size).view([-1 if d == dim else 1 for d in range(tensor.dim())]))
        self.shadows[tensor] = Shadow(tuple(tensor.shape), tuple(aspects), parameter=True)
        self.names[tensor] = name

    def enter_model(self, model: nn.Module) -> None:
        """Labels for every parameter and saved buffer; what is not saved (a table of rotary frequencies) is a constant."""
        saved = set(model.state_dict(keep_vars=True))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in saved:
                self.enter_tensor(name, tensor)
        for name, module in model.named_modules():
            if isinstance(module, nn.RNNBase) and not module.proj_size:
                self._enter_recurrent(name, module)

    def _enter_recurrent(self, name: str, module: nn.RNNBase) -> None:
        """A hidden unit is one index of every gate, layer and direction: one `hidden_size` holds for all of them.

        The states that such a module starts from are made of that size too. Source: Wen et al., arXiv:1709.05027 (ISS).
        """
        units = [self.of(p).aspects for n, p in module.named_parameters(recurse=False) if n.startswith("weight_hh")]
        columns = [next(a.flatten() for a in aspects if 1 in varying(a)) for aspects in units if module.hidden_size > 1]
        for other in columns[1:]:
            self.algebra.join(columns[0], other)
        if columns:
            self.hidden[name] = columns[0]

    def of(self, tensor: Tensor) -> Shadow:
        name: str | None = self.names.get(tensor)  # type: ignore[no-untyped-call]
        if name is not None:
            self.labels.used.add(name)
        found: Shadow = self.shadows[tensor] if tensor in self.shadows else Shadow(tuple(tensor.shape))
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        out = self.compute(name, func, args, kwargs)
        if name.endswith("_") and not name.startswith("_"):
            name = name[:-1]
            self._written(name, args)
        result = self._rule(name, func, args, kwargs, out)
        if isinstance(out, Tensor):
            self.shadows[out] = result if isinstance(result, Shadow) else Shadow(tuple(out.shape))
        elif isinstance(out, tuple | list):
            shadows = result if isinstance(result, list) else [result]
            for value, shadow in zip(out, [*shadows, *[None] * len(out)], strict=False):
                if isinstance(value, Tensor):
                    self.shadows[value] = shadow if isinstance(shadow, Shadow) else Shadow(tuple(value.shape))
        return out

    @contextmanager
    def located(self, model: nn.Module) -> Iterator[None]:
        """Know, while the model runs, which of its modules is running."""
        names = {module: name for name, module in model.named_modules()}

        def enter(module: nn.Module, _args: Any) -> None:
            self.within.append(names[module])

        def leave(_module: nn.Module, _args: Any, _result: Any) -> None:
            self.within.pop()

        handles = [h for m in names for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave, always_call=True))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _sized(self, shadow: Shadow) -> Shadow:
        """Remember where a shape was written down: a module's attribute may hold it."""
        if self.within:
            for aspect in shadow.aspects:
                for d in varying(aspect):
                    self.labels.sized(self.within[-1], first(aspect, varying(aspect) - {d}).flatten().numpy())
        return shadow

    def compute(self, _name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator."""
        return func(*args, **kwargs)

    def _written(self, name: str, args: Any) -> None:
        """An operator wrote into a part of a tensor. Labels that lie there already are joined with what is written; labels
        that come to lie where none were can no longer be followed."""
        target = args[0] if args else None
        if not isinstance(target, Tensor) or name in ("zero", "fill") or target.untyped_storage().nbytes() <= target.numel() * target.element_size():
            return
        own = self.of(target)
        lies = {d for aspect in own.aspects for d in varying(aspect)}
        for value in args[1:]:
            if isinstance(value, Tensor):
                shadow = self.algebra.pointwise(own.shape, [self.of(value), Shadow((1,) * len(own.shape), own.aspects)])
                if any(not varying(aspect) <= lies for aspect in shadow.aspects):
                    self._fix(self.of(value), f"it is written into a part of another tensor ({name})")

    def _initial(self, out: Any) -> Shadow | None:
        """A tensor made from nothing: of fixed size, unless a recurrent module makes the state that it starts from."""
        units = self.hidden.get(self.within[-1]) if self.within else None
        if units is None or not isinstance(out, Tensor) or not out.dim() or out.shape[-1] != len(units):
            return None
        return Shadow(tuple(out.shape), (units.view([1] * (out.dim() - 1) + [-1]),))

    def _fix(self, shadow: Shadow, reason: str) -> None:
        for aspect in shadow.aspects:
            self.labels.fix(aspect.numpy(), reason)

    def _rule(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Shadow | list[Shadow] | None:
        a = self.algebra
        given = [v for v in _flat(args, kwargs) if isinstance(v, Tensor)]
        if not given or name in FRESH:
            return self._initial(out)
        if name == "copy":
            return a.pointwise(tuple(out.shape), [Shadow((1,) * out.dim()), self.of(args[1])])
        if name in LIKE or name in ("zero", "fill"):
            return self.of(given[0])
        if name in MOVES:
            rest = args[1:]
            if name in ("detach", "alias", "clone", "contiguous", "_to_copy", "lift_fresh"):
                return self.of(given[0])
            if "channel_shuffle" in name:
                a.blocks(self.of(args[0]), 1, args[0].shape[1] // args[1], "it is shuffled in unequal groups")
            own = {k: v for k, v in kwargs.items() if k in ("dims", "dim", "implicit")}
            shadow = self.of(args[0])
            if name == "roll":
                dims = _get(args, kwargs, 2, "dims", None) or range(args[0].dim())
                shadow = a.hold_all(shadow, {_dim(d, args[0]) for d in dims}, "it is rolled by a fixed number of places")
            moved = a.moved(shadow, lambda t: _run(func, t, rest, own))
            return self._sized(moved) if name in ("view", "_unsafe_view", "reshape", "_reshape_alias") else moved
        handler: Callable[..., Any] | None = getattr(self, f"_op_{name}", None)
        if handler is not None:
            made: Shadow | list[Shadow] = handler(Op(name, args, kwargs, out))
            return made
        if name in NORMS:
            return self._batch_norm(args)
        if name in SPATIAL:
            return self._spatial(args[0], out)
        if name in REDUCTIONS:
            return self._reduction(Op(name, args, kwargs, out))
        if name in ALONG:
            return self._along(Op(name, args, kwargs, out))
        if torch.Tag.pointwise in func.tags or name in POINTWISE:
            shape = tuple(out.shape) if isinstance(out, Tensor) else tuple(out[0].shape)
            return a.pointwise(shape, [self.of(t) for t in given])
        for tensor in given:
            self._fix(self.of(tensor), f"it passes through '{name}', which is not understood")
        return None

    # products

    def _op_mm(self, op: Op) -> Shadow:
        return self.algebra.product(self.of(op.args[0]), self.of(op.args[1]), set(), op.out.shape)

    def _op_addmm(self, op: Op) -> Shadow:
        made = self.algebra.product(self.of(op.args[1]), self.of(op.args[2]), set(), op.out.shape)
        return self.algebra.pointwise(op.out.shape, [made, self.of(op.args[0])])

    def _op_bmm(self, op: Op) -> Shadow:
        return self.algebra.product(self.of(op.args[0]), self.of(op.args[1]), {0}, op.out.shape)

    def _op_baddbmm(self, op: Op) -> Shadow:
        made = self.algebra.product(self.of(op.args[1]), self.of(op.args[2]), {0}, op.out.shape)
        return self.algebra.pointwise(op.out.shape, [made, self.of(op.args[0])])

    def _op_mv(self, op: Op) -> Shadow:
        column = self.algebra.moved(self.of(op.args[1]), lambda t: t.unsqueeze(1))
        made = self.algebra.product(self.of(op.args[0]), column, set(), (op.out.shape[0], 1))
        return self.algebra.moved(made, lambda t: t.squeeze(1))

    def _op_linear(self, op: Op) -> Shadow:
        weight = self.algebra.moved(self.of(op.args[1]), lambda t: t.t())
        x = self.of(op.args[0])
        lead = (1,) * (len(x.shape) - 2)
        wide = Shadow(lead + weight.shape, tuple(v.view(lead + tuple(v.shape)) for v in weight.aspects), weight.parameter)
        made = self.algebra.product(x, wide, set(range(len(lead))), op.out.shape)
        return self.algebra.pointwise(op.out.shape, [made, self.of(op.args[2])]) if len(op.args) > 2 and op.args[2] is not None else made

    def _op_convolution(self, op: Op) -> Shadow:
        x, weight, bias, *_, transposed, _, groups = op.args
        return self.algebra.convolution(self.of(x), self.of(weight), None if bias is None else self.of(bias), transposed, groups, op.out.shape)

    def _op_embedding(self, op: Op) -> Shadow:
        table = self.algebra.hold_all(self.of(op.args[0]), {0}, "its rows are looked up by number")
        lead = (1,) * (op.out.dim() - 1)
        return Shadow(tuple(op.out.shape), tuple(v.view((*lead, -1)) for v in table.aspects))

    # normalisations

    def _batch_norm(self, args: Any) -> Shadow:
        x = self.of(args[0])
        rank = len(x.shape)
        others = [self._at(v, 1, rank) for v in args[1:5] if isinstance(v, Tensor)]
        return self.algebra.pointwise(x.shape, [x, *others])

    def _op_native_layer_norm(self, op: Op) -> Shadow:
        x = self.of(op.args[0])
        over = axes_of("native_layer_norm", op.args, op.kwargs)
        if op.args[2] is None:
            self._sized(x)  # without a weight, the module's attribute is the only place of its shape
        for aspect in x.aspects:
            if varying(aspect) & over:
                self.labels.statistics(aspect.numpy())
        return self.algebra.pointwise(x.shape, [x, *[self.of(v) for v in op.args[2:4] if isinstance(v, Tensor)]])

    def _op_native_group_norm(self, op: Op) -> Shadow:
        x, groups = self.of(op.args[0]), op.args[6]
        self.algebra.blocks(x, 1, x.shape[1] // groups, "it falls into unequal groups of a normalisation")
        for aspect in x.aspects:
            if 1 in varying(aspect):
                self.labels.statistics(aspect.numpy())
        return self.algebra.pointwise(x.shape, [x, *[self._at(v, 1, len(x.shape)) for v in op.args[1:3] if isinstance(v, Tensor)]])

    def _at(self, vector: Tensor, dim: int, rank: int) -> Shadow:
        """The shadow of a vector, laid along one dimension of a tensor of so many dimensions."""
        return self.algebra.moved(self.of(vector), lambda t: t.reshape([-1 if d == dim else 1 for d in range(rank)]))

    # taking apart and putting together

    def _op_split(self, op: Op) -> list[Shadow]:
        dim = _dim(_get(op.args, op.kwargs, 2, "dim", 0), op.args[0])
        sizes = op.args[1] if isinstance(op.args[1], list | tuple) else [t.shape[dim] for t in op.out]
        return self._parts(op.args[0], dim, sizes)

    _op_split_with_sizes = _op_unsafe_split = _op_unsafe_split_with_sizes = _op_split_with_sizes_copy = _op_split

    def _op_chunk(self, op: Op) -> list[Shadow]:
        dim = _dim(_get(op.args, op.kwargs, 2, "dim", 0), op.args[0])
        return self._parts(op.args[0], dim, [t.shape[dim] for t in op.out])

    _op_unsafe_chunk = _op_chunk

    def _parts(self, tensor: Tensor, dim: int, sizes: Sequence[int]) -> list[Shadow]:
        shadow = self.of(tensor)
        if len(sizes) > 1:
            self.algebra.blocks(shadow, dim, sizes[0] if len(set(sizes)) == 1 else 0, "it is split at fixed places")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        parts = [self.algebra.moved(shadow, lambda t, s=s, n=n: t.narrow(dim, s, n)) for s, n in zip(starts, sizes, strict=True)]  # type: ignore[misc]
        return [self._sized(part) for part in parts]

    def _op_unbind(self, op: Op) -> list[Shadow]:
        dim = _dim(_get(op.args, op.kwargs, 1, "dim", 0), op.args[0])
        shadow = self.of(op.args[0])
        for aspect in shadow.aspects:
            if dim in varying(aspect):
                self.algebra.hold(aspect, {dim}, "it is taken apart index by index")
        return [self.algebra.moved(shadow, lambda t, i=i: t.select(dim, i)) for i in range(len(op.out))]  # type: ignore[misc]

    def _op_select(self, op: Op) -> Shadow:
        shadow, dim = self.of(op.args[0]), _dim(op.args[1], op.args[0])
        for aspect in shadow.aspects:
            if dim in varying(aspect):
                self.algebra.hold(aspect, {dim}, "a fixed index of it is taken")
        return self.algebra.moved(shadow, lambda t: t.select(dim, op.args[2]))

    def _op_slice(self, op: Op) -> Shadow:
        shadow, dim = self.of(op.args[0]), _dim(_get(op.args, op.kwargs, 1, "dim", 0), op.args[0])
        start, step = _get(op.args, op.kwargs, 2, "start", None) or 0, _get(op.args, op.kwargs, 4, "step", 1)
        size, kept = op.args[0].shape[dim], op.out.shape[dim]
        start = start + size if start < 0 else start
        if kept < size:
            whole = kept and size % kept == 0 and (start % kept == 0 if step == 1 else size == kept * step)
            if step == 1:
                self.algebra.blocks(shadow, dim, kept if whole else 0, "it is sliced at a fixed place")
            else:
                self._strided(shadow, dim, step if whole else 0)
        return self.algebra.moved(shadow, lambda t: t.narrow(dim, start, 1 + (kept - 1) * step)[(slice(None),) * dim + (slice(None, None, step),)])

    def _strided(self, shadow: Shadow, dim: int, step: int) -> None:
        for aspect in shadow.aspects:
            if dim not in varying(aspect):
                continue
            if step < 1:
                self.algebra.hold(aspect, {dim}, "it is sliced at a fixed place")
            else:
                parts = torch.unflatten(aspect, dim, (-1, step))
                self.algebra.join(parts, parts.narrow(dim + 1, 0, 1))

    def _op_as_strided(self, op: Op) -> Shadow:
        x = op.args[0]

        def change(labels: Tensor) -> Tensor:
            own = torch.empty_strided(x.shape, x.stride(), dtype=labels.dtype).copy_(labels)
            return own.as_strided(op.out.shape, op.out.stride(), 0)

        return self.algebra.moved(self.of(x), change)

    def _op_cat(self, op: Op) -> Shadow:
        parts = [t for t in op.args[0] if t.numel() or t.dim() > 1]
        dim = _dim(_get(op.args, op.kwargs, 1, "dim", 0), op.out)
        shadows = [self.of(t) for t in parts]
        along = [next((v for v in s.aspects if dim in varying(v)), None) for s in shadows]
        others = [
            Shadow((*s.shape[:dim], 1, *s.shape[dim + 1 :]), tuple(v for v in s.aspects if dim not in varying(v)), s.parameter)
            for s in shadows
        ]
        flat = (*op.out.shape[:dim], 1, *op.out.shape[dim + 1 :])
        made = list(self.algebra.pointwise(flat, others).aspects)
        if any(v is not None for v in along) or any(n.aspects for n in shadows):
            pieces = [torch.zeros([1] * op.out.dim(), dtype=torch.int64) if v is None else v for v in along]
            if any(v is not None for v in along):
                shape = [max(p.shape[d] for p in pieces) for d in range(op.out.dim())]
                wide = [p.expand([s.shape[d] if d == dim else shape[d] for d in range(op.out.dim())]) for p, s in zip(pieces, shadows, strict=True)]
                made.append(torch.cat(wide, dim))
        return Shadow(tuple(op.out.shape), tuple(v for v in made if varying(v)), all(s.parameter for s in shadows))

    def _op_stack(self, op: Op) -> Shadow:
        dim = _dim(_get(op.args, op.kwargs, 1, "dim", 0), op.out)
        made = self.algebra.pointwise(tuple(n for d, n in enumerate(op.out.shape) if d != dim), [self.of(t) for t in op.args[0]])
        return Shadow(tuple(op.out.shape), tuple(v.unsqueeze(dim) for v in made.aspects), made.parameter)

    def _op_constant_pad_nd(self, op: Op) -> Shadow:
        shadow, pads = self.of(op.args[0]), list(op.args[1])
        kept = []
        for aspect in shadow.aspects:
            for i in range(len(pads) // 2):
                dim = len(shadow.shape) - 1 - i
                if dim in varying(aspect) and (pads[2 * i] or pads[2 * i + 1]):
                    edges = [aspect.new_zeros([n if d != dim else max(p, 0) for d, n in enumerate(aspect.shape)]) for p in pads[2 * i : 2 * i + 2]]
                    aspect = torch.cat([edges[0], aspect, edges[1]], dim)
            kept.append(aspect)
        return Shadow(tuple(op.out.shape), tuple(kept), shadow.parameter)

    def _op_index(self, op: Op) -> Shadow:
        shadow = self.of(op.args[0])
        indexed = {d for d, i in enumerate(op.args[1]) if i is not None}
        held = self.algebra.hold_all(shadow, indexed, "fixed indices of it are taken")
        index = [None if i is None else torch.zeros(i.shape, dtype=torch.int64) for i in op.args[1]]
        return self.algebra.moved(held, lambda t: torch.ops.aten.index.Tensor(t, index))

    def _op_index_select(self, op: Op) -> Shadow:
        held = self.algebra.hold_all(self.of(op.args[0]), {_dim(op.args[1], op.args[0])}, "fixed indices of it are taken")
        return self.algebra.moved(held, lambda t: t.narrow(_dim(op.args[1], op.args[0]), 0, 1).expand(op.out.shape))

    def _op_gather(self, op: Op) -> Shadow:
        held = self.algebra.hold_all(self.of(op.args[0]), set(range(op.out.dim())), "elements of it are gathered")
        return Shadow(tuple(op.out.shape), held.aspects)

    # across elements

    def _spatial(self, tensor: Tensor, out: Any) -> Shadow:
        shadow = self.of(tensor)
        result = out if isinstance(out, Tensor) else out[0]
        moved = {d for d in range(tensor.dim()) if tensor.shape[d] != result.shape[d]} | set(range(min(2, tensor.dim() - 1), tensor.dim()))
        held = self.algebra.hold_all(shadow, moved, "a window slides over it")
        return Shadow(tuple(result.shape), held.aspects, shadow.parameter)

    def _reduction(self, op: Op) -> Shadow | list[Shadow]:
        shadow, rank = self.of(op.args[0]), op.args[0].dim()
        result = op.out if isinstance(op.out, Tensor) else op.out[0]
        if len(op.args) > 1 and isinstance(op.args[1], Tensor):  # max(a, b), elementwise
            return self.algebra.pointwise(result.shape, [shadow, self.of(op.args[1])])
        over = axes_of(op.name, op.args, op.kwargs)
        if op.name in ("argmax", "argmin"):
            self.algebra.hold_all(shadow, over, "the place of its largest element is taken")
        keepdim = result.dim() == rank and rank > 0
        made = self.algebra.reduced(shadow, over, keepdim, result.shape)
        return made if isinstance(op.out, Tensor) else [made for _ in op.out]

    def _along(self, op: Op) -> Shadow | list[Shadow]:
        shadow = self.of(op.args[0])
        if op.name == "glu":
            dim = _dim(_get(op.args, op.kwargs, 1, "dim", -1), op.args[0])
            one, two = self._parts(op.args[0], dim, [op.out.shape[dim]] * 2)
            return self.algebra.pointwise(op.out.shape, [one, two])
        (dim,) = axes_of(op.name, op.args, op.kwargs)
        if "softmax" in op.name:
            for aspect in shadow.aspects:
                if dim in varying(aspect):
                    self.labels.statistics(aspect.numpy())
            return shadow
        held = self.algebra.hold_all(shadow, {dim}, f"'{op.name}' runs along it")
        result = op.out if isinstance(op.out, Tensor) else op.out[0]
        made = Shadow(tuple(result.shape), held.aspects)
        return made if isinstance(op.out, Tensor) else [made for _ in op.out]


def _run(func: Any, tensor: Tensor, rest: Any, kwargs: Any) -> Tensor:
    """A moving operator on labels: `reshape` in place of `view`, since labels are expanded views."""
    name = func._schema.name.split("::")[1]
    if name in ("view", "_unsafe_view", "_reshape_alias", "reshape"):
        return tensor.reshape(rest[0])
    result: Tensor = func(tensor, *rest, **kwargs)
    return result


def _flat(args: Any, kwargs: Mapping[str, Any]) -> Iterator[Any]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _get(args: Any, kwargs: Mapping[str, Any], at: int, name: str, default: Any) -> Any:
    return args[at] if len(args) > at else kwargs.get(name, default)


def _dim(dim: int, tensor: Tensor) -> int:
    return dim % max(tensor.dim(), 1)


def axes_of(name: str, args: Any, kwargs: Mapping[str, Any]) -> set[int]:
    """The dimensions that a reduction, a softmax or a normalisation runs over."""
    rank = args[0].dim()
    if name == "native_layer_norm":
        return set(range(rank - len(args[1]), rank))
    if name == "native_group_norm":
        return {1}
    if name in ALONG:
        return {_dim(_get(args, kwargs, 2 if name == "topk" else 1, "dim", -1), args[0])}
    dims = _get(args, kwargs, 2 if name in ("norm", "linalg_vector_norm") else 1, "dim", None)
    if dims is None or dims == [] or isinstance(dims, Tensor):
        return set(range(rank))
    return {_dim(d, args[0]) for d in (dims if isinstance(dims, list | tuple) else [dims])}


@contextmanager
def primitive(model: nn.Module) -> Iterator[None]:
    """Let torch take the plain path: no fused attention, no fused recurrent layers."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*TF32.*")  # torch says it whenever the oneDNN flags are set
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def watch(model: nn.Module, inputs: Inputs) -> Labels:
    """Run the model under watch, in eval mode and, where it can, in train mode (auxiliary heads run only there).

    The labels of its parameters and buffers and everything learnt about them. The model's running statistics move:
    pass a copy.
    """
    labels = Labels()
    mode = Watch(labels)
    mode.enter_model(model)
    with mode.located(model):
        for training in (False, True):
            model.train(training)
            try:
                with primitive(model), torch.random.fork_rng(devices=[]), mode:
                    output = call(model, inputs)
            except Exception:
                if not training:
                    raise
                break
            for tensor in tensors(output):
                for aspect in mode.of(tensor).aspects:
                    labels.fix(aspect.numpy(), "it feeds the network's output")
    model.eval()
    return labels
