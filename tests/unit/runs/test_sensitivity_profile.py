"""What each layer bears to lose: ablation, Taylor and GSM on real digits; going on after a kill; limits that
a recipe reads."""

import json
from pathlib import Path
from typing import Any

import mixtures
import pytest
import torch
import yaml
from torch.nn import functional

import sparsify
from sparsify.data import batches, load_data
from sparsify.errors import DataError, RecipeError, RunError
from sparsify.modelfile.weights import load_weights
from sparsify.models import digits_cnn
from sparsify.objective.objective import CLASSIFICATION, evaluate
from sparsify.pruning.planning.candidates import list_candidates
from sparsify.pruning.planning.cut_targets import Target, rewrite_recipe
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.selection import choose
from sparsify.recipe import load
from sparsify.runs import profile_points, sensitivity
from sparsify.runs.sensitivity import profile_layers, read_profile, set_limits
from sparsify_cli.app import exit_code
from sparsify_schemas.profile import Profile, read_tolerance
from sparsify_schemas.units import Points, Share

RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits"},
    "rules": [{"layers": "Conv2d", "group": "filter"}],
}
INPUTS = (torch.zeros(2, 1, 8, 8),)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits CNN after four epochs."""
    stages = [
        {"kind": "train", "epochs": 4, "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9}},
        {"kind": "cut"},
    ]
    run = sparsify.apply(
        {**RECIPE, "stages": stages}, from_scratch=True, out=tmp_path_factory.mktemp("runs"), timing=0.01
    )
    return run / "dense.safetensors"


def trained(weights: Path) -> torch.nn.Module:
    model = digits_cnn()
    load_weights(model, weights)
    return model.eval()


def judge(model: Any, examples: Any) -> tuple[float, float]:
    """(loss, accuracy)"""
    found = evaluate(model, examples, CLASSIFICATION)
    return found.loss, found.deciding


def test_ablation_is_what_the_network_does_without_the_units(weights: Path, tmp_path: Path) -> None:
    found = profile_layers(RECIPE, weights, tmp_path / "p.json", examples=60)
    assert (found.examples, [c.group for c in found.curves]) == (60, ["conv1", "conv2", "conv3"])
    assert [c.layers for c in found.curves] == [("conv1",), ("conv2", "conv4"), ("conv3",)]
    assert [p.removed for p in found.curves[0].points] == [2, 3, 5, 6, 8, 10, 11, 13, 14]
    assert read_profile(tmp_path / "p.json") == found
    model = trained(weights)
    lost = (
        model.conv3.weight.square().sum((1, 2, 3))
        + model.conv4.weight.square().sum((0, 2, 3))
        + model.bn3.weight**2
        + model.bn3.bias**2
    )
    own = sensitivity._draw_examples(load_data(load(RECIPE).recipe.data, 0).validation, 60, 0)
    assert (found.loss, found.metric) == pytest.approx(judge(model, own))
    with torch.no_grad():
        model.conv4.weight[:, lost.argsort()[:16]] = 0  # its consumer no longer sees them
    half = next(p for p in found.curves[2].points if p.share == 0.5)
    assert (half.loss, half.metric) == pytest.approx(judge(model, own), rel=1e-4)
    assert half.loss > found.loss


def test_it_goes_on_where_it_was_killed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = profile_layers(RECIPE, weights, tmp_path / "whole.json", examples=40)
    calls: list[int] = []

    def dying(model: Any, examples: Any, objective: Any) -> Any:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return evaluate(model, examples, objective)

    monkeypatch.setattr(sensitivity, "evaluate", dying)
    with pytest.raises(KeyboardInterrupt):
        profile_layers(RECIPE, weights, tmp_path / "p.json", examples=40)
    assert sum(len(c.points) for c in read_profile(tmp_path / "p.json").curves) == 10
    assert profile_layers(RECIPE, weights, tmp_path / "p.json", examples=40) == whole
    assert len(calls) == 12 + 1 + 17, "the whole model again, then only what was missing"


def test_taylor_predicts_by_the_products_of_weight_and_gradient(weights: Path, tmp_path: Path) -> None:
    found = profile_layers(RECIPE, weights, tmp_path / "p.json", by="taylor", examples=100)
    model = trained(weights)
    own = sensitivity._draw_examples(load_data(load(RECIPE).recipe.data, 0).validation, 100, 0)
    ((x, y),) = batches(own, 100)
    functional.cross_entropy(model(x), y).backward()
    parts = [
        (w.grad * w).flatten(1).sum(1)
        if role == "out" and w.dim() > 1
        else (w.grad * w).sum((0, 2, 3))
        if role == "in"
        else w.grad * w
        for w, role in (
            (model.conv3.weight, "out"),
            (model.bn3.weight, "out"),
            (model.bn3.bias, "out"),
            (model.conv4.weight, "in"),
        )
    ]
    changes = sum(parts).detach().abs().sort().values
    assert [p.loss for p in found.curves[2].points] == pytest.approx(
        [found.loss + float(changes[: p.removed].sum()) for p in found.curves[2].points], rel=1e-4
    )
    assert all(p.metric is None for c in found.curves for p in c.points)


def test_gsm_ranks_the_units_of_all_layers_together(weights: Path, tmp_path: Path) -> None:
    found = profile_layers(RECIPE, weights, tmp_path / "p.json", by="gsm", examples=100)
    units = sum(c.width for c in found.curves)
    for at, share in enumerate(profile_points.SHARES):
        assert sum(c.points[at].removed for c in found.curves) == round(share * units)
    assert len({c.points[4].removed / c.width for c in found.curves}) > 1, "some layers bear more than others"
    limited = set_limits(found, Share.parse("50%"))
    assert limited.limits == {c.group: Share(100 * c.points[4].removed / c.width, "%") for c in found.curves}


def test_residual_branches_go_as_a_whole(weights: Path, tmp_path: Path) -> None:
    rules = [{"layers": "conv[34]", "group": "depth"}, {"layers": "conv1", "group": "filter"}]
    found = profile_layers(
        {**RECIPE, "rules": rules}, weights, tmp_path / "p.json", examples=60, tolerance=Share.parse("5%")
    )
    branch = next(c for c in found.curves if c.width == 1)
    assert [(p.share, p.removed) for p in branch.points] == [(1.0, 1)]
    model = trained(weights)
    with torch.no_grad():
        model.bn4.weight.zero_(), model.bn4.bias.zero_()  # the sum's other side alone
    own = sensitivity._draw_examples(load_data(load(RECIPE).recipe.data, 0).validation, 60, 0)
    assert (branch.points[0].loss, branch.points[0].metric) == pytest.approx(judge(model, own), rel=1e-4)
    assert found.limits.keys() == {"conv1"}


def by_hand(*drops: float, by: str = "ablation") -> Profile:
    points = [
        {"share": (i + 1) / 10, "removed": i + 1, "accuracy": 0.9 - d, "loss": 0.5 + d}
        for i, d in enumerate(drops)
    ]
    return Profile.model_validate(
        {
            "by": by,
            "digest": "d",
            "examples": 10,
            "loss": 0.5,
            "accuracy": 0.9,
            "curves": [{"group": "a", "layers": ["a"], "width": 10, "points": points}],
        }
    )


def test_a_limit_is_the_largest_share_up_to_which_all_are_within_the_tolerance() -> None:
    assert set_limits(by_hand(0.0, -0.01, 0.009, 0.02, 0.0), read_tolerance("ablation", "1pp")).limits == {
        "a": Share(30, "%")
    }
    assert set_limits(by_hand(0.02, 0.0), Share.parse("1%")).limits == {"a": Share(0, "%")}
    assert set_limits(by_hand(0.002, 0.004, 0.006, by="taylor"), Share.parse("1%")).limits == {
        "a": Share(20, "%")
    }, "of a loss of 0.5"


def test_points_of_accuracy_are_written_either_way_and_a_share_of_the_loss_in_one() -> None:
    assert read_tolerance("ablation", "1pp") == Points(1.0, "pp")
    assert set_limits(by_hand(0.0), read_tolerance("ablation", "1%")).tolerance == "1pp"
    assert read_tolerance("taylor", "1%") == Share(1.0, "%") == read_tolerance("gsm", "1%")
    with pytest.raises(
        ValueError,
        match=r"^by taylor a tolerance is a share of the loss; expected a share such as 40%, not '1pp'$",
    ):
        read_tolerance("taylor", "1pp")
    with pytest.raises(
        ValueError,
        match=r"^by gsm it is the share of all units that goes; expected a share such as 40%, not '1pp'$",
    ):
        read_tolerance("gsm", "1pp")
    with pytest.raises(ValueError, match=r"^expected percentage points such as 0.5pp, not 'lots'$"):
        read_tolerance("ablation", "lots")


# a recipe that reads limits


def limited(limits: Any, **more: Any) -> dict[str, Any]:
    return {**RECIPE, "rules": [{"layers": "Conv2d", "group": "filter", "keep": {"limits": limits, **more}}]}


def widths(recipe: dict[str, Any]) -> dict[str, int]:
    return dict(sparsify.make_plan(recipe, digits_cnn(), INPUTS).preview)


def test_a_recipe_holds_to_the_limits_of_a_file(weights: Path, tmp_path: Path) -> None:
    found = profile_layers(
        RECIPE, weights, tmp_path / "limits.json", examples=60, tolerance=Share.parse("3%")
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**limited("limits.json"), "budget": {"macs": "70%"}}))
    loaded = load(path)
    assert dict(loaded.recipe.rules[0].keep.limits) == found.limits
    assert load(loaded.recipe).recipe == loaded.recipe, "what is resolved needs no file"
    kept = dict(sparsify.make_plan(path, digits_cnn(), INPUTS).preview)
    assert all(kept[c.group] >= c.width * (1 - found.limits[c.group].fraction) - 1e-6 for c in found.curves)
    assert sum(kept.values()) < 80, "it still cuts"


@pytest.mark.parametrize(
    "limits", ["limits.json", {"conv9": "10%"}], ids=["not yet written", "of another model"]
)
def test_limits_are_found_for_the_recipe_that_will_read_them(
    limits: Any, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(limited(limits)))
    found = profile_layers(
        path, weights, tmp_path / "limits.json", by="taylor", examples=60, tolerance=Share.parse("3%")
    )
    assert found == profile_layers(
        RECIPE, weights, tmp_path / "other.json", by="taylor", examples=60, tolerance=Share.parse("3%")
    )


def test_limits_bound_what_a_budget_takes_and_what_a_demand_takes() -> None:
    kept = widths({**limited({"conv1": "25%", "conv4": "50%"}), "budget": {"macs": "12%"}})
    assert kept["conv1"] >= 12 and kept["conv2"] >= 16, "conv4 is pruned together with conv2"
    assert widths({**limited({"conv1": "25%"}), "budget": {"macs": "12%"}})["conv2"] < 16, (
        "which that limit keeps from going further"
    )
    assert kept["conv3"] < 16, "a layer without a limit gives the rest"
    rule = {**limited({"conv1": "25%", "conv2": "10%", "conv3": "0%"})["rules"][0], "sparsity": "8%"}
    assert widths({**RECIPE, "rules": [rule]})["conv3"] == 32


def test_uniform_keeps_to_the_strictest_limit() -> None:
    rules = [{"layers": "conv[23]", "group": "filter", "keep": {"uniform": True, "limits": {"conv2": "25%"}}}]
    kept = widths({**RECIPE, "rules": rules, "budget": {"macs": "70%"}})
    assert kept["conv2"] == kept["conv3"] >= 24


def test_limits_of_a_later_cut_are_of_the_dense_width() -> None:
    plan = sparsify.make_plan({**limited({"conv3": "50%"}), "budget": {"macs": "60%"}}, digits_cnn(), INPUTS)
    first = sparsify.cut(Plan(rewrite_recipe(plan, Target(0.5)), plan.map, plan.assignments), digits_cnn())
    later = rewrite_recipe(plan, Target(), (first.cuts,))
    width = next(w.kept for w in first.cuts.widths if w.group == "conv3")
    assert 16 < width < 32
    again = sparsify.make_plan(later, first.model, INPUTS)
    assert next(c for c in list_candidates(again, {}, {}) if c.name == "conv3").floor == 16
    assert len(choose(again, {}, {})["conv3"]) >= 16


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("none.json", None, "{path} is missing; '{make}' writes one"),
        (
            "torn.json",
            '{"version": 1, "by":',
            (
                "{path} is not a sensitivity profile (it: Invalid JSON: EOF while parsing "
                "a value at line 1 column 20); '{make}' writes one"
            ),
        ),
        ("bare.json", by_hand(0.0).model_dump_json(), "{path} holds no limits; '{make}' sets them"),
    ],
)
def test_files_without_limits(tmp_path: Path, name: str, body: str | None, said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(limited(name)))
    if body is not None:
        (tmp_path / name).write_text(body)
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.yaml")
    make = f"sparsify sensitivity RECIPE MODEL --limits 1pp --out {name}"
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (8, "rules.0.keep.limits")
    assert f"{problem.message}; {problem.hint}" == said.format(path=tmp_path / name, make=make)


def test_limits_that_fit_no_layer_or_no_group() -> None:
    with pytest.raises(RecipeError) as caught:
        sparsify.make_plan(limited({"covn1": "50%"}), digits_cnn(), INPUTS)
    assert (
        str(caught.value)
        == "<recipe>: rules.0.keep.limits: the model has no layer 'covn1'; did you mean 'conv1'?"
    )
    with pytest.raises(RecipeError) as caught:
        load({**RECIPE, "rules": [{"layers": "*", "group": "depth", "keep": {"limits": {"a": "50%"}}}]})
    assert str(caught.value) == (
        "<recipe>: rules.0.keep: 'limits' cannot act on group 'depth', which has "
        "no widths; leave it out, or say how many stay with 'at_least'"
    )


class Other(torch.nn.Module):
    """Layers of the same names and widths as those of a digits CNN, in another order and of other kernels."""

    def __init__(self, kernel: int, width: int = 16) -> None:
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(1, width, kernel), torch.nn.Conv2d(width, 32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x)).mean((2, 3))


def test_limits_of_another_network(tmp_path: Path) -> None:
    def planned(
        network: str | None, by: str = "ablation", kernel: int = 3, width: int = 16, layer: str = "conv1"
    ) -> Plan:
        curves = [{"group": name, "layers": [name], "width": n} for name, n in (("conv1", 16), ("conv2", 32))]
        made = {
            "by": by,
            "digest": "d",
            "network": network,
            "examples": 10,
            "loss": 0.5,
            "accuracy": 0.9,
            "curves": curves,
            "limits": {layer: "50%"},
        }
        (tmp_path / "limits.json").write_text(json.dumps({**made, "tolerance": "2%"}))
        (tmp_path / "recipe.yaml").write_text(
            yaml.safe_dump(
                {
                    **limited("limits.json"),
                    "rules": [{"layers": "conv1", "group": "filter", "keep": {"limits": "limits.json"}}],
                }
            )
        )
        return sparsify.make_plan(tmp_path / "recipe.yaml", Other(kernel, width), INPUTS)

    own = planned(None).map.network
    assert planned(None).notes == planned(own).notes == (), "an old file, and one of this network"
    anew = (
        "have the limits of this network found: sparsify sensitivity RECIPE MODEL --by taylor "
        "--limits 2% --out limits.json --force"
    )
    assert planned(own, by="taylor", kernel=1).notes == (
        (
            "rules.0: limits.json has the limits of another network, with layers of "
            f"the same names and widths; {anew}"
        ),
    )
    with pytest.raises(RecipeError) as caught:
        planned(None, by="taylor", width=20)
    (problem,) = caught.value.problems
    assert (problem.line, problem.path, problem.message) == (
        8,
        "rules.0.keep.limits",
        "limits.json has the limits of a network in which 'conv1' has 16 units, and here it has 20",
    )
    assert problem.hint == anew
    with pytest.raises(RecipeError) as caught:
        planned(None, by="taylor", layer="conv3")
    assert [(p.message, p.hint) for p in caught.value.problems] == [("the model has no layer 'conv3'", anew)]


def test_a_profile_knows_its_network(weights: Path, tmp_path: Path) -> None:
    plan = sparsify.make_plan(RECIPE, digits_cnn(), INPUTS)
    found = profile_layers(RECIPE, weights, tmp_path / "p.json", by="taylor", examples=20)
    assert found.network == plan.map.network
    (tmp_path / "p.json").write_text(found.model_copy(update={"network": None}).model_dump_json())
    assert profile_layers(RECIPE, weights, tmp_path / "p.json", by="taylor", examples=20) == found, (
        "an old file learns it"
    )


def test_a_profile_of_something_else_is_not_gone_on_with(weights: Path, tmp_path: Path) -> None:
    profile_layers(RECIPE, weights, tmp_path / "p.json", by="taylor", examples=20)
    with pytest.raises(RunError) as caught:
        profile_layers(RECIPE, weights, tmp_path / "p.json", by="taylor", examples=30)
    assert str(caught.value) == (
        f"{tmp_path}/p.json is a profile made with another model, data, rules or "
        "method; choose another place with --out, or replace it with --force"
    )
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(RunError, match=r"p\.json is damaged or not a sensitivity profile \(it: Invalid JSON"):
        profile_layers(RECIPE, weights, tmp_path / "p.json", by="taylor", examples=20)
    with pytest.raises(DataError) as error:
        profile_layers(
            {**RECIPE, "data": {"source": "digits", "validation": "0%"}}, weights, tmp_path / "q.json"
        )
    assert str(error.value) == "there is no validation data to judge layers on; set data.validation above 0%"


def test_the_command_shows_a_table_and_leaves_the_file(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(yaml.safe_dump({**RECIPE, "budget": {"macs": "40%"}}))
    assert (
        exit_code(
            [
                "sensitivity",
                "r.yaml",
                str(weights),
                "--by",
                "gsm",
                "--limits",
                "50%",
                "--examples",
                "50",
                "--plot",
                "s.html",
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    head = next(line for line in out.splitlines() if line.startswith("layers"))
    assert head.split() == [
        "layers",
        "units",
        *" ".join(f"{s} %" for s in range(10, 100, 10)).split(),
        "limit",
    ]
    assert [line.split()[0] for line in out.splitlines() if line.startswith("conv")] == [
        "conv1",
        "conv2",
        "conv3",
    ]
    assert "limit: fraction below the threshold when 50% of all units are;" in out
    assert "saved in sensitivity.json and s.html" in err
    html = Path("s.html").read_text()
    assert html.count("<figure>") == 3 and "conv2 and 1 more, 32 units, limit" in html
    assert (
        "<script" not in html
        and "http:" not in html.replace("http://www.w3.org", "")
        and "https:" not in html
    )
    assert exit_code(["sensitivity", "r.yaml", str(weights), "--by", "gsm", "--limits", "lots"]) == 2
    assert (
        "--limits: by gsm it is the share of all units that goes; expected a share such as 40%, not 'lots'"
        in " ".join(capsys.readouterr().err.split())
    )
    assert (
        exit_code(
            ["sensitivity", "r.yaml", str(weights), "--by", "gsm", "--examples", "50", "--json", "--quiet"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["limits"].keys() == {"conv1", "conv2", "conv3"}, (
        "limits stay until others are set"
    )


@pytest.mark.parametrize("by", ["ablation", "taylor", "gsm"])
def test_a_mixture_keeps_what_its_router_takes(by: Any) -> None:
    """Two of six experts are taken for each place, so at most four leave."""
    model = mixtures.build(mixtures.TopTwo)
    inputs = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 3
    rule = {"layers": "mix", "group": "expert"}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, (inputs,))
    found = sparsify.sensitivity(plan, model, [(inputs, labels)], by=by)
    (curve,) = found.curves
    assert curve.width == 6 and max(point.removed for point in curve.points) == 4
