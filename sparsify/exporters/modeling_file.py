"""modeling_cut.py: the class of a cut model of transformers whose widths its configuration cannot express.

The class builds the dense model from config.json, where the changes stand under `cut`, and narrows its
layers. The file needs torch and transformers alone.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from string import Template
from typing import Any

from torch import nn

from sparsify.errors import ModelError
from sparsify.graph.surgery.transformers_config import find_head_size
from sparsify_schemas.cuts import (
    AddBias,
    Bypass,
    Crop,
    Cuts,
    Gather,
    Narrow,
    Replace,
    Select,
    SetAttribute,
    Shorten,
    Silence,
)

NAME = "modeling_cut.py"
_SOURCE = Template('''"""$dense, cut: written by sparsify. The changes stand in config.json under "cut"."""

from copy import copy

import torch
from torch import nn
from transformers import $dense


class $cut($dense):
    """A $dense with narrower layers, or without some of them."""

    def __init__(self, config, *args, **kwargs):
        cut = config.cut
        own = {path: _exchange(config, path, value) for path, value in cut["dense"].items()}
        super().__init__(config, *args, **kwargs)  # the dense model
        for path, value in own.items():
            _exchange(config, path, value)
        for name, action in cut["skipped"].items():
            _replace(self, name, Skipped(**action))
        narrowed = {}  # a tensor with two names stays one
        for name, shape in cut["shapes"].items():
            module, _, attribute = name.rpartition(".")
            owner = self.get_submodule(module)
            old = getattr(owner, attribute)
            if old is None:  # a bias that the dense layer does not have
                new = nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device))
            elif id(old) in narrowed:
                new = narrowed[id(old)][1]
            else:
                new = old.detach()[tuple(slice(length) for length in shape)].clone()
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
                narrowed[id(old)] = old, new
            setattr(owner, attribute, new)
        for name, values in cut["attributes"].items():
            for attribute, value in values.items():
                value = tuple(value) if isinstance(value, list) else value
                owner = self.get_submodule(name)
                *path, attribute = attribute.split(".")
                for part in path:  # a number in a configuration of its own, which others do not share
                    setattr(owner, part, copy(getattr(owner, part)))
                    owner = getattr(owner, part)
                setattr(owner, attribute, value)
        for name, *own in cut.get("selected", ()):
            self.get_submodule(name).register_forward_pre_hook(Select(*own), with_kwargs=True)


class Select:
    """Before a module that has lost heads: takes its own of what it is given for all of them (slopes)."""

    def __init__(self, argument, dim, size, keep):
        self.argument, self.dim, self.size, self.keep = argument, dim, size, keep

    def __call__(self, module, args, kwargs):
        given = dict(enumerate(args)) | kwargs
        if self.argument not in given:
            return args, kwargs
        taken = given[self.argument]
        has_places = isinstance(taken, torch.Tensor) and taken.dim() > self.dim
        if has_places and taken.shape[self.dim] % self.size == 0:
            places = torch.arange(taken.shape[self.dim]).view(-1, self.size)[:, self.keep].flatten()
            given[self.argument] = taken.index_select(self.dim, places.to(taken.device))
        return tuple(given[place] for place in range(len(args))), {key: given[key] for key in kwargs}


class Skipped(nn.Module):
    """Takes the place of a removed module: returns its first tensor, or zeros of that shape."""

    def __init__(self, zeros, returns):
        super().__init__()
        self.zeros, self.returns = zeros, returns

    def forward(self, *args, **kwargs):
        found = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        if self.zeros:
            found = torch.zeros_like(found)
        return tuple(found if here else None for here in self.returns) if self.returns else found


def _exchange(config, path, value):
    """Set a field of the configuration, and return what it was."""
    *parts, field = path.split(".")
    for part in parts:
        config = getattr(config, part)
    before = getattr(config, field)
    setattr(config, field, value)
    return before


def _replace(model, name, stub):
    """Put the stub in the module's place; plain attributes of the module stay readable on it."""
    old = model.get_submodule(name)
    for key, value in vars(old).items():
        if isinstance(value, (str, int, float)) and key not in vars(stub):
            setattr(stub, key, value)
    for key in old._parameters:
        stub.register_parameter(key, None)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, stub)
''')


def describe_changes(dense: nn.Module, cut: nn.Module, rounds: Sequence[Cuts]) -> dict[str, Any]:
    """What config.json holds under `cut`: shapes, attributes and skipped modules of the cut model.

    dense: as built from its configuration. rounds: the logs that made `cut` of it.
    Raises ModelError when a log holds what the file cannot do.
    """
    kind = type(dense)
    if _find_public_class(kind.__name__) is not kind:
        raise ModelError(
            f"{NAME} cannot name the class {kind.__module__}.{kind.__name__}, which transformers lacks"
        )
    stored = cut.state_dict()
    skipped: dict[str, Any] = {}
    attributes: dict[str, dict[str, Any]] = {}
    selected: list[Select] = []
    for op in (op for cuts in rounds for op in cuts.operations):
        match op:
            case Select():
                selected.append(op)
            case Replace() | Crop() | Gather():
                raise ModelError(
                    f"{NAME} cannot hold '{op.module}', which sparsify computes by a module of its own"
                )
            case Shorten():
                raise ModelError(f"{NAME} cannot hold '{op.module}', a list that has lost members")
            case Narrow() if op.tensor not in stored and _is_held(cut, op.tensor):
                raise ModelError(f"{NAME} cannot hold '{op.tensor}', which no weights file stores")
            case Bypass() | Silence():
                skipped[op.module] = {"zeros": op.op == "silence", "returns": list(op.returns)}
            case SetAttribute() if op.own or "." not in op.attribute:
                attributes.setdefault(op.module, {})[op.attribute] = op.value
            case _:
                pass  # shapes are compared below; values come with the weights
    created = {op.module for cuts in rounds for op in cuts.operations if isinstance(op, AddBias)}
    before = dense.state_dict()
    shapes = {
        name: list(tensor.shape)
        for name, tensor in stored.items()
        if name not in before or before[name].shape != tensor.shape
    }
    unknown = [name for name in shapes if name not in before and name.rpartition(".")[0] not in created]
    if unknown:
        raise ModelError(f"{NAME} cannot hold '{unknown[0]}', which the dense model does not have")
    there = {name for name, _ in cut.named_modules()}
    kept = {name: values for name, values in attributes.items() if name in there}
    found = {"shapes": shapes, "attributes": kept, "skipped": skipped}
    selections = [_describe_selection(op) for op in selected if op.module in there]
    return {**found, "selected": selections} if selections else found


def _describe_selection(op: Select) -> list[Any]:
    """What the constructor of the file's hook takes, behind the name of the module."""
    keep = [place for first, end in op.keep for place in range(first, end)]
    return [op.module, op.argument, op.dim, op.size, keep]


def make_config(config: Any, dense: nn.Module, changes: Mapping[str, Any]) -> Any:
    """The cut model's configuration, with the changes, and with the numbers of the dense model."""
    own: Any = dense
    made = deepcopy(config)
    for (field, *_), value in find_head_size(dense):
        setattr(made, str(field), value)  # it would be derived from a number of heads that has changed
    if not _can_be_read(made):
        made = deepcopy(own.config)  # it refuses a number of heads that does not divide the width, say
    differing = _find_differences(own.config.to_dict(), made.to_dict())
    made.cut = {"dense": differing, **changes}
    kind = f"{NAME.removesuffix('.py')}.{_class_name(dense)}"
    made.auto_map = dict.fromkeys(_find_auto_classes(own), kind)
    return made


def write(dense: nn.Module, folder: Path) -> None:
    """Write the file."""
    text = _SOURCE.substitute(dense=type(dense).__name__, cut=_class_name(dense))
    (folder / NAME).write_text(text)


def read_class(folder: Path) -> type[nn.Module] | None:
    """The class that the folder's modeling_cut.py defines; None if there is no such file."""
    path = folder / NAME
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("modeling_cut", path)
    assert spec is not None and spec.loader is not None  # a path that ends in .py has a loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (kind,) = [
        value
        for name, value in vars(module).items()
        if name.startswith("Cut") and isinstance(value, type) and issubclass(value, nn.Module)
    ]
    return kind


def _can_be_read(config: Any) -> bool:
    """Whether the configuration accepts its own numbers when it is read from a file."""
    try:
        type(config).from_dict(config.to_dict())
    except Exception:
        return False
    return True


def _class_name(dense: nn.Module) -> str:
    return f"Cut{type(dense).__name__}"


def _find_public_class(name: str) -> Any:
    import transformers

    return getattr(transformers, name, None)


def _is_held(model: nn.Module, tensor: str) -> bool:
    """Whether the model still has this parameter or buffer."""
    try:
        model.get_buffer(tensor)
    except AttributeError:
        return False
    return True


def _find_differences(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Path of a field -> its value before, where that differs."""
    found: dict[str, Any] = {}
    for key, value in before.items():
        at = f"{path}.{key}" if path else key
        now = after.get(key)
        if isinstance(value, Mapping) and isinstance(now, Mapping):
            found |= _find_differences(value, now, at)
        elif value != now:
            found[at] = value
    return found


def _find_auto_classes(dense: Any) -> list[str]:
    """The Auto classes of transformers that load this class."""
    from transformers.models.auto import modeling_auto

    found = []
    for name, auto in vars(modeling_auto).items():
        mapping = getattr(auto, "_model_mapping", None)
        if not isinstance(auto, type) or mapping is None or type(dense.config) not in mapping:
            continue
        classes = mapping[type(dense.config)]
        if type(dense) in (classes if isinstance(classes, tuple) else (classes,)):
            found.append(name)
    return sorted(found, key=len) or ["AutoModel"]  # the plainest name first: the model card shows it
