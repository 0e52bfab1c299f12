"""Baselines: at the cost of the cut model, from the same weights, trained alike; resumed and repeated to
the bit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sparsify
from sparsify.cost.latency.layer_geometry import read_layers
from sparsify.cost.latency.tables import write_table
from sparsify.data import load_data
from sparsify.errors import RecipeError, RunError
from sparsify.events import EpochDone, Event, StageStarted
from sparsify.models import digits_cnn
from sparsify.objective.objective import CLASSIFICATION, evaluate
from sparsify.pruning.planning.baseline_recipes import (
    Cost,
    choose_cost,
    list_training_stages,
    make_baseline_recipe,
    shares_dense_model,
)
from sparsify.pruning.planning.plan import Floor
from sparsify.reporting.report_tables import list_tables
from sparsify.runs import run_folder
from sparsify.runs.apply import apply, preview
from sparsify.runs.model_base import read_cuts
from sparsify.runs.run_folder import hash_file
from sparsify.runs.save_load import rebuild_baseline, verify_run
from sparsify_schemas.budget import Budget
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.table import Machine, Steps, Table
from sparsify_schemas.target import Cpu
from sparsify_schemas.units import Share

SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
LASSO = {"layers": "conv*", "group": "filter", "penalty": {"kind": "group_lasso", "strength": 5e-3}}
MAGNITUDE = {"layers": "conv*", "group": "filter", "criterion": {"kind": "magnitude"}}
LEARN = {"kind": "train", "name": "learn", "epochs": 2, "optimizer": SGD}
TUNE = {
    "kind": "train",
    "name": "finetune",
    "epochs": 2,
    "penalties": False,
    "optimizer": {**SGD, "lr": 0.01},
}
KINDS = ("uniform_width", "random", "magnitude")
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "70%"},
    "budget": {"macs": "40%"},
    "rules": [LASSO],
    "stages": [LEARN, {"kind": "cut"}, TUNE],
    "baselines": list(KINDS),
}
SHORT = {
    **RECIPE,
    "stages": [{"kind": "cut"}, {**TUNE, "epochs": 1}],
    "rules": [{"layers": "conv*", "group": "filter"}],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights() -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        torch.save(digits_cnn().state_dict(), "model.pt")
    return Path("model.pt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From random weights, without any interruption."""
    return apply(RECIPE, from_scratch=True, out=tmp_path_factory.mktemp("whole"), timing=0.05).resolve()


def test_each_costs_no_more_than_the_cut_model_and_has_as_many_epochs(whole: Path) -> None:
    report = verify_run(whole)
    assert tuple(b.kind for b in report.baselines) == KINDS
    for b in report.baselines:
        assert 0.75 * report.cut.macs < b.side.macs <= report.cut.macs
        assert b.side.epochs == report.cut.epochs == 4
        assert b.verdict.outcome == "equal" and b.cut_metric is not None
        assert [t.target for t in b.latency] == ["eager"]
    assert [
        row[0] for row in next(t for t in list_tables(report) if t.title == "Compared with baselines").rows
    ] == [
        "dense",
        "cut",
        *KINDS,
    ]


def test_every_figure_is_of_the_model_as_it_lies_on_disk(whole: Path) -> None:
    test = load_data(Recipe.model_validate(RECIPE).data, 0).test  # type: ignore[arg-type]
    for b in verify_run(whole).baselines:
        model = rebuild_baseline(whole, b.kind)
        assert evaluate(model, test, CLASSIFICATION).deciding == b.side.test_metric
        assert sum(p.numel() for p in model.parameters()) == b.side.params
        own = f"{run_folder.BASELINES}/{b.kind}/{run_folder.WEIGHTS}"
        assert verify_run(whole).files[own] == hash_file(whole / own)
    left = {str(p.relative_to(whole)) for p in (whole / run_folder.BASELINES).rglob("*")}
    assert left == {
        "baselines/cost.json",
        *(f"baselines/{k}{f}" for k in KINDS for f in ("", "/cuts.json", "/model.safetensors")),
    }


def test_uniform_width_takes_the_same_share_of_every_layer(whole: Path) -> None:
    def shares(kind: str) -> list[float]:
        return [w.kept / w.width for w in read_cuts(whole / run_folder.BASELINES / kind)[0].widths]

    assert (
        len(shares("uniform_width")) == 3
        and max(shares("uniform_width")) - min(shares("uniform_width")) <= 1 / 16
    )
    assert max(shares("magnitude")) - min(shares("magnitude")) > 0.2


@pytest.mark.nightly
def test_the_same_seed_gives_the_same_baselines(whole: Path) -> None:
    again = apply(RECIPE, from_scratch=True, out="again", timing=0.05)
    assert {k: v for k, v in verify_run(again).files.items() if k.startswith("baselines/")} == {
        k: v for k, v in verify_run(whole).files.items() if k.startswith("baselines/")
    }


def test_killed_in_a_baseline_the_run_goes_on_to_the_same_end(whole: Path) -> None:
    class Stop(Exception):
        pass

    for at in (("baselines: learn", 1), ("random: finetune", 1)):
        begun = []

        def listener(event: Event, at: tuple[str, int] = at, begun: list[str] = begun) -> None:
            if isinstance(event, StageStarted):
                begun.append(event.name)
            if isinstance(event, EpochDone) and (event.stage, event.epoch) == at:
                raise Stop

        run = sorted(Path("runs").iterdir())[0] if Path("runs").exists() else None
        with pytest.raises(Stop):
            apply(
                RECIPE if run is None else None,
                from_scratch=run is None,
                resume=run,
                timing=0.05,
                listener=listener,
            )
        assert begun[-1] == at[0]
    (run,) = Path("runs").iterdir()
    begun = []
    apply(
        resume=run,
        timing=0.05,
        listener=lambda e: begun.append(e.name) if isinstance(e, StageStarted) else None,
    )
    rest = ["random: finetune", "magnitude: cut", "magnitude: repair", "magnitude: finetune"]
    assert begun == rest, "what was done is not done again"
    exact = {
        k: v
        for k, v in verify_run(whole).files.items()
        if k.startswith("baselines/") or k in (run_folder.WEIGHTS, run_folder.DENSE)
    }
    assert {k: verify_run(run).files[k] for k in exact} == exact


@pytest.mark.nightly
def test_a_given_model_is_what_the_baselines_are_cut_from() -> None:
    run = apply({**RECIPE, "baselines": ["magnitude"]}, weights(), timing=0.05)
    (own,) = verify_run(run).baselines
    by_hand = {
        **SHORT,
        "rules": [MAGNITUDE],
        "baselines": [],
        "budget": {"macs": f"{verify_run(run).cut.macs / 1e3!r}k"},
        "stages": [{"kind": "cut"}, TUNE],
    }
    other = apply(by_hand, weights(), timing=0.05)
    assert read_cuts(run / run_folder.BASELINES / "magnitude")[0].widths == read_cuts(other)[0].widths
    assert own.side.epochs == 2 and own.cut_metric == verify_run(other).rounds[0].validation_metric
    notes = next(t for t in list_tables(verify_run(run)) if t.title == "Compared with baselines").notes
    assert (
        "The cut model was trained for more epochs in this run than magnitude: those before its cut." in notes
    )


def test_without_penalties_the_dense_model_is_not_trained_twice() -> None:
    stages = [{**LEARN, "epochs": 1}, {"kind": "cut"}, {**TUNE, "epochs": 1}]
    plain = {
        **RECIPE,
        # The default bound follows from the budget, and the baseline's is what the cut came to.
        "rules": [{**MAGNITUDE, "keep": {"at_least": 2}}],
        "stages": stages,
        "baselines": ["magnitude"],
    }
    begun: list[str] = []
    run = apply(
        plain,
        from_scratch=True,
        timing=0.05,
        listener=lambda e: begun.append(e.name) if isinstance(e, StageStarted) else None,
    )
    after = ["cut", "repair", "finetune"]
    assert begun == ["learn", *after, *(f"magnitude: {name}" for name in after)]
    assert hash_file(run / run_folder.WEIGHTS) == hash_file(
        run / run_folder.BASELINES / "magnitude" / run_folder.WEIGHTS
    ), "the same cut of the same model, trained on examples in the same order"


def test_a_baseline_that_cannot_be_made_is_named_and_the_others_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deep = {
        **SHORT,
        "rules": [
            {"layers": "conv*", "group": "filter"},
            {"layers": "fc", "group": "shape", "sparsity": "60%"},
        ],
        "budget": {"params": "33%"},
    }
    from sparsify.runs import baselines

    real = baselines.make_baseline_recipe
    monkeypatch.setattr(
        baselines,
        "make_baseline_recipe",
        lambda plan, kind, cost: real(plan, kind, Cost("params", 10.0) if kind == "random" else cost),
    )
    report = verify_run(apply({**deep, "data": RECIPE["data"]}, weights(), timing=0.05))
    assert [b.kind for b in report.baselines] == ["uniform_width", "magnitude"]
    (note,) = [n for n in report.notes if n.startswith("baseline")]
    assert note.startswith("baseline random could not be made: budget.params: 0.01") and note.endswith(
        "% remains"
    )


@pytest.mark.parametrize(
    "budget", [{"accuracy_drop": {"at_most": "90pp", "trials": 2}}, {"peak_memory": "80%"}], ids=str
)
def test_under_other_budgets_too(budget: dict[str, Any]) -> None:
    short = {
        **RECIPE,
        "stages": [{**LEARN, "epochs": 1}, {"kind": "cut"}, {**TUNE, "epochs": 1}],
        "budget": budget,
        "baselines": ["magnitude"],
    }
    report = verify_run(apply(short, from_scratch=True, timing=0.05))
    (own,) = report.baselines
    assert own.side.epochs == 2 and own.verdict.outcome == "equal"
    if "accuracy_drop" in budget:
        assert 0.75 * report.cut.macs < own.side.macs <= report.cut.macs
    else:
        assert (
            report.cut.peak_memory
            and own.side.peak_memory
            and 0.9 * report.cut.peak_memory < own.side.peak_memory <= report.cut.peak_memory
        )


def test_by_macs_comes_to_the_same_time_with_widths_as_they_fall(tmp_path: Path) -> None:
    """On a machine of which a table says that widths pay in steps of eight."""
    model = digits_cnn()
    works, _ = read_layers(model, (torch.randn(2, 1, 8, 8),), 1)
    layers: dict[str, tuple[tuple[int, int, float], ...]] = {}
    for w in works:
        widths = {
            (i, o) for i in {w.inputs, *range(8, w.inputs, 8)} for o in {w.outputs, *range(8, w.outputs, 8)}
        }
        layers[w.key] = tuple((i, o, i * o / 1e4) for i, o in sorted(widths))
    steps = Steps(convolution=8, inputs=1, linear=1)
    machine = Machine(processor="Cortex-A78", vectors="NEON", system="Linux aarch64", runtime="tflite 2.20")
    write_table(
        Table(machine=machine, target=Cpu(kind="cpu", runtime="onnxruntime"), steps=steps, layers=layers),
        tmp_path / "phone.json",
    )
    targets = {"phone": {"kind": "cpu", "table": "phone.json"}}
    asked = {
        **SHORT,
        "rules": [MAGNITUDE],
        "targets": targets,
        "budget": {"latency": {"phone": "60%"}},
        "baselines": ["by_macs", "magnitude"],
    }
    run = apply(asked, weights(), timing=0.05)
    kept = {
        n: [w.kept for w in read_cuts(run / n)[0].widths if w.group.startswith("conv")]
        for n in (".", "baselines/by_macs", "baselines/magnitude")
    }
    assert all(width % 8 == 0 for width in kept["."] + kept["baselines/magnitude"])
    assert any(width % 8 for width in kept["baselines/by_macs"])
    report = verify_run(run)
    assert (
        report.latency[0].description == "cpu, onnxruntime, 1 thread, batch 1, predicted from phone.json"
    ), "as the table says, not the recipe"
    by_macs = next(b for b in report.baselines if b.kind == "by_macs")
    assert by_macs.side.macs < report.cut.macs, (
        "the same time with fewer MACs, as widths between two steps gain nothing"
    )
    (own,) = by_macs.latency
    assert (
        own.predicted_cut_ms is not None and 0.9 < own.predicted_cut_ms / (0.6 * own.predicted_dense_ms) <= 1
    )  # type: ignore[operator]


@pytest.mark.parametrize(("speedup", "cost"), [(2.0, 0.5), (1.25, 0.6)])
def test_no_baseline_gets_more_time_than_the_recipe_allows(
    monkeypatch: pytest.MonkeyPatch, speedup: float, cost: float
) -> None:
    """What the cut model takes is timed once more, and no two timings agree."""
    from sparsify.runs import baselines

    recipe = Recipe.model_validate(
        {**SHORT, "targets": {"eager": {"kind": "cpu"}}, "budget": {"latency": {"eager": "60%"}}}
    )
    floor = Floor("latency.eager", dense=5.0, limit=3.0, least=1.0)
    run = SimpleNamespace(
        recipe=recipe, plan=SimpleNamespace(floors=(floor,)), folder=Path(), build=None, inputs=()
    )
    monkeypatch.setattr(baselines, "rebuild_dense", lambda *_: None)
    monkeypatch.setattr(
        baselines.measure, "measure_latency", lambda *_, **__: SimpleNamespace(speedup=speedup)
    )
    found = baselines._measure_cost(run, digits_cnn(), None)  # type: ignore[arg-type]
    assert found == Cost("latency.eager", cost)


def test_a_damaged_cost_says_so() -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StageStarted) and event.name == "random: finetune":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        apply({**SHORT, "baselines": ["random"]}, weights(), timing=0.05, listener=stop)
    (run,) = Path("runs").iterdir()
    (run / "baselines" / "cost.json").write_text("{}")
    with pytest.raises(RunError) as caught:
        apply(resume=run, timing=0.05)
    assert (
        str(caught.value)
        == f"{run}/baselines/cost.json is damaged: 'what'; delete it, and it is measured again"
    )


def test_the_plan_says_what_they_cost() -> None:
    shown = " ".join(sparsify.describe(preview(RECIPE, from_scratch=True)).split())
    assert (
        "each at the cost of the cut model: 3 x the 2 epochs after the cut, "
        "and 2 epochs before it once, without penalties"
    ) in shown
    assert " ".join(sparsify.describe(preview(RECIPE, weights())).split()).endswith(
        "3 x the 2 epochs after the cut"
    )


def test_a_loop_of_ones_own_is_told_that_it_gets_none() -> None:
    model, x = digits_cnn(), (torch.randn(2, 1, 8, 8),)
    run = sparsify.save_run(sparsify.cut(sparsify.make_plan(SHORT, model, x), model), "mine", timing=0.05)
    assert (
        "the baselines (uniform_width, random, magnitude) were not made: only 'sparsify apply' trains them"
        in verify_run(run).notes
    )


def test_what_equal_cost_means() -> None:
    asked = Budget.model_validate({"params": "40%", "latency": {"phone": "60%"}})
    assert choose_cost(asked) == "latency.phone"
    assert choose_cost(asked.model_copy(update={"latency": {}})) == "params"
    assert choose_cost(Budget()) == "macs"
    assert Cost("latency.phone", 0.575).budget.latency["phone"] == Share(100 * 0.575, "%")
    found = Cost("macs", 93440.0).budget.macs
    assert found is not None and 93440.0 <= found.count < 93440.1


def test_they_are_repaired_where_the_run_is() -> None:
    stages = [{"kind": "cut"}, {"kind": "repair"}, TUNE]
    recipe = {**RECIPE, "stages": stages, "inputs": [{"shape": [2, 1, 8, 8]}]}
    plan = sparsify.make_plan(recipe, digits_cnn().eval(), (torch.zeros(2, 1, 8, 8),))
    theirs = make_baseline_recipe(plan, "random", Cost("macs", 90_000.0))
    assert [(s.kind, s.name) for s in theirs.stages] == [
        ("cut", "random: cut"),
        ("repair", "random: repair"),
        ("train", "random: finetune"),
    ]


def test_which_stages_are_theirs() -> None:
    gradual = {**LEARN, "name": "shrink", "epochs": 4, "cuts": {"every": "1ep"}}
    recipe = Recipe.model_validate({**RECIPE, "stages": [LEARN, gradual, TUNE]})
    before, after = list_training_stages(recipe, True)
    assert [s.name for s in before] == ["learn"] and [s.name for s in after] == ["shrink", "finetune"]
    assert not any(s.penalties or s.cuts for s in (*before, *after))
    assert list_training_stages(recipe, False)[0] == () and not shares_dense_model(recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": ["random", "random"]}, "baselines: 'random' stands there twice; leave one out"),
        (
            {"baselines": ["uniform"]},
            (
                "baselines.0: expected one of uniform_width, random, magnitude, by_macs, "
                "torch_pruning, found the text 'uniform'; did you mean 'uniform_width'?"
            ),
        ),
        (
            {"rules": [{"layers": "conv*", "group": "weight", "sparsity": "50%"}]},
            (
                "baselines: baselines remove whole units, and no rule has a group of those (filter, "
                "channel, neuron, head, hidden, expert, depth); leave 'baselines' out"
            ),
        ),
        (
            {"baselines": ["by_macs"]},
            (
                "baselines: 'by_macs' is what a latency budget is compared with; write budget.latency, "
                "or leave it out"
            ),
        ),
        (
            {"rules": [{"layers": "conv*", "group": "depth"}]},
            "baselines: 'uniform_width' narrows layers, and group 'depth' has no widths; leave it out",
        ),
    ],
)
def test_what_cannot_be_a_baseline(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        preview({**RECIPE, **changes}, from_scratch=True)
    assert str(caught.value) == f"<recipe>: {message}"
