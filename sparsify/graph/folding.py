"""Constants: what a removed unit still emitted, folded into its consumers.

A filter of zeros before a normalisation with a shift, or with a bias of its own, is dead and yet emits a constant. Its
consumer's output o loses b_o = mean over examples and positions of sum over removed constant channels c of (W[o,c] * x_c).
b_o is added to the consumer's bias or, where a BatchNorm follows at once, taken from its running mean. That is exact where
the consumer does not pad (a 1x1 convolution, a Linear layer); next to the zeros of a padding it is the mean.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sparsify.graph.call import Inputs, call
from sparsify.graph.cutting import Keep, dropped, gone_branches
from sparsify.graph.silencing import silenced
from sparsify.plan import ModelMap
from sparsify_schemas.cuts import Fold

FLAT = 1e-6
"""a channel is constant when it varies by no more than this share of its largest value"""


def fold(dense: nn.Module, thin: nn.Module, map: ModelMap, keep: Keep, inputs: Inputs) -> tuple[Fold, ...]:
    """Give the cut model what removed constant channels contributed; the log of it, in order.

    Consumers that have neither a bias nor a BatchNorm behind them, and grouped convolutions, are passed over.
    """
    consumers = dict(_lost(dense, map, keep))
    if not consumers:
        return ()
    copy = deepcopy(dense).eval()
    calls = _Calls(copy, consumers)
    sums = [s for b in gone_branches(map, keep) for s in b.sums]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with silenced(copy, sums):
            call(copy, inputs)
        return tuple(_folded(copy, thin, map, keep, calls))


class _Calls:
    """What went into each consumer, and which BatchNorm took its result."""

    def __init__(self, model: nn.Module, consumers: Mapping[str, list[int]]) -> None:
        self.lost = consumers
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in consumers}
        self.behind: dict[str, str] = {}
        self._made: dict[int, tuple[str, Tensor]] = {}
        for name, module in model.named_modules():
            if name in consumers:
                module.register_forward_hook(partial(self._ran, name))
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.register_forward_pre_hook(partial(self._normalised, name))

    def _ran(self, name: str, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.inputs[name].append(args[0])
        self._made[id(output)] = (name, output)

    def _normalised(self, name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found = self._made.get(id(args[0]))
        if found is not None:
            self.behind[found[0]] = name


def _lost(dense: nn.Module, map: ModelMap, keep: Keep) -> Iterable[tuple[str, list[int]]]:
    """(consumer, its input channels that leave) for every plain convolution and Linear layer."""
    for (tensor, dim, role), gone in dropped(map, keep).items():
        name, _, attribute = tensor.rpartition(".")
        if role != "in" or attribute not in ("weight", "weight_orig") or dim != 1 or not len(gone):
            continue
        module = dense.get_submodule(name)
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1):
            yield name, gone.tolist()


def _folded(dense: nn.Module, thin: nn.Module, map: ModelMap, keep: Keep, calls: _Calls) -> Iterable[Fold]:
    gone = dropped(map, keep)
    for name, lost in calls.lost.items():
        if len(calls.inputs[name]) != 1:
            continue  # unused, or used several times with constants that may differ
        module, x = dense.get_submodule(name), calls.inputs[name][0]
        into, sign = _target(thin, name, calls.behind)
        constant = _constant(module, x, lost)
        if into is None or not constant:
            continue
        shift = _contribution(module, x, torch.tensor(constant, device=x.device))
        rows = [gone[at] for at in ((f"{name}.weight", 0, "out"), (f"{name}.weight_orig", 0, "out")) if at in gone]
        left = torch.from_numpy(np.setdiff1d(np.arange(len(shift)), np.concatenate(rows) if rows else [])).to(x.device)
        into.add_(sign * shift[left])
        yield Fold(module=name, channels=len(constant), exact=_exact(module))


def _target(thin: nn.Module, name: str, behind: Mapping[str, str]) -> tuple[Tensor | None, float]:
    """The tensor that takes the shift, and with which sign."""
    norm = behind.get(name)
    if norm is not None:
        return thin.get_buffer(f"{norm}.running_mean"), -1.0
    return dict(thin.named_parameters()).get(f"{name}.bias"), 1.0


def _constant(module: nn.Module, x: Tensor, lost: list[int]) -> list[int]:
    axis = x.dim() - 1 if isinstance(module, nn.Linear) else 1
    own = x.index_select(axis, torch.tensor(lost, device=x.device)).movedim(axis, 0).flatten(1)
    spread, height = own.amax(1) - own.amin(1), own.abs().amax(1)
    flat = (spread <= FLAT * height) & (height > 0)
    return [channel for channel, is_flat in zip(lost, flat.tolist(), strict=True) if is_flat]


def _contribution(module: nn.Module, x: Tensor, index: Tensor) -> Tensor:
    """What the channels add to each output, averaged over examples and positions."""
    x = x.index_select(x.dim() - 1 if isinstance(module, nn.Linear) else 1, index)
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    weight = module.weight.index_select(1, index)  # with the mask of torch.nn.utils.prune, if there is one
    if isinstance(module, nn.Linear):
        return nn.functional.linear(x, weight).flatten(0, -2).mean(0)
    made: Tensor = module._conv_forward(x, weight, None)
    return made.movedim(1, 0).flatten(1).mean(1)


def _exact(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    padding = getattr(module, "padding", 0)
    return all(p == 0 for p in padding) if isinstance(padding, tuple) else padding in (0, "valid")
