"""Activations recomputed in the backward pass in place of being kept."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError, checkpoint

from sparsify.data.chance import keep_random_states
from sparsify.errors import TrainingError

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model by name: modules of several layers that lie in an nn.Sequential, nn.ModuleList or
    nn.ModuleDict and hold parameters; the outermost ones, each once."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, block in _walk("", model, in_list=False):
        found.setdefault(id(block), (name, block))
    return dict(found.values())


def _walk(name: str, module: nn.Module, *, in_list: bool) -> Iterator[tuple[str, nn.Module]]:
    if in_list and _is_block(module):
        yield name, module
        return
    for key, child in module.named_children():
        inner = f"{name}.{key}" if name else key
        yield from _walk(inner, child, in_list=isinstance(module, _LISTS))


def _is_block(module: nn.Module) -> bool:
    """Whether a module of a list has layers and a forward pass, and is no list of blocks itself."""
    has_layers = any(True for _ in module.children()) and any(True for _ in module.parameters())
    if not has_layers or isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    return not (isinstance(module, nn.Sequential) and any(map(_is_block, module.children())))


def why_not_recomputed(model: nn.Module) -> str | None:
    """What is wrong where nothing would be saved; one block alone would be recomputed as a whole."""
    if len(find_blocks(model)) > 1:
        return None
    return (
        "'recompute_activations' keeps the inputs of repeated blocks alone, and the model has no two "
        "modules of several layers in an nn.Sequential or nn.ModuleList; build it of such, or leave this out "
        "and write 'accumulate' for less memory"
    )


@contextmanager
def recompute_activations(model: nn.Module) -> Iterator[None]:
    """Inside, each block keeps its inputs alone in a forward pass that is trained on, and computes the rest
    again when the backward pass comes to it.

    The gradients are those of the ordinary pass, to the bit: the second pass draws the same random numbers,
    begins with the buffers of the first one and leaves none behind, so that running statistics see each batch
    once. Hooks of a block and of what is around it see one pass, those of layers inside it two.

    Source: Chen et al., arXiv:1604.06174.
    """
    blocks = find_blocks(model)
    before = [(block, vars(block).get("forward")) for block in blocks.values()]
    configs = _find_caching(model)
    for name, block in blocks.items():
        _replace_forward(name, block)
    for config in configs:
        config.use_cache = False  # a second pass would append to the cache of the first
    try:
        yield
    finally:
        for block, own in before:
            if own is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = own
        for config in configs:
            config.use_cache = True


def _find_caching(model: nn.Module) -> list[Any]:
    """Configurations of transformers models that keep keys and values for the next token."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", None) is True:
            found[id(config)] = config
    return list(found.values())


def _replace_forward(name: str, block: nn.Module) -> None:
    compute = block.forward

    def forward(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return compute(*given, **named)
        versions = _list_versions(given, named)

        def compute_checked(given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            _check_unchanged(name, versions, given, named)
            found = compute(*given, **named)
            _check_unchanged(name, versions, given, named)
            return found

        # Both in one argument each: names of the block's own arguments may be those of `checkpoint`.
        return checkpoint(
            compute_checked,
            given,
            named,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _PassBefore(block)),
        )

    block.forward = forward


def _list_versions(given: tuple[Any, ...], named: dict[str, Any]) -> list[int]:
    """How often each tensor among the arguments has been changed in place."""
    return [leaf._version for leaf in tree_leaves((given, named)) if isinstance(leaf, Tensor)]


def _check_unchanged(name: str, versions: list[int], given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """That a second pass begins with the inputs of the first. Raises TrainingError."""
    if _list_versions(given, named) != versions:
        raise TrainingError(
            f"the input of block '{name}' is changed in place, so the block cannot be computed again; write "
            "inplace=False there, or leave 'recompute_activations' out"
        )


class _PassBefore:
    """A context in which a block has its buffers, and `random` and numpy their states, as they were when this
    was made; what changes inside is lost. torch's own states are `checkpoint`'s to keep.

    A graph that is kept passes more than once through it.
    """

    def __init__(self, block: nn.Module) -> None:
        self._held: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        """(buffers of a module, name, value)"""
        for module in block.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    self._held.append((module._buffers, name, buffer.detach().clone()))
        self._chance = random.getstate(), np.random.get_state()
        self._now: list[Tensor | None] = []
        self._random_states = ExitStack()

    def __enter__(self) -> None:
        self._random_states.enter_context(keep_random_states())
        random.setstate(self._chance[0])
        np.random.set_state(self._chance[1])
        self._now = [buffers[name] for buffers, name, _ in self._held]
        for buffers, name, before in self._held:
            buffers[name] = before.clone()

    def __exit__(self, *_error: object) -> None:
        for (buffers, name, _), now in zip(self._held, self._now, strict=True):
            buffers[name] = now
        self._random_states.close()


@contextmanager
def explain_second_pass(where: str) -> Iterator[None]:
    """Turn torch's complaint of a second pass that differs into a TrainingError.

    where: what it begins with.
    """
    try:
        yield
    except CheckpointError as error:
        raise TrainingError(
            f"{where}a block of the model computes something else when it is called again with the "
            "same inputs, so it cannot be computed again; leave 'recompute_activations' out"
        ) from error
