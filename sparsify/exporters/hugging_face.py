"""A folder that `from_pretrained` loads: the configuration whose freshly built model has the cut model's shapes.

No table of architectures: the numbers of the configuration are changed on trial, in the proportions in which widths
shrank, and a model of shapes alone is built each time. Of several that fit, the one whose modules hold most of the cut
model's own numbers (`num_heads`, `head_dim`) is taken; whether it computes the same is compared after writing.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsify.errors import ModelError

Field = tuple[str | int, ...]
"""where a number stands in a configuration: keys, and places in lists"""
Change = tuple[Field, int]
Shapes = Mapping[str, tuple[int, ...]]
MOST = 3
"""fields changed together"""


@dataclass(frozen=True)
class _Trial:
    """A configuration and the model of shapes that it builds."""

    changes: tuple[Change, ...]
    config: Any
    shapes: Shapes
    numbers: Mapping[str, float]


def is_hugging_face(model: nn.Module) -> bool:
    """Whether it is a model of transformers, or derived from one."""
    if find_spec("transformers") is None:
        return False
    import transformers

    return isinstance(model, transformers.PreTrainedModel)


def save(model: nn.Module, folder: Path) -> None:
    """Write config.json and model.safetensors. Raises ModelError when no configuration has the model's widths."""
    if not is_hugging_face(model):
        raise ModelError(
            f"the run's model is a {type(model).__name__}, not a model of transformers; export it with --format pt2, onnx or safetensors"
        )
    own: Any = model
    with torch.random.fork_rng(devices=[]), redirect_stderr(StringIO()):  # where its progress goes
        made: Any = type(model)(fitting(own)).to(next(model.parameters()).dtype)
        made.load_state_dict(model.state_dict())
        if own.can_generate():
            made.generation_config = own.generation_config
        made.save_pretrained(folder)


def load(kind: type[nn.Module], folder: Path) -> nn.Module:
    """What `from_pretrained` makes of the folder. Raises ModelError when a weight was not in it."""
    loader: Any = kind
    with redirect_stderr(StringIO()):
        model, told = loader.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    absent = [*told["missing_keys"], *told["mismatched_keys"], *told["unexpected_keys"]]
    if absent:
        raise ModelError(f"from_pretrained does not find or know {absent[0]}")
    made: nn.Module = model.eval()
    return made


def fitting(model: Any) -> Any:
    """The model's configuration, changed so that a fresh model has its shapes. Raises ModelError."""
    wanted = _shapes(model)
    base = _tried(model, ())
    if base is None:
        raise ModelError(
            f"a fresh {type(model).__name__} cannot be built from its own configuration; {_OTHERS}"
        )
    if base.shapes.keys() != wanted.keys():
        name = min(base.shapes.keys() ^ wanted.keys())
        raise ModelError(
            f"a fresh {type(model).__name__} and the cut model differ in '{name}', which only one of them has; {_OTHERS}"
        )
    best = min(
        (_best(model, base, wanted, given) for given in ((), _head_size(model))),
        key=lambda t: _off(t.shapes, wanted),
    )
    if _off(best.shapes, wanted):
        raise ModelError(_obstacle(model, best, base.shapes, wanted))
    return best.config


def _best(model: Any, base: _Trial, wanted: Shapes, given: tuple[Change, ...]) -> _Trial:
    """The best that up to three changes besides those given can do."""
    numbers = _numbers(model)
    singles = [
        change
        for change in _changes(model.config, base.shapes, wanted)
        if _helps(_tried(model, (*given, change)), base, wanted)
    ]
    several = (
        c
        for count in range(2, MOST + 1)
        for c in combinations(singles, count)
        if len({field for field, _ in c}) == count
    )
    tried = (_tried(model, (*given, *changes)) for changes in [*((c,) for c in singles), *several])
    return min(
        (base, *(t for t in tried if t)),
        key=lambda t: (_off(t.shapes, wanted), sum(numbers.get(n, v) != v for n, v in t.numbers.items())),
    )


def _helps(trial: _Trial | None, base: _Trial, wanted: Shapes) -> bool:
    return trial is not None and _off(trial.shapes, wanted) < _off(base.shapes, wanted)


def _head_size(model: Any) -> tuple[Change, ...]:
    """Many a model reads the size of its heads from a field that its configuration has only when it is given."""
    held = {value for module in model.modules() if type(value := vars(module).get("head_dim")) is int}
    return ((("head_dim",), held.pop()),) if len(held) == 1 and "head_dim" not in vars(model.config) else ()


def _tried(model: Any, changes: tuple[Change, ...]) -> _Trial | None:
    config = deepcopy(model.config)
    try:
        for field, value in changes:
            _set(config, field, value)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            made = type(model)(config)
    except (
        Exception
    ):  # such as a width that the number of heads does not divide, or a field that is no number
        return None
    shapes = _shapes(made)
    return (
        _Trial(changes, config, shapes, _numbers(made))
        if not changes or shapes.keys() == model.state_dict().keys()
        else None
    )


def _changes(config: Any, before: Shapes, after: Shapes) -> Iterable[Change]:
    """Every number of the configuration, in the proportions of the widths that changed; None, where it stands for a width."""
    ratios = dict.fromkeys(
        (a, b) for name in after for a, b in zip(before[name], after[name], strict=False) if a != b
    )
    for field, value in _fields(config):
        if value is None:
            yield from dict.fromkeys((field, new) for _, new in ratios)
        else:
            yield from dict.fromkeys(
                (field, value * new // old) for old, new in ratios if value * new % old == 0 and value * new
            )


def _fields(config: Any, at: Field = ()) -> Iterable[tuple[Field, int | None]]:
    from transformers import PretrainedConfig

    for key, value in vars(config).items():
        if key.startswith("_") or key.endswith("_id"):
            continue
        if value is None or type(value) is int:
            yield (*at, key), value
        elif isinstance(value, list):
            yield from (((*at, key, i), v) for i, v in enumerate(value) if type(v) is int)
        elif isinstance(value, PretrainedConfig):  # of a part, such as the text side of an image model
            yield from _fields(value, (*at, key))


def _set(config: Any, field: Field, value: int) -> None:
    *path, last = field
    for key in path:
        config = config[key] if isinstance(key, int) else getattr(config, key)
    if isinstance(last, int):
        config[last] = value
    else:
        setattr(config, last, value)


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _numbers(model: nn.Module) -> Mapping[str, float]:
    """What its modules hold as plain numbers."""
    return {
        f"{name}.{key}": value
        for name, m in model.named_modules()
        for key, value in vars(m).items()
        if type(value) in (int, float)
    }


def _off(found: Shapes, wanted: Shapes) -> int:
    """In how many dimensions of its tensors a model is not as wanted."""
    return sum(
        1 if len(shape) != len(found[name]) else sum(a != b for a, b in zip(shape, found[name], strict=True))
        for name, shape in wanted.items()
    )


_OTHERS = "--format pt2, onnx and safetensors take the model as it is"


def _name(model: Any) -> str:
    return type(model.config).__name__


def _obstacle(model: Any, best: _Trial, before: Shapes, wanted: Shapes) -> str:
    """Which layer stands in the way, and whether it is because layers that share a number differ."""
    name = next(n for n in wanted if wanted[n] != best.shapes[n])
    like = re.sub(r"\d+", "#", name)
    alike = [n for n in wanted if re.sub(r"\d+", "#", n) == like and before[n] == before[name]]
    other = next((n for n in alike if wanted[n] != wanted[name]), None)
    if other is not None:
        return (
            f"'{name}' is {_shown(wanted[name])} and '{other}' {_shown(wanted[other])}, but {_name(model)} has one number for both; "
            f"keep: {{uniform: true}} in the rule keeps them alike, and {_OTHERS}"
        )
    tried = " and ".join(f"{'.'.join(map(str, field))} {value}" for field, value in best.changes)
    said = (
        f"with {tried} it is {_shown(best.shapes[name])}"
        if tried
        else f"it stays {_shown(best.shapes[name])}"
    )
    return f"no number in {_name(model)} makes '{name}' {_shown(wanted[name])}: {said}; {_OTHERS}"


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
