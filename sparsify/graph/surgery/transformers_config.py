"""Find the configuration whose new model has a cut model's shapes.

There is no table of architectures. Numbers of the configuration are changed on trial, in the proportions in
which widths shrank, and a model without data (on the meta device) is built each time. Of several that fit,
the one that has most of the cut model's own numbers (`num_heads`, `head_dim`) is taken.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from sparsify.errors import ModelError

Field = tuple[str | int, ...]
"""Path of a number in a configuration: keys, and indices of lists."""
Change = tuple[Field, int]
Shapes = Mapping[str, tuple[int, ...]]
MOST = 3
"""Fields changed together."""


@dataclass(frozen=True)
class _Trial:
    """A configuration and the shapes of the model that it builds."""

    changes: tuple[Change, ...]
    config: Any
    shapes: Shapes
    numbers: Mapping[str, float]


def find_config(model: Any) -> Any:
    """The model's configuration, changed so that a new model has its shapes.

    model: of transformers. Raises ModelError, which says what the configuration cannot express.
    """
    wanted = _list_shapes(model)
    base = _try_changes(model, ())
    if base is None:
        raise ModelError(f"a new {type(model).__name__} cannot be built from its own configuration")
    if base.shapes.keys() != wanted.keys():
        name = min(base.shapes.keys() ^ wanted.keys())
        raise ModelError(
            f"a new {type(model).__name__} and the cut model differ in '{name}', which only one of them has"
        )
    candidates = [_find_best(model, base, wanted, given) for given in ((), find_head_size(model))]
    best = min(candidates, key=lambda trial: _count_mismatches(trial.shapes, wanted))
    if _count_mismatches(best.shapes, wanted):
        raise ModelError(_find_obstacle(model, best, base.shapes, wanted))
    return best.config


def _find_best(model: Any, base: _Trial, wanted: Shapes, given: tuple[Change, ...]) -> _Trial:
    """The best trial with up to three changes besides those given."""
    numbers = _list_numbers(model)
    singles = [
        change
        for change in _list_changes(model.config, base.shapes, wanted)
        if _is_better(_try_changes(model, (*given, change)), base, wanted)
    ]
    sets: list[tuple[Change, ...]] = [(change,) for change in singles]
    for count in range(2, MOST + 1):
        for changes in combinations(singles, count):
            if len({field for field, _ in changes}) == count:
                sets.append(changes)

    def badness(trial: _Trial) -> tuple[int, int]:
        other_numbers = sum(numbers.get(name, value) != value for name, value in trial.numbers.items())
        return _count_mismatches(trial.shapes, wanted), other_numbers

    trials = (_try_changes(model, (*given, *changes)) for changes in sets)
    return min((base, *filter(None, trials)), key=badness)


def _is_better(trial: _Trial | None, base: _Trial, wanted: Shapes) -> bool:
    return trial is not None and _count_mismatches(trial.shapes, wanted) < _count_mismatches(
        base.shapes, wanted
    )


def find_head_size(model: Any) -> tuple[Change, ...]:
    """The head size as a change: many models read it from an optional field of their configuration."""
    values = [vars(module).get("head_dim") for module in model.modules()]
    sizes = {value for value in values if type(value) is int}
    if len(sizes) != 1 or "head_dim" in vars(model.config):
        return ()
    return ((("head_dim",), sizes.pop()),)


def _try_changes(model: Any, changes: tuple[Change, ...]) -> _Trial | None:
    config = deepcopy(model.config)
    try:
        for field, value in changes:
            _set_field(config, field, value)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            made = type(model)(config)
    except Exception:  # the heads do not divide the width, a field is not a number, and the like
        return None
    shapes = _list_shapes(made)
    return (
        _Trial(changes, config, shapes, _list_numbers(made))
        if not changes or shapes.keys() == model.state_dict().keys()
        else None
    )


def _list_changes(config: Any, before: Shapes, after: Shapes) -> Iterable[Change]:
    """Every number of the configuration, scaled in the proportions of the changed widths.

    A field that is None may stand for a width, so the new widths are tried for it.
    """
    ratios = dict.fromkeys(
        (a, b) for name in after for a, b in zip(before[name], after[name], strict=False) if a != b
    )
    for field, value in _list_fields(config):
        if value is None:
            yield from dict.fromkeys((field, new) for _, new in ratios)
        else:
            yield from dict.fromkeys(
                (field, value * new // old) for old, new in ratios if value * new % old == 0 and value * new
            )


def _list_fields(config: Any, at: Field = ()) -> Iterable[tuple[Field, int | None]]:
    from transformers import PretrainedConfig

    for key, value in vars(config).items():
        if key.startswith("_") or key.endswith("_id"):
            continue
        if value is None or type(value) is int:
            yield (*at, key), value
        elif isinstance(value, list):
            yield from (((*at, key, i), v) for i, v in enumerate(value) if type(v) is int)
        elif isinstance(value, PretrainedConfig):  # of a part, such as the text side of an image model
            yield from _list_fields(value, (*at, key))


def _set_field(config: Any, field: Field, value: int) -> None:
    *path, last = field
    for key in path:
        config = config[key] if isinstance(key, int) else getattr(config, key)
    if isinstance(last, int):
        config[last] = value
    else:
        setattr(config, last, value)


def _list_shapes(model: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _list_numbers(model: nn.Module) -> Mapping[str, float]:
    """The plain numbers that its modules hold."""
    return {
        f"{name}.{key}": value
        for name, m in model.named_modules()
        for key, value in vars(m).items()
        if type(value) in (int, float)
    }


def _count_mismatches(found: Shapes, wanted: Shapes) -> int:
    """The number of dimensions in which the tensors differ."""
    wrong = 0
    for name, shape in wanted.items():
        if len(shape) != len(found[name]):
            wrong += 1
        else:
            wrong += sum(a != b for a, b in zip(shape, found[name], strict=True))
    return wrong


def _name_class(model: Any) -> str:
    return type(model.config).__name__


def _find_obstacle(model: Any, best: _Trial, before: Shapes, wanted: Shapes) -> str:
    """Name a layer that does not fit, and whether the cause is that layers with one shared number differ."""
    name = next(n for n in wanted if wanted[n] != best.shapes[n])
    like = re.sub(r"\d+", "#", name)
    alike = [n for n in wanted if re.sub(r"\d+", "#", n) == like and before[n] == before[name]]
    other = next((n for n in alike if wanted[n] != wanted[name]), None)
    if other is not None:
        return (
            f"'{name}' is {_format_shape(wanted[name])} and '{other}' {_format_shape(wanted[other])}, "
            f"but {_name_class(model)} has one number for both; "
            "keep: {uniform: true} in the rule gives them the same width"
        )
    tried = " and ".join(f"{'.'.join(map(str, field))} {value}" for field, value in best.changes)
    shape = _format_shape(best.shapes[name])
    said = f"with {tried} it is {shape}" if tried else f"it stays {shape}"
    return f"no number in {_name_class(model)} makes '{name}' {_format_shape(wanted[name])}: {said}"


def _format_shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
