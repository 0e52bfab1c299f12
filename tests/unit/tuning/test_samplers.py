"""What trials try depends on the study's seed and the trial's number, and on nothing else by chance."""

from collections.abc import Iterator
from typing import Any

import optuna
import pytest

from sparsify.errors import RunError
from sparsify.tuning.optuna_package import keep_quiet
from sparsify.tuning.samplers import count_combinations, draw_parameters, make_distribution
from sparsify_schemas.search import Parameter, Search

PARAMETERS: dict[str, Any] = {
    "budget.macs": {"range": ["30%", "70%"]},
    "lr": {"log": [1e-4, 1e-1]},
    "epochs": {"range": [1, 5]},
    "criterion": {"choices": [{"kind": "magnitude"}, {"kind": "taylor"}]},
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with keep_quiet():
        yield


def make_search(sampler: str, parameters: dict[str, Any] = PARAMETERS) -> Search:
    return Search.model_validate({"parameters": parameters, "sampler": sampler})


def draw_all(search: Search, seed: int, numbers: range, fronts: bool = False) -> list[dict[str, Any]]:
    study = optuna.create_study(directions=["minimize", "maximize"] if fronts else ["minimize"])
    found = []
    for number in numbers:
        trial = study.ask()
        found.append(draw_parameters(study, trial, search, seed, number))
        loss = float(found[-1]["epochs"]) + 100 * found[-1]["lr"]
        study.tell(trial, [loss, loss] if fronts else loss)
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_the_same_seed_gives_the_same_trials(sampler: str) -> None:
    search, fronts = make_search(sampler), sampler == "nsga2"
    first = draw_all(search, 1, range(16), fronts)
    assert draw_all(search, 1, range(16), fronts) == first
    assert draw_all(search, 2, range(16), fronts) != first
    assert all(1 <= one["epochs"] <= 5 and isinstance(one["epochs"], int) for one in first)
    assert all(one["budget.macs"].endswith("%") for one in first)
    assert {one["criterion"]["kind"] for one in first} == {"magnitude", "taylor"}
    assert len({one["lr"] for one in first}) > 5, "values are not drawn alike in all trials"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_order_of_the_parameters_does_not_matter(sampler: str) -> None:
    turned = dict(reversed(PARAMETERS.items()))
    first = draw_all(make_search(sampler), 1, range(8))
    assert draw_all(make_search(sampler, turned), 1, range(8)) == first


def test_random_trials_do_not_depend_on_who_begins_them() -> None:
    search = make_search("random")
    whole = draw_all(search, 1, range(6))
    assert [draw_all(search, 1, range(number, number + 1))[0] for number in range(6)] == whole


def test_a_trial_that_was_cut_off_between_two_values_draws_the_rest_as_it_would_have() -> None:
    search = make_search("tpe")
    whole = draw_all(search, 4, range(1))[0]
    study = optuna.create_study()
    trial = study.ask()
    first = Search(parameters={"budget.macs": search.parameters["budget.macs"]})
    draw_parameters(study, trial, first, 4, 0)
    again = optuna.trial.Trial(study, trial._trial_id)
    assert draw_parameters(study, again, search, 4, 0) == whole


def test_a_grid_is_every_combination_once() -> None:
    search = make_search(
        "grid",
        {
            "a": {"range": ["10%", "30%"], "step": "10%"},
            "epochs": {"range": [1, 2]},
            "lr": {"choices": [0.1, 0.2]},
        },
    )
    assert count_combinations(search) == 12
    found = draw_all(search, 1, range(12))
    combinations = {(one["a"], one["epochs"], one["lr"]) for one in found}
    assert combinations == {
        (a, epochs, lr) for a in ("10%", "20%", "30%") for epochs in (1, 2) for lr in (0.1, 0.2)
    }
    assert found != draw_all(search, 2, range(12)), "in an order of the seed"


def test_a_grid_that_nobody_can_list_is_refused() -> None:
    search = make_search("grid", {"a": {"range": [1, 1000]}, "b": {"range": [1, 1000]}})
    with pytest.raises(RunError) as error:
        count_combinations(search)
    assert str(error.value) == (
        "the grid of the search has 1,000,000 combinations, more than 100,000; give fewer values, or write "
        "'sampler: random'"
    )


def test_distributions_have_the_ends_that_steps_reach() -> None:
    stepped = make_distribution(Parameter.model_validate({"range": ["10%", "45%"], "step": "10%"}))
    assert stepped == optuna.distributions.FloatDistribution(10.0, 40.0, step=10.0)
    whole = make_distribution(Parameter.model_validate({"log": [1, 64]}))
    assert whole == optuna.distributions.IntDistribution(1, 64, log=True)
