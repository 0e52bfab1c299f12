"""Teachers from files: what they may be, where they are looked for, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import RecipeError, RunError, TrainingError
from sparsify.events import Event, StepDone
from sparsify.models import digits_cnn
from sparsify.runs.run_folder import read_recipe

TRAIN = {"kind": "train", "name": "learn", "epochs": 1, "batch": 256, "optimizer": {"kind": "sgd", "lr": 0.1}}
CUT = {"kind": "cut", "repair": False}
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Taught",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "70%"},
    "targets": {"eager": {"kind": "cpu"}},
    "rules": [{"layers": "conv1", "group": "filter", "sparsity": "50%"}],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    torch.save(digits_cnn().state_dict(), "teacher.pt")


def learn(teacher: str, **more: Any) -> dict[str, Any]:
    """A recipe that trains by a teacher alone, then cuts."""
    distill = {"teacher": teacher, "weight": 1.0, **more}
    return {**RECIPE, "stages": [{**TRAIN, "distill": distill}, CUT]}


def apply(recipe: Any, **more: Any) -> Path:
    return sparsify.apply(recipe, from_scratch=True, timing=0.02, **more)


def test_the_same_teacher_in_four_kinds_of_file_makes_the_same_model() -> None:
    """Weights, a whole model, a run's dense model and the cut model of a run that cut nothing."""
    model = digits_cnn().eval()
    model.load_state_dict(torch.load("teacher.pt"))
    torch.save(model, "whole.pt")
    none = [{"layers": "conv1", "group": "weight", "sparsity": "0%"}]
    uncut = sparsify.apply({**RECIPE, "rules": none, "stages": [CUT]}, "teacher.pt", timing=0.02)
    cut = sparsify.apply({**RECIPE, "stages": [CUT]}, "teacher.pt", timing=0.02)
    ends = []
    for teacher in ("teacher.pt", "whole.pt", str(cut / "dense.safetensors"), str(uncut)):
        run = apply(learn(teacher))
        assert read_recipe(run).stages[0].distill.teacher == str(Path(teacher).resolve())  # type: ignore[union-attr]
        ends.append((run / "dense.safetensors").read_bytes())
    assert ends[1:] == ends[:1] * 3
    assert (apply(learn(str(cut))) / "dense.safetensors").read_bytes() != ends[0]


def test_a_teacher_lies_beside_the_recipe() -> None:
    Path("deep").mkdir()
    Path("teacher.pt").rename("deep/good.pt")
    Path("deep/recipe.yaml").write_text(
        "version: 1\ntitle: Taught\nmodel: {build: sparsify.models.digits_cnn}\n"
        "data: {source: digits}\nrules: [{layers: conv1, group: filter, sparsity: 50%}]\n"
        "stages:\n"
        "  - {kind: train, epochs: 1, optimizer: {kind: sgd, lr: 0.1}, distill: {teacher: good.pt}}\n"
        "  - {kind: cut}\n"
    )
    found = sparsify.load_recipe("deep/recipe.yaml").recipe.stages[0]
    assert found.distill.teacher == str(Path("deep/good.pt").resolve())  # type: ignore[union-attr]
    plan = sparsify.make_plan("deep/recipe.yaml", digits_cnn().eval(), (torch.zeros(2, 1, 8, 8),))
    assert "distilled from good.pt (weight 0.5, temperature 4)" in " ".join(sparsify.describe(plan).split())
    Path("deep/good.pt").unlink()
    with pytest.raises(RecipeError) as caught:
        apply("deep/recipe.yaml")
    assert str(caught.value) == (
        "deep/recipe.yaml:7:82: stages.0.distill.teacher: there is no file "
        f"{Path('deep/good.pt').resolve()}; name weights, a whole model or the folder of a run, or 'dense'"
    )
    assert not Path("runs").exists()


def test_a_teacher_of_another_form_is_refused() -> None:
    torch.save(digits_cnn(classes=12).eval(), "twelve.pt")
    path = Path("twelve.pt").resolve()
    with pytest.raises(RecipeError) as caught:
        apply(learn("twelve.pt"))
    assert str(caught.value) == (
        f"<recipe>: stages.0.distill.teacher: the teacher {path} returns a tensor of shape (12,) for each "
        "example and the model a tensor of shape (10,); name a teacher with outputs of the same form"
    )
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(9, 10)), "other.pt")
    path = Path("other.pt").resolve()
    with pytest.raises(RecipeError) as caught:
        apply(learn("other.pt"))
    assert str(caught.value).startswith(
        f"<recipe>: stages.0.distill.teacher: teacher {path}: the model does not take a batch of shape "
        "(2, 1, 8, 8): "
    )
    torch.save(digits_cnn(width=8).eval(), "narrow.pt")
    with pytest.raises(RecipeError) as caught:
        apply(learn("narrow.pt", features=["conv1"]))
    assert str(caught.value) == (
        "<recipe>: stages.0.distill.teacher: features: 'conv1' returns a tensor of shape (2, 16, 8, 8) and "
        "in the teacher one of (2, 8, 8, 8), and nothing says which of these belong together; name layers of "
        "equal widths"
    )
    assert not Path("runs").exists()


def test_features_of_a_file_need_the_width_that_the_cut_left() -> None:
    tune = {**TRAIN, "distill": {"teacher": "teacher.pt", "features": ["conv1"]}}
    with pytest.raises(TrainingError) as caught:
        apply({**RECIPE, "stages": [CUT, tune]})
    assert str(caught.value) == (
        "stage 'learn': features: 'conv1' returns a tensor of shape (256, 8, 8, 8) and in the teacher one of "
        "(256, 16, 8, 8), and nothing says which of these belong together; name layers of equal widths"
    )
    tune = {**TRAIN, "distill": {"teacher": "teacher.pt", "features": ["conv2", "bn4"]}}
    assert (apply({**RECIPE, "stages": [CUT, tune]}) / "report.json").exists()


def test_a_run_goes_on_with_its_teacher_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = learn("teacher.pt", features=["conv2"])
    recipe["stages"][0] |= {"epochs": 2}
    whole = apply(recipe)

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(recipe, listener=stop)
    run, before = Path("runs/taught-2").resolve(), Path("teacher.pt").read_bytes()
    torch.save(digits_cnn().state_dict(), "teacher.pt")
    path = Path("teacher.pt").resolve()
    with pytest.raises(RunError) as caught:
        sparsify.apply(resume=run)
    assert str(caught.value) == (
        f"{path} (stages.0.distill.teacher) was changed since the run began; start a new run with it"
    )
    path.unlink()
    with pytest.raises(RecipeError, match=r"distill\.teacher: there is no file .*teacher\.pt; name"):
        sparsify.apply(resume=run)
    path.write_bytes(before)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sparsify.apply(resume=run, timing=0.02)
    for name in ("dense.safetensors", "model.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / whole / name).read_bytes()
