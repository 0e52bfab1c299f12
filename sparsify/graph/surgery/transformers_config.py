"""Find the configuration whose new model has a cut model's shapes.

There is no table of architectures. Numbers of the configuration are changed on trial, in the proportions in
which widths shrank, and a model without data (on the meta device) is built each time. Of several that fit,
the one that has most of the cut model's own numbers (`num_heads`, `head_dim`) is taken.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import nn

from sparsify.errors import ModelError, first_line
from sparsify.graph.name_kinds import name_kind
from sparsify_schemas.cuts import SetAttribute

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


def is_built_from_config(model: nn.Module) -> bool:
    """Whether it is a model of transformers, or made like one: of a class that names its configuration."""
    kind = getattr(type(model), "config_class", None)
    return isinstance(kind, type) and isinstance(vars(model).get("config"), kind)


def find_problem(model: Any) -> str | None:
    """Why the model's configuration does not build a model of its shapes, or cannot be read from a file.

    None if it does.
    """
    config = model.config
    try:
        built = _build_shapes(model, config)
        type(config).from_dict(config.to_dict())  # a number of heads that does not divide the width, say
    except Exception as error:
        return f"'config' no longer builds a model: {type(error).__name__}: {first_line(error)}"
    for name, shape in _list_shapes(model).items():
        if built.get(name, shape) != shape:
            return (
                "'config' does not describe the cut model: "
                f"it builds '{name}' as {built[name]}, which is {shape} now"
            )
    return None


def is_unchanged(dense: Any, thin: nn.Module, attribute: str) -> bool:
    """Whether a number of the configuration decides lengths of the dense model's tensors, and the cut model
    has all of these as they were: then the number is right as it is.

    attribute: such as `config.moe_intermediate_size`. What it decides is seen in models that are built with
    another number.
    """
    first, *rest = attribute.split(".")
    if first != "config" or not is_built_from_config(dense):
        return False
    field = tuple(int(part) if part.isdigit() else part for part in rest)
    value = dict(_list_fields(dense.config)).get(field)
    if not value:
        return False
    shapes, left = _list_shapes(dense), _list_shapes(thin)
    for other in (2 * value, value + 1):
        trial = _try_changes(dense, ((field, other),))
        if trial is None or trial.shapes.keys() != shapes.keys():
            continue
        decided = [
            (name, dim)
            for name, shape in shapes.items()
            for dim in range(len(shape))
            if trial.shapes[name][dim : dim + 1] != (shape[dim],)
        ]
        if decided:
            return all(left.get(name, ())[dim : dim + 1] == (shapes[name][dim],) for name, dim in decided)
    return False


def follow_config(model: Any) -> tuple[SetAttribute, ...]:
    """What makes the configuration describe the cut model, where its own numbers did not do.

    These are fields without a number, such as n_inner and head_dim. The model does not change.
    """
    try:
        if _has_unequal_layers(_build_shapes(model, model.config), _list_shapes(model)):
            return ()  # one number for all layers does not do, and the search takes seconds
        found = find_config(model)
    except Exception:  # the note on the configuration says that it does not fit
        return ()
    before, after = dict(_list_fields(model.config)), dict(_list_fields(found))
    changed = [(field, value) for field, value in after.items() if value != before.get(field)]
    return tuple(
        SetAttribute(module="", attribute=".".join(map(str, ("config", *field))), value=value)
        for field, value in changed
        if value is not None
    )


def states_new_field(model: nn.Module, op: SetAttribute) -> bool:
    """Whether a log entry gives a number to a field of the configuration that has none.

    It must be a length of the cut model's tensors or the size of its heads, so a damaged log cannot state
    any other.
    """
    field = op.attribute.removeprefix("config.")
    if op.module or field == op.attribute or "." in field or not is_built_from_config(model):
        return False
    if vars(vars(model)["config"]).get(field) is not None:
        return False
    lengths = {length for shape in _list_shapes(model).values() for length in shape}
    sizes = {size for (_, size) in find_head_size(model)}
    return op.value in (sizes if field == "head_dim" else lengths)


def state_field(model: nn.Module, op: SetAttribute) -> None:
    """Give the number to the field."""
    setattr(vars(model)["config"], op.attribute.removeprefix("config."), op.value)


def has_lists(config: Any) -> bool:
    """Whether a field is a list of integers, which may hold a number for each layer."""
    return any(isinstance(part, int) for field, _ in _list_fields(config) for part in field)


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
    size = find_head_size(model)
    starts = dict.fromkeys(((), size, (*size, *_find_stated_numbers(model))))
    best = next(filter(None, (_guess_config(model, base, wanted, given) for given in starts)), None)
    if best is None:
        candidates = [_find_best(model, base, wanted, given) for given in starts]
        best = min(candidates, key=lambda trial: _count_mismatches(trial.shapes, wanted))
    if _count_mismatches(best.shapes, wanted):
        raise ModelError(_find_obstacle(model, best, base.shapes, wanted))
    try:
        type(best.config).from_dict(best.config.to_dict())
    except Exception as error:
        raise ModelError(
            f"{_name_class(model)} refuses the numbers of the cut model: {_last_line(error)}"
        ) from None
    return best.config


def _guess_config(model: Any, base: _Trial, wanted: Shapes, given: tuple[Change, ...]) -> _Trial | None:
    """A trial without any mismatch, in which every field that held an old length has the new one, if there is
    one.

    Changes without which there is no mismatch either are left out.
    """
    lengths: dict[int, set[int]] = {}
    for name in wanted:
        for old, new in zip(base.shapes[name], wanted[name], strict=False):
            if old != new:
                lengths.setdefault(old, set()).add(new)
    certain = {old: next(iter(new)) for old, new in lengths.items() if len(new) == 1}
    changes = [(field, certain[value]) for field, value in _list_fields(model.config) if value in certain]
    badness = partial(_badness, _list_numbers(model), wanted)
    best = _try_changes(model, (*given, *changes))
    if best is None or badness(best) != _NONE_WRONG:
        return None
    for change in changes:
        fewer = tuple(one for one in best.changes if one != change)
        trial = _try_changes(model, fewer)
        if trial is not None and badness(trial) == _NONE_WRONG:
            best = trial
    return best


def _badness(numbers: Mapping[str, float], wanted: Shapes, trial: _Trial) -> tuple[int, int]:
    """How many shapes differ from those that are wanted, and how many numbers of modules from the model's."""
    other_numbers = sum(numbers.get(name, value) != value for name, value in trial.numbers.items())
    return _count_mismatches(trial.shapes, wanted), other_numbers


def _find_best(model: Any, base: _Trial, wanted: Shapes, given: tuple[Change, ...]) -> _Trial:
    """The best trial: changes that help alone, added one by one; by up to three at once where a shape is
    still wrong.
    """
    badness = partial(_badness, _list_numbers(model), wanted)
    start = _try_changes(model, given) or base
    best = min((base, start), key=badness)
    singles: list[Change] = []
    for change in _list_changes(model.config, base.shapes, wanted):
        trial = _try_changes(model, (*given, change))
        if trial is not None and _is_better(trial, start, wanted):
            singles.append(change)
            best = min((best, trial), key=badness)
    best = _add_changes(model, best, singles, badness)
    if not _count_mismatches(best.shapes, wanted):
        return best
    for count in range(2, MOST + 1):
        for changes in combinations(singles, count):
            if badness(best) == _NONE_WRONG:
                return best
            trial = None
            if len({field for field, _ in changes}) == count:
                trial = _try_changes(model, (*given, *changes))
            best = best if trial is None else min((best, trial), key=badness)
    return best


def _add_changes(
    model: Any, best: _Trial, singles: Sequence[Change], badness: Callable[[_Trial], tuple[int, int]]
) -> _Trial:
    """The trial with further changes, each time the one that helps most, as long as one helps."""
    while badness(best) != _NONE_WRONG:
        changed = {field for field, _ in best.changes}
        free = [change for change in singles if change[0] not in changed]
        trials = filter(None, (_try_changes(model, (*best.changes, change)) for change in free))
        better = min(trials, key=badness, default=best)
        if badness(better) >= badness(best):
            break
        best = better
    return best


_NONE_WRONG = (0, 0)
"""badness of a trial that nothing can better"""


def _is_better(trial: _Trial, base: _Trial, wanted: Shapes) -> bool:
    return _count_mismatches(trial.shapes, wanted) < _count_mismatches(base.shapes, wanted)


def find_head_size(model: Any) -> tuple[Change, ...]:
    """The head size as a change: many models read it from an optional field of their configuration."""
    values = [vars(module).get("head_dim") for module in model.modules()]
    sizes = {value for value in values if type(value) is int}
    computed = isinstance(getattr(type(model.config), "head_dim", None), property)
    if len(sizes) != 1 or computed or "head_dim" in vars(model.config):
        return ()
    return ((("head_dim",), sizes.pop()),)


def _find_stated_numbers(model: Any) -> Iterable[Change]:
    """Fields that modules, or configurations of their own, state otherwise, all of them alike."""
    for field, value in _list_fields(model.config):
        (name, *inside) = field
        if inside or value is None:
            continue
        held = set()
        for module in model.modules():
            own = vars(vars(module)["config"]) if _has_own_config(model, module) else {}
            held |= {values[name] for values in (vars(module), own) if type(values.get(name)) is int}
        if len(held) == 1 and held != {value}:
            yield field, held.pop()


def _has_own_config(model: Any, module: nn.Module) -> bool:
    """Whether a cut gave the module a copy of the model's configuration."""
    config = vars(module).get("config")
    return config is not model.config and type(config) is type(model.config)


def _try_changes(model: Any, changes: tuple[Change, ...]) -> _Trial | None:
    config = deepcopy(model.config)
    try:
        for field, value in changes:
            _set_field(config, field, value)
        made = _build(model, config)
    except Exception:  # the heads do not divide the width, a field is not a number, and the like
        return None
    shapes = _list_shapes(made)
    return (
        _Trial(changes, config, shapes, _list_numbers(made))
        if not changes or shapes.keys() == model.state_dict().keys()
        else None
    )


def _build(model: Any, config: Any) -> nn.Module:
    """A new model of the class, without data."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        made: nn.Module = type(model)(deepcopy(config))
    return made


def _build_shapes(model: Any, config: Any) -> Shapes:
    return _list_shapes(_build(model, config))


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
    other = _find_unequal_layer(name, before, wanted)
    if other is not None:
        return (
            f"'{name}' is {_format_shape(wanted[name])} and '{other}' {_format_shape(wanted[other])}, "
            f"but {_name_class(model)} has one number for both; "
            "keep: {uniform: true} in a rule for both gives them the same width"
        )
    tried = " and ".join(f"{'.'.join(map(str, field))} {value}" for field, value in best.changes)
    shape = _format_shape(best.shapes[name])
    said = f"with {tried} it is {shape}" if tried else f"it stays {shape}"
    return f"no number in {_name_class(model)} makes '{name}' {_format_shape(wanted[name])}: {said}"


def _find_unequal_layer(name: str, before: Shapes, after: Shapes) -> str | None:
    """A tensor that had the same shape in another layer with the same name, and has another one now."""
    like = name_kind(name)
    alike = [n for n in after if name_kind(n) == like and before.get(n) == before.get(name)]
    return next((n for n in alike if after[n] != after[name]), None)


def _has_unequal_layers(before: Shapes, after: Shapes) -> bool:
    changed = [name for name, shape in after.items() if before.get(name) != shape]
    return any(_find_unequal_layer(name, before, after) is not None for name in changed)


def _last_line(error: Exception) -> str:
    """The cause, which validators of transformers state in the last line."""
    return str(error).strip().splitlines()[-1].strip()


def _format_shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
