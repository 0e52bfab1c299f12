"""Models that were cut elsewhere become runs: by torch-pruning, and by a script of somebody's own."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.models import digits_cnn
from sparsify.runs.seed_statistics import summarize_seeds
from sparsify_cli.app import exit_code

RECIPE = {
    "version": 1,
    "title": "adopted",
    "model": {"build": "sparsify.models.digits_cnn"},
    "inputs": [{"shape": [2, 1, 8, 8]}],
    "targets": {"here": {"kind": "cpu", "runtime": "eager"}},
}
X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def make_dense() -> nn.Module:
    torch.manual_seed(0)
    model = digits_cnn().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def cut_by_a_script(dense: nn.Module) -> nn.Module:
    """The largest half of conv1 and conv3, in the order of their norms: the usual few lines from a forum."""
    cut = digits_cnn().eval()
    cut.load_state_dict(dense.state_dict())
    for producer, norm, consumer in (("conv1", "bn1", "conv2"), ("conv3", "bn3", "conv4")):
        layer, after = cut.get_submodule(producer), cut.get_submodule(consumer)
        assert isinstance(layer, nn.Conv2d) and isinstance(after, nn.Conv2d)
        kept = layer.weight.detach().abs().sum((1, 2, 3)).topk(layer.out_channels // 2).indices
        assert kept.tolist() != sorted(kept.tolist())
        layer.weight = nn.Parameter(layer.weight.detach()[kept])
        layer.bias = nn.Parameter(layer.bias.detach()[kept]) if layer.bias is not None else None
        after.weight = nn.Parameter(after.weight.detach()[:, kept])
        for name in ("weight", "bias", "running_mean", "running_var"):
            old = getattr(cut.get_submodule(norm), name)
            new = old.detach()[kept]
            setattr(cut.get_submodule(norm), name, nn.Parameter(new) if "run" not in name else new)
        layer.out_channels = after.in_channels = len(kept)
    return cut


def train_a_little(model: nn.Module, share: float) -> nn.Module:
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1:
                parameter += share * parameter.std() * torch.randn_like(parameter)
    return model


def save(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def call(run: Path) -> Tensor:
    found: Tensor = sparsify.load_run(run)(X)
    return found.detach()


def read_notes(run: Path) -> list[str]:
    notes: list[str] = json.loads((run / "report.json").read_text())["notes"]
    return notes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cut-elsewhere")


@pytest.fixture(scope="module")
def dense(folder: Path) -> Path:
    return save(make_dense(), folder / "dense.pt")


def adopt(folder: Path, model: Path | None = None, recipe: Any = RECIPE, **given: Any) -> Path:
    return sparsify.adopt(recipe, model, out=folder / "runs", timing=0.01, **given)


def test_weights_of_a_script_in_its_own_order(folder: Path, dense: Path) -> None:
    cut = cut_by_a_script(make_dense())
    run = adopt(folder, save(cut, folder / "script.pt"), dense=dense)
    assert torch.allclose(call(run), cut(X).detach(), atol=1e-6)
    report = json.loads((run / "report.json").read_text())
    assert report["verdict"]["outcome"] == "equal"
    assert read_notes(run)[:2] == [
        "the model was cut elsewhere and adopted from script.pt; which units stayed was told by matching "
        "rows",
        "its weights are those of the dense model's units that stayed, bit for bit",
    ]
    widths = json.loads((run / "cuts.json").read_text())["widths"]
    kept = {w["group"]: [i for a, b in w["keep"] for i in range(a, b)] for w in widths}
    norms = make_dense().conv1.weight.abs().sum((1, 2, 3))
    assert kept["conv1"] == sorted(norms.topk(8).indices.tolist())


def test_weights_that_were_trained_after_the_cut(folder: Path, dense: Path) -> None:
    cut = cut_by_a_script(make_dense())
    ordered = sparsify.load_run(adopt(folder, save(cut, folder / "script.pt"), dense=dense))
    tuned = train_a_little(ordered, 0.05)
    run = adopt(folder, save(tuned, folder / "tuned.pt"), dense=dense)
    assert torch.allclose(call(run), tuned(X).detach(), atol=1e-6)
    (moved,) = [note for note in read_notes(run) if "differ from" in note]
    assert re.fullmatch(
        r"\d+ tensors of \d+ differ from those of the dense model's units that stayed, by [\d.]+ % of their "
        r"length in all \(most in '[a-z0-9.]+'\): they were trained or repaired after the cut",
        moved,
    )


def test_weights_alone(folder: Path) -> None:
    """Without the dense weights the widths are known, and the structure is proven; no figure of the dense
    model is invented."""
    cut = train_a_little(cut_by_a_script(make_dense()), 0.3)
    digits = RECIPE | {"data": {"source": "digits"}}
    digits.pop("inputs")
    run = adopt(folder, save(cut, folder / "alone.pt"), digits)
    assert torch.allclose(call(run), cut(X).detach(), atol=1e-6)
    report = json.loads((run / "report.json").read_text())
    assert report["dense"]["test_metric"] is None and report["dense"]["validation_metric"] is None
    assert 0 < report["cut"]["test_metric"] < 1
    assert report["verdict"]["note"] == (
        "Proven for the structure alone, with random weights in place of the dense ones."
    )
    assert read_notes(run)[:2] == [
        "the model was cut elsewhere and adopted from alone.pt; which units stayed was told by the shapes "
        "alone",
        "the dense weights were not given: the cut is proven for the structure, with random weights; the "
        "dense model is not judged",
    ]


@pytest.fixture(scope="module")
def pruned(folder: Path) -> tuple[nn.Module, list[Any]]:
    tp = pytest.importorskip("torch_pruning")
    model = make_dense()
    pruner = tp.pruner.MetaPruner(
        model,
        X,
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        iterative_steps=2,
        ignored_layers=[model.fc],
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    pruner.step()
    return model.eval(), pruner.pruning_history()


def test_history_and_dense_weights(folder: Path, dense: Path, pruned: tuple[nn.Module, list[Any]]) -> None:
    model, history = pruned
    (folder / "history.json").write_text(json.dumps(history))
    run = adopt(folder, dense=dense, history=folder / "history.json")
    assert torch.allclose(call(run), model(X).detach(), atol=1e-6)
    torch.save(history, folder / "history.pt")
    again = adopt(folder, dense=dense, history=folder / "history.pt")
    assert torch.equal(call(again), call(run))
    assert (
        json.loads((run / "report.json").read_text())["plan_digest"]
        == (json.loads((again / "report.json").read_text())["plan_digest"])
    )


def test_checkpoint_with_weights_and_history(folder: Path, pruned: tuple[nn.Module, list[Any]]) -> None:
    """As torch-pruning's own documentation saves it; trained since, and no dense weights at hand."""
    model, history = pruned
    tuned = digits_cnn()
    tuned = sparsify.load_run(adopt(folder, save(model, folder / "pruned.pt")))
    train_a_little(tuned, 0.5)
    torch.save({"model": tuned.state_dict(), "pruning": history}, folder / "checkpoint.pt")
    run = adopt(folder, folder / "checkpoint.pt")
    assert torch.allclose(call(run), tuned(X).detach(), atol=1e-6)
    assert read_notes(run)[0].endswith("which units stayed was told by the pruning history")


def test_whole_module(folder: Path, dense: Path) -> None:
    cut = cut_by_a_script(make_dense())
    torch.save(cut, folder / "module.pt")
    run = adopt(folder, folder / "module.pt", dense=dense)
    assert torch.allclose(call(run), cut(X).detach(), atol=1e-6)
    assert any(
        re.fullmatch(r"its outputs are those of the module in the file \(largest difference .*\)", note)
        for note in read_notes(run)
    )


def test_weights_of_less_precision_in_any_order(folder: Path, dense: Path) -> None:
    cut = cut_by_a_script(make_dense())
    torch.save(
        {
            name: value.bfloat16() if value.is_floating_point() else value
            for name, value in cut.state_dict().items()
        },
        folder / "bf16.pt",
    )
    run = adopt(folder, folder / "bf16.pt", dense=dense)
    assert torch.allclose(call(run), cut.bfloat16().float()(X).detach(), atol=1e-5)
    assert "its weights are those of the dense model's units that stayed, rounded to bfloat16" in read_notes(
        run
    )


def test_layers_that_were_cut_apart(folder: Path, dense: Path) -> None:
    """The consumer lost other inputs than its producer lost outputs: shapes fit, the verdict is `wrong`."""
    cut, original = cut_by_a_script(make_dense()), make_dense()
    cut.conv2.weight = nn.Parameter(original.conv2.weight.detach()[:, :8].clone())
    run = adopt(folder, save(cut, folder / "apart.pt"), dense=dense)
    verdict = json.loads((run / "report.json").read_text())["verdict"]
    assert verdict["outcome"] == "wrong" and verdict["difference"] > 1e-3
    assert any(
        note.startswith(
            "Warning: the model was cut apart elsewhere, and computes something else than the dense model "
            "without these units: 'conv2.weight' in the file held other units, or another order of them, "
            "than 'conv1' kept"
        )
        for note in read_notes(run)
    )
    assert torch.allclose(call(run), cut(X).detach(), atol=1e-6)


def test_a_history_of_other_units(folder: Path, dense: Path) -> None:
    path = save(cut_by_a_script(make_dense()), folder / "script.pt")
    history = [["conv1", True, list(range(8))], ["conv3", True, list(range(16))]]
    (folder / "other.json").write_text(json.dumps(history))
    with pytest.raises(sparsify.SparsifyError) as caught:
        adopt(folder, path, dense=dense, history=folder / "other.json")
    assert re.fullmatch(
        r".*: 'conv1.weight' is not that of the units which the pruning history says stayed \(off by "
        r"[\d.]+ % of its length\); the history is of another cut, or the model was trained anew",
        str(caught.value),
    )
    torch.save({"model": torch.load(path), "pruning": history}, folder / "mixed.pt")
    run = adopt(folder, folder / "mixed.pt", dense=dense)
    assert json.loads((run / "report.json").read_text())["verdict"]["outcome"] == "equal"
    assert any(note.startswith("Warning: the history in the file was not used:") for note in read_notes(run))


class Heads(nn.Module):
    """Heads of four channels, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 16) for _ in range(3))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_what_weights_do_not_say_of_heads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dense = Heads().eval()
    cut = Heads().eval()
    for layer, own in ((cut.q, dense.q), (cut.k, dense.k), (cut.v, dense.v)):
        layer.weight, layer.bias = (nn.Parameter(p.detach()[8:].clone()) for p in (own.weight, own.bias))
    cut.out.weight = nn.Parameter(dense.out.weight.detach()[:, 8:].clone())
    cut.out.bias = dense.out.bias
    recipe = recipe_of(folder, "Heads()", monkeypatch) | {"inputs": [{"shape": [2, 5, 6]}]}
    path, whole = save(cut, folder / "heads.pt"), save(dense, folder / "heads-dense.pt")
    alone = read_notes(adopt(folder, path, recipe))
    assert any(
        note.startswith("Warning: q may have lost whole attention heads or channels") for note in alone
    )
    told = read_notes(adopt(folder, path, recipe, dense=whole))
    assert any(note.startswith("q lost whole units of several channels each") for note in told)
    inside = Heads().eval()
    rows = [unit for unit in range(16) if unit % 4 < 2]
    for layer, own in ((inside.q, dense.q), (inside.k, dense.k), (inside.v, dense.v)):
        layer.weight, layer.bias = (nn.Parameter(p.detach()[rows].clone()) for p in (own.weight, own.bias))
    inside.out.weight = nn.Parameter(dense.out.weight.detach()[:, rows].clone())
    with pytest.raises(sparsify.SparsifyError, match="such as channels inside of attention heads"):
        adopt(folder, save(inside, folder / "inside.pt"), recipe, dense=whole)


class Groups(nn.Module):
    """A norm of four groups, or channels in reverse."""

    def __init__(self, flips: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.flips = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), flips
        self.norm = nn.BatchNorm2d(16) if flips else nn.GroupNorm(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        return self.last((y.flip(1) if self.flips else y).relu())


def recipe_of(folder: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe whose builder makes what the call, of this module, makes."""
    (folder / "made_here.py").write_text(f"import sys\nmake = lambda: sys.modules[{__name__!r}].{call}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "made_here", raising=False)
    return {
        "version": 1,
        "title": "groups",
        "model": {"build": "made_here.make"},
        "inputs": [{"shape": [2, 3, 6, 6]}],
        "targets": RECIPE["targets"],
    }


def keep_channels(dense: nn.Module, kept: list[int]) -> dict[str, Tensor]:
    state = dict(dense.state_dict())
    for name in ("first.weight", "first.bias", "norm.weight", "norm.bias"):
        state[name] = state[name][kept]
    state["last.weight"] = state["last.weight"][:, kept]
    return state


def test_the_way_by_which_rows_are_equal_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same places of all groups left. Whole groups have the same shapes, and are tried first."""
    monkeypatch.setattr("sparsify.runs.adopt.UNLIKE", 100.0)
    torch.manual_seed(0)
    dense = Groups().eval()
    nn.init.normal_(dense.norm.weight)
    torch.save(keep_channels(dense, [c for c in range(16) if c % 4 < 2]), tmp_path / "places.pt")
    recipe = recipe_of(tmp_path, "Groups()", monkeypatch)
    run = adopt(tmp_path, tmp_path / "places.pt", recipe, dense=save(dense, tmp_path / "d.pt"))
    model = sparsify.load_run(run)
    assert (model.norm.num_groups, model.norm.num_channels) == (4, 8)
    with pytest.raises(sparsify.SparsifyError) as caught:
        adopt(tmp_path, tmp_path / "places.pt", recipe)
    assert str(caught.value) == (
        f"{tmp_path / 'places.pt'}: whether 'first' lost whole groups of a normalisation or the same "
        "places of each does not show in shapes; give the dense weights by --dense"
    )


def test_what_torch_pruning_would_cut_otherwise_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not follow channels in reverse."""
    pytest.importorskip("torch_pruning")
    recipe = recipe_of(tmp_path, "Groups(flips=True)", monkeypatch)
    torch.manual_seed(0)
    path = save(Groups(flips=True).eval(), tmp_path / "d.pt")
    rule = {"layers": "first", "group": "filter", "sparsity": "50%", "criterion": {"kind": "random"}}
    run = sparsify.apply(recipe | {"rules": [rule]}, path, out=tmp_path / "runs", timing=0.01)
    with pytest.raises(sparsify.SparsifyError) as caught:
        sparsify.export(run, "torch-pruning", tmp_path / "cut.pth")
    assert str(caught.value) == (
        "torch-pruning makes another cut of the history: it keeps other elements of last.weight; export "
        "another format"
    )


def test_run_can_be_cut_further_and_exported(folder: Path, dense: Path) -> None:
    run = adopt(folder, save(cut_by_a_script(make_dense()), folder / "script.pt"), dense=dense)
    rule = {"layers": "conv1", "group": "filter", "sparsity": "50%"}
    further = sparsify.apply(RECIPE | {"rules": [rule]}, run, out=folder / "runs", timing=0.01)
    assert sparsify.load_run(further).conv1.out_channels == 4
    made = sparsify.export(run, "safetensors", folder / "adopted.safetensors", force=True)
    assert made.difference == 0


def test_torch_pruning_loads_what_is_exported(folder: Path, dense: Path) -> None:
    """As its documentation says: a dense model, the history, then the weights; and we adopt it again."""
    tp = pytest.importorskip("torch_pruning")
    rule = {"layers": "conv*", "group": "filter", "sparsity": "40%"}
    run = sparsify.apply(RECIPE | {"rules": [rule]}, dense, out=folder / "runs", timing=0.01)
    made = sparsify.export(run, "torch-pruning", folder / "cut.pth")
    assert made.difference == 0 and made.checked_by == "the rebuilt model"
    saved = torch.load(folder / "cut.pth", weights_only=True)
    model = digits_cnn().eval()
    graph = tp.DependencyGraph().build_dependency(model, X)
    graph.load_pruning_history(saved["pruning"])
    model.load_state_dict(saved["model"])
    assert torch.equal(model(X).detach(), call(run))
    again = adopt(folder, folder / "cut.pth", dense=dense)
    assert torch.equal(call(again), call(run))


def test_a_cut_that_a_history_cannot_say_is_not_exported(folder: Path, dense: Path) -> None:
    rule = {"layers": "conv[34]", "group": "tap", "sparsity": "78%"}
    carved = RECIPE | {"rules": [{**rule, "penalty": {"kind": "l1", "strength": 1e-4}}]}
    run = sparsify.apply(carved, dense, out=folder / "runs", timing=0.01)
    with pytest.raises(sparsify.SparsifyError) as caught:
        sparsify.export(run, "torch-pruning", folder / "carved.pth")
    assert re.fullmatch(
        r"torch-pruning's history knows widths alone, and 'conv\d' changed otherwise \((crop|gather)\); "
        r"export another format",
        str(caught.value),
    )
    assert not (folder / "carved.pth").exists()


def _narrow(state: dict[str, Tensor]) -> None:
    state["conv1.weight"] = state["conv1.weight"][:7]


def _widen(state: dict[str, Tensor]) -> None:
    state["fc.weight"] = torch.zeros(10, 300)


def _drop(state: dict[str, Tensor]) -> None:
    del state["bn2.weight"]


def _spoil(state: dict[str, Tensor]) -> None:
    state["fc.weight"] = state["fc.weight"] * float("nan")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            _narrow,
            "{path}: the file is not a cut of the dense model that can be told:\n- 'bn1': dimension 0 of "
            "'bn1.weight' has 8 of 16: the layers that are coupled with it kept other widths",
        ),
        (
            _widen,
            "{path}: the file is not a cut of the dense model that can be told:\n"
            "- 'fc': dimension 1 of 'fc.weight' has 300 of 128: it is wider than the dense model",
        ),
        (
            _drop,
            "{path} does not fit sparsify.models.digits_cnn: 1 missing (bn2.weight)\nhint: does 'model:' "
            "in the recipe build the model that the file was saved from? check its 'args'",
        ),
        (
            _spoil,
            "{path}: NaN or infinite weights in fc.weight; the training that made them failed",
        ),
    ],
)
def test_what_cannot_be_told_is_named(
    folder: Path, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    state = dict(cut_by_a_script(make_dense()).state_dict())
    change(state)
    path = folder / "odd.pt"
    torch.save(state, path)
    with pytest.raises(sparsify.SparsifyError) as caught:
        adopt(folder, path)
    assert str(caught.value).startswith(said.format(path=path))


def test_module_that_computes_something_else(folder: Path, dense: Path) -> None:
    """Its weights are those of the cut, and its forward is another one."""
    cut = cut_by_a_script(make_dense())
    cut.conv1.padding = (0, 0)
    cut.conv1.stride = (1, 1)
    cut.conv2.padding = (2, 2)
    torch.save(cut, folder / "other.pt")
    with pytest.raises(sparsify.SparsifyError) as caught:
        adopt(folder, folder / "other.pt", dense=dense)
    assert re.fullmatch(
        rf"{re.escape(str(folder / 'other.pt'))}: the module in the file computes something else than a cut "
        r"of the dense model with the same weights: outputs differ by [\d.e+-]+ of the largest; nothing was "
        r"saved",
        str(caught.value),
    )


def test_rows_like_none_of_the_dense_model(folder: Path) -> None:
    torch.manual_seed(99)
    other = save(digits_cnn(), folder / "stranger.pt")
    path = save(cut_by_a_script(make_dense()), folder / "script.pt")
    with pytest.raises(sparsify.SparsifyError) as caught:
        adopt(folder, path, dense=other)
    assert re.fullmatch(
        rf"{re.escape(str(path))}: the rows of 'conv\d' are like none of the dense model's \(the nearest "
        r"choice is off by [\d.]+ % of their length\): it may have lost something else than units of "
        r"ours, such as channels inside of attention heads, or it was trained anew; give its "
        r"history, or the whole module, whose outputs are compared",
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {},
            "nothing to adopt: give the cut model's file, or the dense weights (--dense) and a pruning "
            "history (--history)",
        ),
        ({"model_file": "nowhere.pt"}, "there is no model file nowhere.pt"),
    ],
)
def test_nothing_to_adopt(folder: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(sparsify.SparsifyError) as caught:
        sparsify.adopt(RECIPE, out=folder / "runs", **given)
    assert str(caught.value) == said


def test_adopted_files_are_no_seeds_of_one_run(tmp_path: Path, dense: Path) -> None:
    one = save(cut_by_a_script(make_dense()), tmp_path / "one.pt")
    two = save(train_a_little(cut_by_a_script(make_dense()), 0.01), tmp_path / "two.pt")
    for path in (one, two):
        adopt(tmp_path, path, dense=dense)
    summaries = summarize_seeds(tmp_path / "runs")
    assert [row.runs for row in summaries if row.model == "cut"] == [("adopted-1",), ("adopted-2",)]


def test_weights_of_half_the_precision_are_rounded(folder: Path, dense: Path) -> None:
    cut = cut_by_a_script(make_dense())
    run = adopt(folder, save(cut.half(), folder / "half.pt"), dense=dense)
    assert "its weights are those of the dense model's units that stayed, rounded to float16" in read_notes(
        run
    )


def test_a_run_needs_no_adoption(folder: Path, dense: Path) -> None:
    run = adopt(folder, save(cut_by_a_script(make_dense()), folder / "script.pt"), dense=dense)
    with pytest.raises(sparsify.SparsifyError) as caught:
        adopt(folder, run, dense=dense)
    assert str(caught.value) == (
        f"{run} is a run already: 'sparsify report', 'export' and 'apply RECIPE {run}' take it as it is"
    )


def test_no_dense_structure(folder: Path) -> None:
    path = save(cut_by_a_script(make_dense()), folder / "script.pt")
    recipe = {key: value for key, value in RECIPE.items() if key != "model"}
    with pytest.raises(sparsify.SparsifyError) as caught:
        adopt(folder, path, recipe)
    assert str(caught.value) == (
        "the dense model is not known: name its builder under 'model:' in the recipe, or give the whole "
        "dense model by --dense"
    )


def test_history_of_another_cut(folder: Path, dense: Path) -> None:
    path = save(cut_by_a_script(make_dense()), folder / "script.pt")
    (folder / "short.json").write_text(json.dumps([["conv1", True, [0]]]))
    with pytest.raises(sparsify.SparsifyError) as caught:
        adopt(folder, path, history=folder / "short.json", dense=dense)
    assert str(caught.value) == (
        f"{path}: 'conv1.weight' is 8x1x3x3 in the file, and 15x1x3x3 after the pruning history: "
        "torch-pruning coupled other layers than the model does; leave the history out, and the weights "
        "say which units stayed"
    )


def test_command_line(
    folder: Path, dense: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    recipe = folder / "adopt.yaml"
    recipe.write_text(json.dumps(RECIPE))
    path = save(cut_by_a_script(make_dense()), folder / "script.pt")
    assert exit_code(["adopt", str(recipe), str(path), "--dense", str(dense), "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]["outcome"] == "equal" and found["title"] == "adopted"
    assert sorted(entry.name for entry in (folder / "runs").iterdir() if entry.name.startswith(".")) == []
    assert exit_code(["adopt", str(recipe), "gone.pt"]) == 1
    assert "there is no model file gone.pt" in capsys.readouterr().err
