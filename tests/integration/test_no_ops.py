"""What does nothing is said by `plan`, and `--strict` makes it an error."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sparsify_cli.app import exit_code

OPTIMIZER: dict[str, Any] = {"kind": "sgd", "lr": 0.05}
STAGE: dict[str, Any] = {"kind": "train", "name": "learn", "epochs": 2, "optimizer": OPTIMIZER}
LINEAR = {"kind": "linear", "from": 0, "to": 1e-3}


def recipe(stage: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **rule: Any) -> Any:
    return {
        "version": 1,
        "title": "Small",
        "model": {"build": "sparsify.models.digits_cnn"},
        "data": {"source": "digits", "validation": "70%", **(data or {})},
        "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%", **rule}],
        "stages": [{**STAGE, **(stage or {})}, {"kind": "cut"}],
    }


def lasso(strength: Any) -> dict[str, Any]:
    return {"kind": "group_lasso", "strength": strength}


CASES: dict[str, tuple[Any, str]] = {
    "a schedule that begins after its stage": (
        recipe(penalty=lasso({**LINEAR, "from": 1e-4, "start": "10ep", "end": "20ep"})),
        "rules.0.penalty.strength stays at 0.0001: its schedule begins after the stages that it acts in have "
        "ended",
    ),
    "one that is zero until then": (
        recipe(penalty=lasso({**LINEAR, "start": "10ep", "end": "20ep"})),
        "rules.0.penalty.strength is 0 in every step of every stage that it acts in",
    ),
    "a strength that underflows": (
        recipe(penalty=lasso(1e-60)),
        "rules.0.penalty.strength is 1e-60, which float32 does not hold, in every step of every stage that "
        "it acts in",
    ),
    "a warm-up longer than the stage": (
        recipe({"warmup": "3ep"}),
        "stages.0.warmup 3ep is longer than the stage: 'lr' is never reached",
    ),
    "a learning rate of zero": (
        recipe({"optimizer": {"kind": "sgd", "lr": 0}}),
        "stages.0.optimizer.lr is 0 in every step: nothing is learned",
    ),
    "a learning rate that falls too late": (
        recipe({"optimizer": {"kind": "sgd", "lr": {"kind": "step", "value": 0.1, "at": ["5ep"]}}}),
        "stages.0.optimizer.lr stays at 0.1: its schedule begins after the stage has ended",
    ),
    "a crop larger than the image": (
        recipe(data={"augment": {"crop": 9}}),
        "data.augment.crop moves images by up to 9 pixels, and they are 8 high or wide: nothing of some is "
        "left",
    ),
    "one class": (
        recipe(data={"source": "odd_sets:one_class"}),
        "the training set has one class, 3: there is nothing to learn",
    ),
    "classes that training never saw": (
        recipe(data={"source": "odd_sets:unseen"}),
        "the test set has classes that training never sees: 8, 9",
    ),
}
SETS = """
import torch
def part(targets):
    return torch.rand(len(targets), 1, 8, 8), torch.tensor(targets)
def one_class():
    return part([3] * 40), part([3] * 10)
def unseen():
    return part(list(range(8)) * 20), part(list(range(10)))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("odd_sets.py").write_text(SETS)
    torch.manual_seed(0)


def plan(of: Any, *more: str) -> int:
    Path("recipe.yaml").write_text(yaml.safe_dump(of))
    return exit_code(["plan", "recipe.yaml", "--from-scratch", "--json", *more])


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_and_strict_refuses_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    of, said = CASES[name]
    assert plan(of) == 0
    assert said in json.loads(capsys.readouterr().out)["notes"]
    assert plan(of, "--strict") == 1
    err = capsys.readouterr().err
    assert f"{said.partition(' ')[2]}; change it, or run without --strict" in err
    assert len(err.splitlines()) == 1


KNOWN_WITHOUT_DATA = [name for name in CASES if CASES[name][1].startswith(("rules.", "stages."))]


@pytest.mark.parametrize("name", KNOWN_WITHOUT_DATA)
def test_validate_says_it_too_where_it_needs_no_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    of, said = CASES[name]
    path, _, text = said.partition(" ")
    Path("recipe.yaml").write_text(yaml.safe_dump(of))
    assert exit_code(["validate", "recipe.yaml"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"warning: recipe\.yaml:\d+:\d+: " + re.escape(f"{path}: {text}"), line)
    assert exit_code(["validate", "recipe.yaml", "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert (warning["path"], warning["message"]) == (path, text)
    assert exit_code(["validate", "recipe.yaml", "--strict"]) == 1
    assert capsys.readouterr().err.endswith(f"{path}: {text}; change it, or run without --strict\n")


@pytest.mark.parametrize(
    "of",
    [
        recipe({"warmup": "5000it"}),
        recipe(penalty=lasso({**LINEAR, "start": "5000it", "end": "6000it"})),
        recipe({"optimizer": {"kind": "sgd", "lr": {"kind": "step", "value": 0.1, "at": ["5000it"]}}}),
    ],
)
def test_validate_does_not_guess_how_many_steps_an_epoch_has(
    of: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan`, which counts them, says it."""
    Path("recipe.yaml").write_text(yaml.safe_dump(of))
    assert exit_code(["validate", "recipe.yaml", "--strict"]) == 0
    assert capsys.readouterr().err == ""
    assert plan(of, "--strict") == 1


@pytest.mark.parametrize(
    "of",
    [
        recipe(penalty=lasso({**LINEAR, "start": "1ep", "end": "20ep"})),
        recipe({"warmup": "2ep"}, penalty=lasso(1e-3)),
        recipe({"optimizer": {"kind": "sgd", "lr": {"kind": "step", "value": 0.1, "at": ["1ep"]}}}),
        recipe(data={"augment": {"crop": 2}}),
    ],
)
def test_what_does_something_is_not_named(of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(of, "--strict") == 0
