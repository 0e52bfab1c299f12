"""Penalties that look at the outputs: called while each backward pass is at the outputs of the model."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsify.distributed import is_sharded
from sparsify.errors import ModelError
from sparsify.training.penalties.sensitivity import as_rows, find_outputs
from sparsify.training.penalties.step_action import Output


def _list_sharded(model: nn.Module) -> list[Any]:
    """The modules that FSDP 2 gathers the parameters of."""
    return [module for module in model.modules() if hasattr(module, "set_reshard_after_backward")]


def _list_sharded_groups(model: nn.Module) -> list[Any]:
    """What holds whether parameters are freed after a backward pass: torch sets it by a public call, and
    tells it by none. Raises ModelError where another version of torch holds it elsewhere."""
    try:
        states = [part._get_fsdp_state() for part in _list_sharded(model)]
        groups = [group for state in states for group in state._fsdp_param_groups]
        for group in groups:
            _ = group.reshard_after_backward
    except AttributeError as error:
        raise ModelError(
            f"a penalty on outputs cannot keep a sharded model gathered with torch {torch.__version__}: "
            f"{error}; train without sharding (shard: true, fully_shard), or with torch 2.13"
        ) from None
    return groups


@contextmanager
def _keep_gathered(model: nn.Module) -> Iterator[None]:
    """Within, a backward pass leaves sharded parameters gathered."""
    parts, groups = _list_sharded(model), _list_sharded_groups(model)
    before = [group.reshard_after_backward for group in groups]
    for part in parts:
        part.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        for group, flag in zip(groups, before, strict=True):
            group.reshard_after_backward = flag


class OutputWatch:
    """Hooks on the forward passes that are trained on; none where no penalty looks at the outputs."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Tensor], actions: Sequence[Output], processes: Any
    ) -> None:
        self._model = model
        self._actions = actions
        self._processes = processes
        self._passes = 0
        self._leaves = dict(parameters)
        """what forward passes compute with: of a sharded parameter the whole one that FSDP has put in its
        place"""
        self._outputs: dict[int, Tensor] = {}
        """of forward passes whose backward pass has not come yet"""
        self.seconds = 0.0
        """time spent here so far"""
        self._handles: list[RemovableHandle] = []
        if actions:
            _list_sharded_groups(model)  # before the first epoch rather than in its first backward pass
            self._handles = [model.register_forward_hook(self._watch), *self._watch_leaves(parameters)]

    def forget(self) -> None:
        """Let go of outputs whose backward pass did not come before the optimizer's step."""
        self._outputs.clear()

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch_leaves(self, parameters: Mapping[str, Tensor]) -> Iterator[RemovableHandle]:
        owners: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name, parameter in parameters.items():
            if is_sharded(parameter):
                module, _, attribute = name.rpartition(".")
                owners[module].append((name, attribute))
        for module, own in owners.items():
            yield self._model.get_submodule(module).register_forward_pre_hook(partial(self._see_leaves, own))

    def _see_leaves(self, own: Sequence[tuple[str, str]], module: nn.Module, _args: Any) -> None:
        self._leaves |= {name: getattr(module, attribute) for name, attribute in own}

    def _watch(self, model: nn.Module, _args: Any, returned: Any) -> None:
        """In every forward pass that is trained on: call the penalties while its backward pass is at the
        outputs."""
        if not (model.training and torch.is_grad_enabled()):
            return
        outputs = find_outputs(returned)
        if outputs.requires_grad:
            # Held here and not by the hook: a tensor whose hook holds it would never be freed.
            self._passes += 1
            self._outputs[self._passes] = outputs
            outputs.register_hook(partial(self._act, self._passes))  # type: ignore[no-untyped-call]

    def _act(self, key: int, gradient: Tensor) -> None:
        started = time.perf_counter()
        outputs = self._outputs.pop(key, None)
        if outputs is None:
            return  # a pass of a penalty's own
        with torch.enable_grad():
            rows = as_rows(outputs)
        # Each derivative goes back through the layers, and FSDP would free their whole weights behind it,
        # which the backward pass of the loss still needs.
        with _keep_gathered(self._model):
            for action in self._actions:
                action(self._leaves, rows, as_rows(gradient), self._processes)
        self.seconds += time.perf_counter() - started
