"""The search of a recipe: what it takes, and what is said where it cannot be carried out."""

from pathlib import Path

import pytest

from sparsify.errors import RecipeError
from sparsify.recipe import dump, load, write_source
from sparsify.recipe.search_space import write_overrides
from sparsify_schemas.search import Parameter, split_unit

RECIPE = """version: 1
title: a search
vars: {finetune: 1}
model: {build: sparsify.models.digits_cnn}
data: {source: digits, validation: 20%}
budget: {macs: 50%}
targets: {here: {kind: cpu}}
rules:
  - {layers: Conv2d, group: filter}
stages:
  - {kind: cut}
  - {kind: train, name: tune, epochs: "${finetune}", batch: 64, optimizer: {kind: sgd, lr: 0.01}}
search:
  parameters:
    budget.macs: [30%, 70%]
    rules.0.criterion: {choices: [{kind: magnitude}, {kind: taylor}]}
    stages.1.optimizer.lr: {log: [1e-4, 1e-1]}
    finetune: [1, 3]
  trials: 4
"""


def read_changed(folder: Path, old: str, new: str) -> str:
    """What is said of the recipe with a part of it changed, without its path."""
    assert old in RECIPE
    file = folder / "r.yaml"
    file.write_text(RECIPE.replace(old, new))
    with pytest.raises(RecipeError) as error:
        load(file)
    return str(error.value).replace(str(file), "r.yaml")


@pytest.mark.parametrize(
    "old, new, said",
    [
        (
            "[1, 3]",
            "[1, 2, 3]",
            "18:15: search.parameters.finetune: a list is a range of two numbers, and this one has 3 "
            "entries; "
            "to choose among them write {choices: [1, 2, 3]}",
        ),
        (
            "[1, 3]",
            "[few, many]",
            "18:15: search.parameters.finetune: a list is a range of two numbers, and this one holds "
            "something "
            "else; to choose among them write {choices: [few, many]}",
        ),
        (
            "[1, 3]",
            "[0, 3]",
            "18:5: search.parameters.finetune: with 0: stages.1.epochs: expected at least 1, found the "
            "number "
            "0; this is what '${finetune}' comes to",
        ),
        (
            "magnitude}",
            "magnitud}",
            '16:5: search.parameters.rules.0.criterion: with {"kind": "magnitud"}: rules.0.criterion.kind: '
            "unknown kind 'magnitud'; did you mean 'magnitude'?",
        ),
        (
            "lr: {log",
            "lrr: {log",
            "17:5: search.parameters.stages.1.optimizer.lrr: with 0.0001: stages.1.optimizer.lrr: unknown "
            "key; "
            "did you mean 'lr'?",
        ),
        (
            "[30%, 70%]",
            "[30ms, 70%]",
            "15:18: search.parameters.budget.macs.range: '30ms' and '70%' have different units; write both "
            "in "
            "one",
        ),
        (
            "[30%, 70%]",
            "[70%, 30%]",
            "15:18: search.parameters.budget.macs.range: '70%' is not below '30%'; write the smaller one "
            "first",
        ),
        (
            "[30%, 70%]",
            "{range: [30%, 70%], step: 5}",
            "15:38: search.parameters.budget.macs.step: '5' is not in the unit of the range; write it like "
            "its "
            "ends",
        ),
        (
            "[30%, 70%]",
            "{range: [30%, 70%], step: 50%}",
            "15:38: search.parameters.budget.macs.step: a step is above 0 and fits into the range, and '50%' "
            "does not",
        ),
        (
            "{log: [1e-4, 1e-1]}",
            "{log: [0, 1e-1]}",
            "17:29: search.parameters.stages.1.optimizer.lr.log: a logarithmic range begins above 0, and "
            "this "
            "one at 0",
        ),
        (
            "{log: [1e-4, 1e-1]}",
            "{log: [1e-4, 1e-1], step: 2}",
            "17:48: search.parameters.stages.1.optimizer.lr.step: 'step' divides a 'range', and this is "
            "'log'; "
            "leave it out",
        ),
        (
            "{log: [1e-4, 1e-1]}",
            "{log: [1e-4, 1e-1], choices: [1, 2]}",
            "17:28: search.parameters.stages.1.optimizer.lr: expected one of range, log and choices, found "
            "'log' and 'choices'",
        ),
        (
            "[1, 3]",
            "{choices: [2]}",
            "18:16: search.parameters.finetune.choices: expected at least two values to choose from; write "
            "one "
            "in the recipe itself",
        ),
        (
            "[1, 3]",
            "{choices: [2, 3, 2]}",
            "18:32: search.parameters.finetune.choices.2: '2' stands there twice; leave one out",
        ),
        (
            "finetune: [1, 3]",
            "finetun: [1, 3]",
            "18:5: search.parameters.finetun: unknown key 'finetun'; did you mean 'finetune'?",
        ),
        (
            "    finetune: [1, 3]",
            "    seed: [1, 3]",
            "18:5: search.parameters.seed: it changes 'seed', which all trials have in common, as they are "
            "compared by it; leave it out",
        ),
        (
            "    finetune: [1, 3]",
            "    data.validation: [10%, 30%]",
            "18:5: search.parameters.data.validation: it changes 'data.validation', which all trials have in "
            "common, as they are compared by it; leave it out",
        ),
        (
            "    finetune: [1, 3]",
            "    search.trials: [1, 3]",
            "18:5: search.parameters.search.trials: a search cannot change itself; leave it out",
        ),
        (
            "trials: 4",
            "early_stopping: asha\n  objective: {cost: macs}",
            "19:3: search.early_stopping: 'asha' compares trials by one figure, and 'objective.cost' makes a "
            "front of two; write 'early_stopping: none', or leave 'objective.cost' out",
        ),
        (
            "trials: 4",
            "sampler: grid",
            "15:5: search.parameters.budget.macs: sampler 'grid' tries every value, and a range without "
            "'step' "
            "has no end of them; write {range: [...], step: ...} or {choices: [...]}",
        ),
        (
            "trials: 4",
            "objective: {cost: latency.there}",
            "19:15: search.objective.cost: 'latency.there' is no cost; known: macs, params, bytes, "
            "latency.here, and latency.TARGET of the recipe's targets",
        ),
        (
            "trials: 4",
            "objective: {metric: f1}",
            "19:15: search.objective.metric: 'f1' is no metric of the task; known: accuracy",
        ),
        (
            "data: {source: digits, validation: 20%}",
            "data: {source: digits, validation: 0%}",
            "13:1: search: trials are judged on validation data; write 'data' with 'validation' above 0%",
        ),
        (
            "trials: 4",
            "sampler: tpee",
            "19:12: search.sampler: expected one of tpe, nsga2, random, grid, found the text 'tpee'; did you "
            "mean 'tpe'?",
        ),
        ("  trials: 4", "  trials: 0", "19:11: search.trials: expected at least 1, found the number 0"),
    ],
)
def test_what_is_wrong_with_a_search_is_said_at_its_line(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert read_changed(tmp_path, old, new) == f"r.yaml:{said}"


def test_early_stopping_needs_a_curve_of_the_metric(tmp_path: Path) -> None:
    without = RECIPE.replace("trials: 4", "early_stopping: asha")
    file = tmp_path / "r.yaml"
    file.write_text(without)
    assert load(file).recipe.search is not None
    with pytest.raises(RecipeError) as error:
        load(file, ["stages=[{kind: cut}]"])
    assert str(error.value).endswith(
        "search.early_stopping: 'asha' stops training early, and no stage trains; write 'early_stopping: "
        "none'"
    )
    two = "task={kind: classification, metrics: [accuracy, f1]}"
    with pytest.raises(RecipeError) as error:
        load(file, [two, "search.objective.metric=f1"])
    assert str(error.value).endswith(
        "search.early_stopping: 'asha' goes by the curves of 'accuracy', and the objective is 'f1'; write "
        "'f1' first in task.metrics, or 'early_stopping: none'"
    )
    with pytest.raises(RecipeError) as error:
        load(file, ["budget.accuracy_drop=1pp"])
    assert str(error.value).endswith(
        "search.early_stopping: budget.accuracy_drop trains several times in one trial, so there is no one "
        "curve; write 'early_stopping: none'"
    )


@pytest.mark.parametrize(
    "written, values",
    [
        ([1, 4], [1, 2, 3, 4]),
        ({"range": [1, 8], "step": 3}, [1, 4, 7]),
        ({"range": ["10%", "45%"], "step": "10%"}, ["10%", "20%", "30%", "40%"]),
        ({"range": [0.5, 1], "step": 0.25}, [0.5, 0.75, 1.0]),
        ({"choices": ["a", {"kind": "taylor"}]}, ["a", {"kind": "taylor"}]),
    ],
)
def test_finite_parameters_list_their_values(written: object, values: list[object]) -> None:
    given = {"range": written} if isinstance(written, list) else written
    parameter = Parameter.model_validate(given)
    assert parameter.is_finite and list(parameter.list_values()) == values


def test_units_and_whole_numbers_stay() -> None:
    share = Parameter.model_validate({"range": ["30%", "70%"]})
    assert (share.is_whole, share.is_finite) == (False, False)
    assert share.write_value(43.2178912) == "43.2179%" and share.write_value(50.0) == "50%"
    whole = Parameter.model_validate({"log": [1, 1000]})
    assert whole.is_whole and repr(whole.write_value(31.0)) == "31"
    plain = Parameter.model_validate({"range": [0, 1.0]})
    assert not plain.is_whole and plain.write_value(0.123456789) == 0.123457
    assert split_unit("2.5ms") == (2.5, "ms")
    with pytest.raises(ValueError, match="expected a number, with a unit or without"):
        split_unit(True)


def test_overrides_read_back_as_the_values(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    values = {
        "budget.macs": "41.5%",
        "rules.0.criterion": {"kind": "magnitude", "norm": 1},
        "stages.1.optimizer.lr": 1e-05,
        "finetune": 2,
        "title": "costs ${5}",
    }
    found = load(file, write_overrides(values)).recipe
    assert str(found.budget.macs) == "41.5%" and found.title == "costs ${5}"
    assert found.rules[0].criterion.kind == "magnitude"
    assert found.stages[1].epochs == 2 and found.stages[1].optimizer.lr.value == 1e-05  # type: ignore[union-attr]


def test_a_written_source_reads_as_the_same_recipe_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(RECIPE)
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\ntitle: of a child\nvars: {finetune: 2}\n")
    text = write_source(child, ["budget.macs=40%"])
    elsewhere = tmp_path / "elsewhere" / "search.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(text)
    assert "extends" not in text and "${finetune}" in text
    assert load(elsewhere).recipe == load(child, ["budget.macs=40%"]).recipe
    assert write_source(elsewhere) == text, "written once more it stays as it is"


def test_a_recipe_without_its_variables_keeps_its_search() -> None:
    recipe = load({"version": 1, **_plain(), "search": {"parameters": {"epochs": [1, 2]}}}).recipe
    assert load(recipe).recipe == recipe, "the variable was checked when the recipe was read"
    assert recipe.search is not None and "epochs" in dump(recipe)


def _plain() -> dict[str, object]:
    return {
        "title": "plain",
        "vars": {"epochs": 1},
        "data": {"source": "digits"},
        "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%"}],
        "stages": [
            {"kind": "cut"},
            {"kind": "train", "name": "t", "epochs": "${epochs}", "optimizer": {"kind": "sgd", "lr": 0.1}},
        ],
    }
