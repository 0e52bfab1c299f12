"""Who proposes the values of a trial.

Every value is drawn with a seed of its own, made of the study's seed, the trial's number and the name of the
parameter. So what a trial tries depends on these and on the trials that the sampler looks at, and not on
which worker asks, how many there are, or whether one was killed between two values.
"""

import hashlib
import json
import math
import random
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from sparsify.errors import RunError
from sparsify_schemas.search import Parameter, Search, split_unit

LARGEST_GRID = 100_000
"""Combinations of a grid."""


def make_distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's form of a parameter: choices as their JSON, ranges as numbers without their unit."""
    if parameter.choices is not None:
        return CategoricalDistribution([json.dumps(choice) for choice in parameter.choices])
    (low, _), (high, _) = map(split_unit, parameter.ends)
    is_log = parameter.log is not None
    step = None if parameter.step is None else split_unit(parameter.step)[0]
    if step is not None:
        high = low + step * math.floor((high - low) / step + 1e-9)
    if parameter.is_whole:
        return IntDistribution(int(low), int(high), log=is_log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=is_log, step=None if step is None else float(step))


def write_value(parameter: Parameter, drawn: Any) -> Any:
    """What a recipe holds for a value that was drawn."""
    return json.loads(drawn) if parameter.choices is not None else parameter.write_value(drawn)


def draw_parameters(
    study: optuna.Study, trial: optuna.trial.Trial, search: Search, seed: int, number: int
) -> dict[str, Any]:
    """The values of a trial, by key of the recipe. Values that it has already stay.

    seed: of the study. number: of the trial.
    """
    values = {}
    grid = _pick_combination(search, seed, number) if search.sampler == "grid" else {}
    study.sampler = _make_sampler(search, grid, _derive_seed(seed, number, ""))
    _ = trial.relative_params  # those of a genetic algorithm are drawn together
    for name, parameter in search.parameters.items():
        study.sampler = _make_sampler(search, grid, _derive_seed(seed, number, name))
        values[name] = write_value(parameter, _draw_value(trial, name, make_distribution(parameter)))
    return values


def _derive_seed(seed: int, number: int, name: str) -> int:
    """32 bits of SHA-256 over the study's seed, the trial's number and the parameter's name."""
    text = f"{seed}/{number}/{name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _draw_value(trial: optuna.trial.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, step=step, log=log)
    raise AssertionError(distribution)  # `make_distribution` makes no other


def _make_sampler(search: Search, grid: Mapping[str, Any], seed: int) -> BaseSampler:
    match search.sampler:
        case "tpe":
            startup = choose_startup(search.trials)
            return TPESampler(seed=seed, constant_liar=True, n_startup_trials=startup)
        case "nsga2":
            return NSGAIISampler(seed=seed, population_size=_choose_population(search.trials))
        case "random":
            return RandomSampler(seed=seed)
        case "grid":
            return _FixedSampler(grid)


def choose_startup(trials: int) -> int:
    """Random trials before an estimator learns from them: a quarter, from 3 to Optuna's 10."""
    return max(3, min(10, trials // 4))


def _choose_population(trials: int) -> int:
    """Four generations at least, where there are trials enough."""
    return max(4, min(50, trials // 4))


class _FixedSampler(BaseSampler):
    """Proposes values that are known."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def infer_relative_search_space(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: optuna.trial.FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: optuna.trial.FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: optuna.trial.FrozenTrial,  # noqa: ARG002
        param_name: str,
        param_distribution: BaseDistribution,  # noqa: ARG002
    ) -> Any:
        return self._values[param_name]


def count_combinations(search: Search) -> int:
    """The size of a grid. Raises RunError where it is too large to be listed."""
    sizes = [len(list(one.list_values())) for one in search.parameters.values()]
    size = math.prod(sizes)
    if size > LARGEST_GRID:
        raise RunError(
            f"the grid of the search has {size:,} combinations, more than {LARGEST_GRID:,}; give fewer "
            "values, or write 'sampler: random'"
        )
    return size


def _pick_combination(search: Search, seed: int, number: int) -> dict[str, Any]:
    """The combination of a trial, in an order that the seed shuffles: a grid that is cut short is spread."""
    sizes = {name: list(one.list_values()) for name, one in sorted(search.parameters.items())}
    size = count_combinations(search)
    place = random.Random(seed).sample(range(size), size)[number % size]
    found = {}
    for name, values in sizes.items():
        place, index = divmod(place, len(values))
        found[name] = _to_optuna(search.parameters[name], values[index], index)
    return found


def _to_optuna(parameter: Parameter, value: Any, index: int) -> Any:
    """The value of a grid as Optuna holds it."""
    if parameter.choices is not None:
        return json.dumps(value)
    low = split_unit(parameter.ends[0])[0]
    step = 1 if parameter.step is None else split_unit(parameter.step)[0]
    return low + index * step
