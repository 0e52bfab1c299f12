"""The repair stage in a run: what it says, what it keeps, and that an interrupted run goes on with the
same bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparsify
from sparsify.errors import ModelError, RecipeError
from sparsify.events import Event, Measuring, Note, StageStarted
from sparsify.models import digits_cnn
from sparsify.reporting.report_file import read_report
from sparsify.reporting.report_tables import list_tables
from sparsify.runs import setup
from sparsify.runs.model_base import read_cuts
from sparsify.runs.run_folder import CHECKPOINT
from sparsify_cli.app import exit_code
from sparsify_schemas.criterion import Reconstruction

RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "70%"},
    "targets": {"eager": {"kind": "cpu"}},
    "budget": {"macs": "40%"},
    "rules": [{"layers": "Conv2d", "group": "filter"}],
    "stages": [
        {"kind": "train", "epochs": 1, "optimizer": {"kind": "adam", "lr": 0.003}},
        {"kind": "cut"},
        {"kind": "repair", "examples": 300},
        {"kind": "train", "name": "tune", "epochs": 1, "optimizer": {"kind": "adam"}},
    ],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_repairs_after_its_cut() -> None:
    heard: list[Event] = []
    run = sparsify.apply(RECIPE, from_scratch=True, timing=0.05, listener=heard.append)
    report = read_report(run)
    _, cut, repair, _ = report.stages
    assert (repair.kind, repair.name) == ("repair", "repair")
    assert repair.repair is not None and repair.repair.examples == 300 and not repair.repair.reverted
    assert cut.agreement is not None and repair.agreement is not None
    assert repair.agreement.error < cut.agreement.error and repair.agreement == repair.repair.after
    assert cut.validation_metric is not None and repair.validation_metric is not None
    assert repair.validation_metric > cut.validation_metric
    table = next(t for t in list_tables(report) if t.title == "Agreement with the dense model")
    assert [row[0] for row in table.rows] == ["cut", "repair"]
    said = next(note for note in table.notes if note.startswith("repair: "))
    assert said.startswith("repair: least_squares on 300 unlabelled training examples; ")
    assert any(isinstance(e, StageStarted) and e.kind == "repair" for e in heard)
    note = next(e.text for e in heard if isinstance(e, Note) and e.text.startswith("repair: "))
    assert note in table.notes
    steps = [(e.done, e.total) for e in heard if isinstance(e, Measuring) and e.what == "repair: layers"]
    total = len(repair.repair.layers)
    assert steps == [(number, total) for number in range(total + 1)] and total > 2
    plan = sparsify.describe(sparsify.make_plan(RECIPE, sparsify.load_run(run), (torch.zeros(2, 1, 8, 8),)))
    assert "refit by least squares on 300 training examples, without labels" in " ".join(plan.split())


@pytest.mark.parametrize("after", ["cut", "two layers", "repair"])
def test_a_run_that_is_interrupted_around_a_repair_ends_with_the_same_bits(after: str) -> None:
    whole = sparsify.apply(RECIPE, from_scratch=True, timing=0.05, out="whole")

    def stop(event: Event) -> None:
        starts = event.name if isinstance(event, StageStarted) else None
        refitted = event.done if isinstance(event, Measuring) and event.what == "repair: layers" else 0
        reached = {"cut": starts == "repair", "two layers": refitted == 2, "repair": starts == "tune"}
        if reached[after]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sparsify.apply(RECIPE, from_scratch=True, timing=0.05, out="torn", listener=stop)
    torn = next(Path("torn").iterdir())
    assert (torn / CHECKPOINT).exists()
    sparsify.apply(resume=torn, timing=0.05)
    first, second = sparsify.load_run(whole).state_dict(), sparsify.load_run(torn).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_report(torn).stages[2].repair == read_report(whole).stages[2].repair


def test_a_repair_that_cannot_be_is_refused() -> None:
    without = {**RECIPE, "data": None, "inputs": [{"shape": [2, 1, 8, 8]}], "stages": RECIPE["stages"][1:3]}
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe(without)
    assert "a recipe with a 'repair' stage needs 'data': it looks at training examples, not at labels" in str(
        caught.value
    )
    early = {**RECIPE, "stages": [{"kind": "repair"}, {"kind": "cut"}]}
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe(early)
    assert str(caught.value) == (
        "<recipe>: stages.0: 'repair' repairs what a cut left, and no stage before it cuts"
    )
    stages = [{"kind": "cut"}, {"kind": "repair", "weigh": "places"}]
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe({**RECIPE, "task": "regression", "stages": stages})
    assert str(caught.value) == (
        "<recipe>: stages.1.weigh: 'repair' weighs places by predictions of classes, which this task has "
        "not, or which a loss of its own may read otherwise; leave 'weigh' out"
    )


def test_a_run_merges_without_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = digits_cnn()
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
            half = layer.out_channels // 2
            layer.weight[half : 2 * half] = 0.1 * layer.weight[:half]
    torch.save(model.state_dict(), tmp_path / "model.pt")
    recipe = {
        "version": 1,
        "title": "Digits",
        "model": {"build": "sparsify.models.digits_cnn"},
        "inputs": [{"shape": [2, 1, 8, 8]}],
        "budget": {"macs": "60%"},
        "rules": [{"layers": "Conv2d", "group": "filter"}],
        "stages": [{"kind": "cut"}, {"kind": "repair", "method": "merge"}],
    }
    heard: list[Event] = []
    run = sparsify.apply(recipe, tmp_path / "model.pt", timing=0.05, listener=heard.append)
    repair = read_report(run).stages[1]
    assert repair.repair is not None and repair.repair.method == "merge" and repair.agreement is None
    merged = [row.layer for row in repair.repair.layers if row.outcome == "merged"]
    said = next(e.text for e in heard if isinstance(e, Note) and e.text.startswith("repair: "))
    count = len(repair.repair.layers)
    layers = f"{count} layer" + ("s" if count > 1 else "")
    assert merged and said == f"repair: merge, without data; {len(merged)} of {layers} changed."
    plan = sparsify.describe(sparsify.make_plan(recipe, model, (torch.zeros(2, 1, 8, 8),)))
    assert "add what removed units computed to those most like them, without data" in " ".join(plan.split())
    late = {**RECIPE, "stages": [*RECIPE["stages"][:2], {"kind": "repair", "method": "merge"}]}
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe(late)
    assert str(caught.value) == (
        "<recipe>: stages.2: 'repair' merges units into those that the cut left as they were; it must be the "
        "second stage, after a 'cut'"
    )


WITHOUT_STAGE: dict[str, Any] = {**RECIPE, "stages": [*RECIPE["stages"][:2], RECIPE["stages"][3]]}


def kinds(run: Path) -> list[str]:
    return [row.kind for row in read_report(run).stages]


def test_a_cut_is_repaired_by_default_where_there_are_data() -> None:
    run = sparsify.apply(WITHOUT_STAGE, from_scratch=True, timing=0.05)
    assert kinds(run) == ["train", "cut", "repair", "train"]
    explicit = sparsify.apply(
        {
            **RECIPE,
            "stages": [*RECIPE["stages"][:2], {"kind": "repair"}, RECIPE["stages"][3]],
        },
        from_scratch=True,
        timing=0.05,
    )
    first, second = sparsify.load_run(run).state_dict(), sparsify.load_run(explicit).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    written = sparsify.load_recipe(run / "recipe.yaml").recipe
    assert [stage.kind for stage in written.stages] == ["train", "cut", "repair", "train"]


def test_a_cut_that_is_repaired_chooses_by_reconstruction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = {"layers": "conv*", "group": "filter", "sparsity": "50%"}
    spec = {"kind": "reconstruction", "batches": 8}
    trained_and_cut = {**WITHOUT_STAGE, "stages": WITHOUT_STAGE["stages"][:2]}
    runs = [
        sparsify.apply({**trained_and_cut, "rules": [own]}, from_scratch=True, timing=0.05)
        for own in (rule, {**rule, "criterion": spec}, {**rule, "criterion": {"kind": "magnitude"}})
    ]
    default, explicit, magnitude = (read_cuts(run)[0].widths for run in runs)
    assert default == explicit != magnitude
    (written,) = sparsify.load_recipe(runs[0] / "recipe.yaml").recipe.rules
    assert written.criterion == Reconstruction.model_validate({**spec, "required": False})
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({**WITHOUT_STAGE, "rules": [rule]}))
    assert exit_code(["validate", str(file)]) == 0
    assert "conv*: filter, 50% removed, pruned by reconstruction" in capsys.readouterr().out


def test_the_plan_shows_the_default_repair() -> None:
    from sparsify.reporting import plan_tables
    from sparsify.runs.apply import preview

    plan = preview(WITHOUT_STAGE, None, from_scratch=True)
    (table,) = (table for table in plan_tables.list_tables(plan) if table.title == "Stages")
    said = "refit by least squares on 1000 training examples, without labels"
    assert table.rows[2] == ("repair", f"{said}; by default, unless the cut says 'repair: false'")


@pytest.mark.parametrize(
    "stages",
    [
        [{"kind": "cut", "repair": False}],
        [{"kind": "cut", "name": "half", "way": "50%"}, {"kind": "cut"}],
    ],
    ids=["switched off", "several cuts"],
)
def test_there_is_no_default_repair(stages: list[dict[str, Any]]) -> None:
    run = sparsify.apply({**RECIPE, "stages": stages}, from_scratch=True, timing=0.05)
    assert "repair" not in kinds(run)


def test_there_is_no_default_repair_without_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(digits_cnn().state_dict(), tmp_path / "model.pt")
    without = {**RECIPE, "data": None, "inputs": [{"shape": [2, 1, 8, 8]}], "stages": [{"kind": "cut"}]}
    assert kinds(sparsify.apply(without, tmp_path / "model.pt", timing=0.05)) == ["cut"]


def test_a_default_repair_that_is_impossible_is_left_out() -> None:
    x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    y = np.arange(12) % 10
    np.savez("few.npz", x_train=x[:8], y_train=y[:8], x_test=x[8:], y_test=y[8:])
    few = {**WITHOUT_STAGE, "data": {"source": "few.npz"}}
    run = sparsify.apply(few, from_scratch=True, timing=0.05)
    row = read_report(run).stages[2]
    assert row.repair is not None and row.agreement is None
    reason = "repair needs at least 10 examples, found 7; pass more unlabelled training examples"
    assert row.repair.left_out == reason
    (note,) = (
        note for table in list_tables(read_report(run)) for note in table.notes if note.startswith("repair ")
    )
    assert note == f"repair was left out: {reason}"
    required = {**few, "stages": [WITHOUT_STAGE["stages"][1], {"kind": "repair"}]}
    with pytest.raises(ModelError, match="repair needs at least 10 examples, found 7"):
        sparsify.apply(required, from_scratch=True, timing=0.05)


def test_a_repair_after_cuts_that_removed_nothing_is_left_out() -> None:
    given = {**RECIPE, "budget": {}, "stages": [{"kind": "cut"}, {"kind": "repair"}]}
    row = read_report(sparsify.apply(given, from_scratch=True, timing=0.05)).stages[1]
    assert row.repair is not None and row.agreement is None
    assert row.repair.left_out == "no cut removed anything"


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [("mean", "ridge", 0.1), ("batch_norm", "shortcuts", False), ("merge", "ridge", 1)],
)
def test_a_key_that_the_method_does_not_read_is_refused(method: str, key: str, value: Any) -> None:
    Path("recipe.yaml").write_text(
        "version: 1\n"
        "title: t\n"
        "rules: [{layers: Conv2d, group: filter}]\n"
        "stages:\n"
        "  - {kind: cut}\n"
        f"  - {{kind: repair, method: {method}, {key}: {str(value).lower()}}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe("recipe.yaml")
    column = 30 + len(method)
    assert str(caught.value) == (
        f"recipe.yaml:6:{column}: stages.1.{key}: method '{method}' has no '{key}'; leave it out"
    )


def test_the_model_is_repaired_towards_what_it_was_right_before_the_cut(tmp_path: Path) -> None:
    """Dead units leave a model that the run has trained: nothing is lost, so nothing may be refitted."""
    torch.manual_seed(0)
    model = digits_cnn()
    first, second = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][:2]
    with torch.no_grad():
        for parameter in first.parameters():
            parameter[:4] = 0
        second.weight[:, :4] = 0
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.bias[:4] = 0
    torch.save(model.state_dict(), tmp_path / "model.pt")
    given = {**RECIPE, "budget": {}, "stages": WITHOUT_STAGE["stages"][:2]}
    run = sparsify.apply(given, tmp_path / "model.pt", timing=0.05)
    row = read_report(run).stages[2]
    assert read_report(run).cut.params < read_report(run).dense.params
    assert row.repair is not None and {one.outcome for one in row.repair.layers} == {"unchanged"}
    assert not (run / "uncut.safetensors").exists()


def test_a_run_of_an_earlier_version_goes_on_without_a_default_repair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StageStarted) and event.kind == "cut":
            raise KeyboardInterrupt

    with monkeypatch.context() as earlier, pytest.raises(KeyboardInterrupt):
        earlier.setattr(setup, "add_defaults", lambda loaded: loaded)
        sparsify.apply(WITHOUT_STAGE, from_scratch=True, timing=0.05, out="old", listener=stop)
    run = next(Path("old").iterdir())
    sparsify.apply(resume=run, timing=0.05)
    assert kinds(run) == ["train", "cut", "train"]


def test_a_run_of_a_segmentation_weighs_places_unless_its_recipe_says_no(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    recipe = {
        "version": 1,
        "title": "U-Net",
        "task": "segmentation",
        "model": {"build": "sparsify.models.unet", "args": {"classes": 11, "width": 4}},
        "data": {"source": "sparsify.data.scenes:few_digit_masks", "validation": "10%"},
        "rules": [{"layers": "Conv2d", "group": "filter", "sparsity": "50%"}],
    }
    weights = {}
    for name, own in {"default": {}, "none": {"weigh": "none"}}.items():
        stages = [{"kind": "cut"}, {"kind": "repair", **own}]
        run = sparsify.apply(
            {**recipe, "stages": stages}, from_scratch=True, timing=0.02, out=tmp_path / name
        )
        weights[name] = torch.cat([value.flatten() for value in sparsify.load_run(run).parameters()])
        repaired = read_report(run).stages[1].repair
        notes = [note for table in list_tables(read_report(run)) for note in table.notes]
        said = any(", places weighed by the predictions;" in note for note in notes)
        assert repaired is not None and repaired.weighed == said == (name == "default")
    assert not torch.allclose(weights["default"], weights["none"], atol=1e-3)
