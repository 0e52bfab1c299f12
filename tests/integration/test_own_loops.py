"""A loop of one's own leaves the report that `sparsify apply` leaves of the same recipe, for every task."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional

import sparsify
from sparsify.errors import RunError
from sparsify.runs.apply import apply
from sparsify.runs.save_load import verify_run
from sparsify_cli.app import exit_code

sys.path.append(str(Path(__file__).parent))
import task_parts

ADAM = {"kind": "adam", "lr": 0.01}
BATCH = 32


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts lie where a user's own module lies: in the current folder."""
    (tmp_path / "task_parts.py").write_text(Path(task_parts.__file__).read_text())
    monkeypatch.chdir(tmp_path)


def recipe(task: Any, build: str, source: str, layers: str, group: str = "neuron") -> dict[str, Any]:
    train = {"kind": "train", "batch": BATCH, "optimizer": ADAM}
    return {
        "version": 1,
        "title": "loop",
        "model": {"build": f"task_parts.{build}"},
        "data": {"source": f"task_parts:{source}", "validation": "20%"},
        "task": task,
        "targets": {"here": {"kind": "cpu"}},
        "rules": [{"layers": layers, "group": group, "sparsity": "50%"}],
        "stages": [
            {**train, "name": "train", "epochs": 2},
            {"kind": "cut", "repair": False},
            {**train, "name": "finetune", "epochs": 1},
        ],
    }


OWN = {
    "loss": "task_parts:nearest_point",
    "metrics": [{"use": "task_parts:HitRate", "name": "hits", "percent": True}],
}
KINDS = {
    "classification": recipe("classification", "mlp", "classes", "0"),
    "multilabel": recipe("multilabel", "mlp", "labels", "0"),
    "regression": recipe("regression", "mlp", "numbers", "0"),
    "segmentation": recipe(
        {"kind": "segmentation", "ignore": 255}, "conv_net", "squares", "0", group="filter"
    ),
    "language model": recipe("language_model", "TextModel", "sentences", "up"),
    "masked language model": recipe("masked_language_model", "TextModel", "masked_sentences", "up"),
    "own": recipe(OWN, "mlp", "boxes", "0"),
}


def loss(kind: str, outputs: Any, targets: Any) -> Tensor:
    """The loss as the user of such a loop writes it."""
    match kind:
        case "classification":
            return functional.cross_entropy(outputs, targets)
        case "multilabel":
            return functional.binary_cross_entropy_with_logits(outputs, targets.float())
        case "regression":
            return functional.mse_loss(outputs, targets)
        case "segmentation":
            whole = functional.interpolate(outputs, targets.shape[1:], mode="bilinear")
            return functional.cross_entropy(whole, targets, ignore_index=255)
        case "language model":
            logits = outputs["logits"][:, :-1].flatten(0, 1)
            return functional.cross_entropy(logits, targets[:, 1:].flatten(), ignore_index=-100)
        case "masked language model":
            logits = outputs["logits"].flatten(0, 1)
            return functional.cross_entropy(logits, targets.flatten(), ignore_index=-100)
        case _:
            return task_parts.nearest_point(outputs, targets).mean()


def batches(kind: str, examples: Any) -> list[tuple[Any, Any]]:
    """The batches of such a loop: (inputs, targets)."""
    if kind in ("classification", "multilabel", "regression", "segmentation"):
        x, y = examples
        x = x / 255 if x.dtype == torch.uint8 else x
        return [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    rows = [examples[i] for i in range(len(examples))]
    cut = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    return [_pad(part) if "language" in kind else _collect(part) for part in cut]


def _pad(rows: list[dict[str, Any]]) -> tuple[dict[str, Tensor], Tensor]:
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row.get("labels", row["input_ids"])) for row in rows]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    targets = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    return {"input_ids": padded, "attention_mask": mask}, targets


def _collect(rows: list[Any]) -> tuple[Tensor, dict[str, Any]]:
    return torch.stack([x for x, _ in rows]), {"points": [y["points"] for _, y in rows]}


def call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def train(kind: str, model: nn.Module, optimizer: Any, parts: Any, epochs: int) -> Iterator[dict[str, Any]]:
    for _ in range(epochs):
        model.train()
        losses = []
        for inputs, targets in parts["train"]:
            optimizer.zero_grad()
            found = loss(kind, call(model, inputs), targets)
            found.backward()
            optimizer.step()
            losses.append(found.item())
        judged = sparsify.evaluate(model, parts["validation"], KINDS[kind]["task"])
        yield {
            "loss": sum(losses) / len(losses),
            "validation_loss": judged.loss,
            "validation_metric": judged.deciding,
            "lr": 0.01,
        }


def headings(run: Path) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", (run / "report.html").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_of_a_loop_is_that_of_apply(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(KINDS[kind]))
    applied = apply("recipe.yaml", from_scratch=True, timing=0.02)

    source = KINDS[kind]["data"]["source"].partition(":")[2]
    examples, test = getattr(task_parts, source)()
    parts = {"train": batches(kind, examples), "validation": batches(kind, test)}
    torch.manual_seed(0)
    model = getattr(task_parts, KINDS[kind]["model"]["build"].partition(".")[2])()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    history = list(train(kind, model, optimizer, parts, 2))
    inputs = parts["train"][0][0]
    plan = sparsify.make_plan("recipe.yaml", model, inputs if isinstance(inputs, dict) else (inputs,))
    result = sparsify.cut(plan, model, optimizer=optimizer)
    judged = sparsify.evaluate(result.model, parts["validation"], KINDS[kind]["task"])
    history.append({"stage": "cut", "validation_metric": judged.deciding})
    history += train(kind, result.model, optimizer, parts, 1)
    run = sparsify.save_run(
        result,
        "runs/own",
        validation=parts["validation"],
        test=parts["validation"],
        history=history,
        timing=0.02,
    )

    there, here = verify_run(applied), verify_run(run)
    assert here.metric == there.metric
    for side, other in ((here.dense, there.dense), (here.cut, there.cut)):
        assert side.metrics.keys() == other.metrics.keys()
        assert side.epochs == other.epochs
        assert None not in (side.validation_metric, side.test_metric)
    assert here.cut.validation_metric == pytest.approx(history[-1]["validation_metric"], rel=1e-4)
    assert here.dense.validation_metric == pytest.approx(history[1]["validation_metric"], rel=1e-4)
    rows = [(stage.name, stage.kind, stage.epochs) for stage in here.stages]
    assert rows == [("train", "train", 2), ("cut", "cut", 0), ("finetune", "train", 1)]
    assert rows == [(stage.name, stage.kind, stage.epochs) for stage in there.stages]
    assert [(row.stage, row.epoch) for row in here.history] == [(e.stage, e.epoch) for e in there.history]
    # The agreement is with the dense model on training examples, which a run that is saved does not have.
    assert headings(run) == [title for title in headings(applied) if not title.startswith("Agreement")]
    page = (run / "report.html").read_text()
    assert page.count("<polyline") >= 2  # the loss and the deciding metric
    assert "the cut model was fine-tuned for 1 epoch after the cut; the dense model was not" in here.notes

    capsys.readouterr()
    assert exit_code(["diff", str(applied), "runs/own", "--json"]) == 0
    changes = {change["path"]: change for change in json.loads(capsys.readouterr().out)}
    assert not [path for path in changes if path.startswith("recipe.")]
    assert not [path for path, change in changes.items() if None in (change["old"], change["new"])]
    assert f"metrics.cut.validation_{here.metric.name}" in " ".join(changes)


def saved(history: list[dict[str, Any]], folder: Path) -> Any:
    torch.manual_seed(0)
    model = task_parts.mlp()
    rule = {"layers": "0", "group": "neuron", "sparsity": "50%"}
    given = {"version": 1, "title": "t", "task": "regression", "rules": [rule]}
    result = sparsify.cut(sparsify.make_plan(given, model, (torch.randn(2, 6),)), model)
    return verify_run(sparsify.save_run(result, folder, history=history, timing=0.02))


def test_a_history_says_where_the_model_was_cut(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"loss": 3.0, "seconds": 1.0},
        {"loss": 2.0, "seconds": 1.0},
        {"stage": "cut", "validation_metric": 0.9, "seconds": 0.5},
        {"stage": "repair"},
        {"stage": "train", "loss": 1.5},
        {"stage": "train", "loss": 1.0, "validation_metric": 0.4},
        {"stage": "last", "loss": 0.5},
    ]
    report = saved(rows, tmp_path / "run")
    assert [(stage.name, stage.kind, stage.epochs, stage.seconds) for stage in report.stages] == [
        ("train", "train", 2, 2.0),
        ("cut", "cut", 0, 0.5),
        ("repair", "repair", 0, 0.0),
        ("train 2", "train", 2, 0.0),
        ("last", "train", 1, 0.0),
    ]
    assert [(row.stage, row.epoch) for row in report.history] == [
        ("train", 1),
        ("train", 2),
        ("train 2", 1),
        ("train 2", 2),
        ("last", 1),
    ]
    assert (report.dense.epochs, report.cut.epochs) == (2, 5)
    (cut,) = report.rounds
    assert (cut.stage, cut.validation_metric, cut.params) == ("cut", 0.9, report.cut.params)
    assert "the cut model was fine-tuned for 3 epochs after the cut; the dense model was not" in report.notes


def test_without_that_the_report_claims_nothing_of_it(tmp_path: Path, capsys: Any) -> None:
    report = saved([{"loss": 3.0}, {"loss": 2.0}], tmp_path / "one")
    assert report.notes[1:2] == (
        "the history has no row {'stage': 'cut'}, so it is not known which of its epochs came after the cut",
    )
    assert not [note for note in report.notes if "fine-tuned" in note]
    saved([{"loss": 3.0}, {"stage": "cut"}, {"loss": 2.0}], tmp_path / "two")
    capsys.readouterr()
    assert exit_code(["diff", str(tmp_path / "one"), str(tmp_path / "two"), "--json"]) == 0
    changes = {change["path"]: change for change in json.loads(capsys.readouterr().out)}
    assert (changes["metrics.cut.epochs"]["old"], changes["metrics.cut.epochs"]["new"]) == (None, 2)


def test_a_row_of_a_cut_has_no_other_figures(tmp_path: Path) -> None:
    with pytest.raises(RunError) as raised:
        saved([{"loss": 1.0}, {"stage": "cut", "accuracy": 0.5}], tmp_path / "run")
    assert str(raised.value) == "history, row 2: accuracy: Extra inputs are not permitted"


def test_what_only_one_run_has_is_shown_without_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = KINDS["regression"]
    Path("whole.yaml").write_text(yaml.safe_dump(given))
    bare = {key: value for key, value in given.items() if key not in ("data", "stages")}
    Path("bare.yaml").write_text(yaml.safe_dump(bare))
    assert exit_code(["diff", "bare.yaml", "whole.yaml", "--json"]) == 0
    changes = {change["path"]: change["new"] for change in json.loads(capsys.readouterr().out)}
    assert changes["data"] == {"source": "task_parts:numbers", "validation": "20%"}
    assert changes["stages[finetune]"] == {
        "kind": "train",
        "name": "finetune",
        "epochs": 1,
        "batch": BATCH,
        "optimizer": {"kind": "adam", "lr": 0.01},
    }
