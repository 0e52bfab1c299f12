"""Learning rates of some layers, in runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsify
from sparsify.errors import RecipeError
from sparsify.events import EpochDone, Event
from sparsify.models import digits_cnn

SGD = {"kind": "sgd", "lr": 0.5}
TUNE: dict[str, Any] = {"kind": "train", "epochs": 1, "batch": 2000, "optimizer": SGD}
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "70%"},
    "targets": {"eager": {"kind": "cpu"}},
    "rules": [{"layers": "Conv2d", "group": "filter", "sparsity": "50%"}],
    "stages": [{"kind": "cut", "repair": False}, TUNE],
}
SOME = [{"layers": "conv1", "scale": 0.0}, {"layers": ["BatchNorm2d", "conv*"], "scale": 0.25}]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(digits_cnn().state_dict(), tmp_path / "model.pt")


def weights_after(rates: Any) -> dict[str, Tensor]:
    """After one step over all examples at once, from the same weights."""
    recipe = {**RECIPE, "stages": [RECIPE["stages"][0], {**TUNE, "rates": rates}]}
    run = sparsify.apply(recipe, "model.pt", timing=0.05)
    return {name: p.detach() for name, p in sparsify.load_run(run).named_parameters()}


def test_the_rates_of_some_layers() -> None:
    still = weights_after([{"layers": "*", "scale": 0.0}])
    full, some = weights_after([]), weights_after(SOME)
    for name, value in some.items():
        if name.startswith("conv1"):
            wanted = 0.0
        elif name.startswith(("conv", "bn")):
            wanted = 0.25
        else:
            wanted = 1.0
        change = full[name] - still[name]
        torch.testing.assert_close(value - still[name], wanted * change, rtol=1e-3, atol=1e-6, msg=name)
    assert float((full["conv1.weight"] - still["conv1.weight"]).abs().max()) > 0


def test_a_stage_with_rates_goes_on_after_a_stop_and_through_cuts() -> None:
    stage = {**TUNE, "epochs": 3, "batch": 200, "rates": SOME, "cuts": {"end": "2ep"}}
    stage["optimizer"] = {**SGD, "lr": 0.05, "momentum": 0.9}
    recipe = {**RECIPE, "stages": [stage]}
    whole = sparsify.apply(recipe, from_scratch=True, timing=0.05, out="whole")

    def stop(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sparsify.apply(recipe, from_scratch=True, timing=0.05, out="torn", listener=stop)
    torn = next(Path("torn").iterdir())
    sparsify.apply(resume=torn, timing=0.05)
    first, second = sparsify.load_run(whole).state_dict(), sparsify.load_run(torn).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_plan_names_the_rates() -> None:
    recipe = {**RECIPE, "stages": [RECIPE["stages"][0], {**TUNE, "rates": SOME}]}
    model, x = digits_cnn(), torch.zeros(2, 1, 8, 8)
    text = " ".join(sparsify.describe(sparsify.make_plan(recipe, model, (x,))).split())
    assert "rates 0 of it in conv1 and 0.25 of it in BatchNorm2d, conv*" in text


def test_layers_that_are_not_there_are_refused() -> None:
    hints = {
        "zz*": "the layers are conv1, bn1, conv2, bn2, conv3, bn3, conv4, bn4, ...; their classes are "
        "BatchNorm2d, Conv2d, Linear",
        "cnov2": "did you mean 'conv2'?",
        "Linaer": "did you mean 'Linear'?",
    }
    for pattern, hint in hints.items():
        with pytest.raises(RecipeError) as caught:
            weights_after([{"layers": ["conv1", pattern], "scale": 0.1}])
        assert str(caught.value) == (
            f"<recipe>: stages.1.rates: '{pattern}' matches no layer of the model; {hint}"
        )
