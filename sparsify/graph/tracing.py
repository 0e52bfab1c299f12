"""One forward call, watched operator by operator: what happens to the elements happens to their labels.

The model runs once in eval mode with example inputs, on real or meta tensors. Composite operators are seen as the few
dozen primitive ones that they are made of (attention as matrix products and a softmax, an LSTM as products and chunks).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from sparsify.graph.call import Inputs, call, tensors
from sparsify.graph.labels import Labels
from sparsify.graph.locating import Located
from sparsify.graph.operators import (
    ALIKE,
    ALONG,
    FRESH,
    LIKE,
    MOVES,
    NORMS,
    POINTWISE,
    REDUCTIONS,
    SPATIAL,
    argument,
    dimension,
    flattened,
    moved_by,
    primitive,
)
from sparsify.graph.rules import RULES, Op, along, batch_norm, reduction, spatial
from sparsify.graph.shadow import Algebra, Shadow, first, varying
from sparsify.models import attention

COMPARING = (nn.RMSNorm, nn.Transformer)
"""modules that compare the width of what comes in with an attribute, in no operator"""


class Watch(Located):
    """Follows labels through every operator that runs under it."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels = labels
        self.algebra = Algebra(labels)
        self.shadows: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.names: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.hidden: dict[str, Tensor] = {}
        self.comparing: set[str] = set()

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
            if isinstance(module, COMPARING):
                self.comparing.add(name)
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
        for aspect in found.over:
            self.labels.statistics(aspect.numpy())
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

    def entered(self, name: str, args: Any, kwargs: Any) -> None:
        for value in (*args, *kwargs.values()) if name in self.comparing else ():
            if isinstance(value, Tensor):
                self.sized(self.of(value))

    def sized(self, shadow: Shadow) -> Shadow:
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
                strange = [aspect for aspect in shadow.aspects if not varying(aspect) <= lies]
                if strange and not self._filled(target, strange):
                    self._fix(self.of(value), f"it is written into a part of another tensor ({name})")

    def _filled(self, part: Tensor, aspects: Sequence[Tensor]) -> bool:
        """Labels written into a part of a tensor that was made to be filled: it has them from now on, along whole dimensions."""
        base = part._base
        if base is None:
            return False
        whole, made = self.of(base), []
        for aspect in aspects:
            places = {d: [e for e in whole.soft if (base.stride(e), base.shape[e]) == (part.stride(d), part.shape[d])] for d in varying(aspect)}
            if any(len(found) != 1 for found in places.values()):
                return False
            order = sorted(places, key=lambda d: places[d][0])
            lengths = {places[d][0]: part.shape[d] for d in order}
            made.append(aspect.permute(*order, *(d for d in range(aspect.dim()) if d not in places)).reshape([lengths.get(e, 1) for e in range(base.dim())]))
        taken = {d for aspect in made for d in varying(aspect)}
        self.shadows[base] = Shadow(whole.shape, self.algebra.merged([*whole.aspects, *made]), whole.parameter, whole.soft - taken)
        return True

    def _initial(self, name: str, out: Any) -> Shadow | None:
        """A tensor made from nothing: of any size where it is the same all over (a trial shows whether the model takes the
        size from elsewhere), else of fixed size. A recurrent module makes the state that it starts from."""
        units = self.hidden.get(self.within[-1]) if self.within else None
        if units is None or not isinstance(out, Tensor) or not out.dim() or out.shape[-1] != len(units):
            return Shadow(tuple(out.shape), soft=frozenset(range(out.dim()))) if name in ALIKE else None
        return Shadow(tuple(out.shape), (units.view([1] * (out.dim() - 1) + [-1]),))

    def _fix(self, shadow: Shadow, reason: str) -> None:
        for aspect in shadow.aspects:
            self.labels.fix(aspect.numpy(), reason)

    def _rule(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> Shadow | list[Shadow] | None:
        a = self.algebra
        tensors_in = [v for v in flattened(args, kwargs) if isinstance(v, Tensor)]
        if not tensors_in or name in FRESH:
            return self._initial(name, out)
        if name == "copy":
            return a.pointwise(tuple(out.shape), [Shadow((1,) * out.dim()), self.of(args[1])])
        if name in LIKE or name in ("zero", "fill"):
            return self.of(tensors_in[0])
        if name in MOVES:
            rest = args[1:]
            if name in ("detach", "alias", "clone", "contiguous", "_to_copy", "lift_fresh"):
                return self.of(tensors_in[0])
            if "channel_shuffle" in name:
                a.blocks(self.of(args[0]), 1, args[0].shape[1] // args[1], "it is shuffled in unequal groups")
            own = {k: v for k, v in kwargs.items() if k in ("dims", "dim", "implicit")}
            shadow = self.of(args[0])
            if name == "roll":
                dims = argument(args, kwargs, 2, "dims", None) or range(args[0].dim())
                shadow = a.hold_all(shadow, {dimension(d, args[0]) for d in dims}, "it is rolled by a fixed number of places")
            moved = a.moved(shadow, lambda t: moved_by(func, t, rest, own))
            return self.sized(moved) if name in ("view", "_unsafe_view", "reshape", "_reshape_alias") else moved
        op = Op(name, args, kwargs, out)
        if name in RULES:
            return RULES[name](self, op)
        if name in NORMS:
            return batch_norm(self, op)
        if name in SPATIAL:
            return spatial(self, args[0], out)
        if name in REDUCTIONS:
            return reduction(self, op)
        if name in ALONG:
            return along(self, op)
        if torch.Tag.pointwise in func.tags or name in POINTWISE:
            shape = tuple(out.shape) if isinstance(out, Tensor) else tuple(out[0].shape)
            return a.pointwise(shape, [self.of(t) for t in tensors_in])
        for tensor in tensors_in:
            self._fix(self.of(tensor), f"it passes through '{name}', which is not understood")
        return None


def watch(model: nn.Module, inputs: Inputs) -> Labels:
    """Run the model under watch, in eval mode and, where it can, in train mode (auxiliary heads run only there).

    The labels of its parameters and buffers and everything learnt about them. The model's running statistics move, and
    its attentions become the ones that a cut would make of them, which write no number of heads into a mask: pass a copy.
    """
    for name in [name for name, module in model.named_modules() if type(module) is nn.MultiheadAttention]:
        attention.adopt(model, name)
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
