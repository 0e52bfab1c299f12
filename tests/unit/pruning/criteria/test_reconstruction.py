"""Criterion reconstruction against least squares written out: what is lost when units go and the others
are refitted."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.errors import ModelError, RecipeError, TrainingError
from sparsify.pruning.criteria import reconstruction
from sparsify.pruning.criteria.error_curve import hull_slopes, score_by_curve
from sparsify.pruning.criteria.reconstruction import model_scores, reconstruction_scores
from sparsify.pruning.criteria.surgeon import Surgeon
from sparsify.pruning.cut import Result
from sparsify.pruning.scoring import score_units
from sparsify_schemas.criterion import Reconstruction
from sparsify_schemas.task import Task

RIDGE = 1e-3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Network(nn.Module):
    """Two readers of one group: `left` and `right` both read what `first` makes."""

    def __init__(self, convolution: bool = False, readers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution, self.readers = convolution, readers
        if convolution:
            self.first: nn.Module = nn.Conv2d(2, 5, 3, padding=1)
            self.left: nn.Module = nn.Conv2d(5, 4, 3)
            self.right: nn.Module = nn.Conv2d(5, 4, 3)
        else:
            self.first = nn.Linear(4, 5)
            self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        found = self.left(hidden)
        if self.readers == 2:
            found = found + 2 * self.right(hidden)
        return found.mean((2, 3)) if self.convolution else found


def plan_of(model: nn.Module, x: Tensor, group: str) -> sparsify.pruning.planning.plan.Plan:
    rules = [{"layers": "first", "group": group, "sparsity": "40%"}]
    return sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model.eval(), (x[:2],))


def least_error(
    inputs: Tensor,
    weight: Tensor,
    curvature: Tensor,
    gone: tuple[int, ...],
    weights: Tensor | None = None,
) -> float:
    """min over V, with rows `gone` zero, of tr((W - V)' H (W - V) G), from the normal equations."""
    covariance = torch.cov(inputs.T, correction=0, aweights=weights)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    stay = [unit for unit in range(len(weight)) if unit not in gone]
    refitted = torch.zeros_like(weight)
    if stay:
        wanted = covariance[stay] @ weight
        refitted[stay] = torch.linalg.solve(covariance[stay][:, stay], wanted)
    lost = weight - refitted
    return float((lost.T @ covariance @ lost * curvature).sum())


def test_the_scores_add_up_to_what_least_squares_cannot_make_up_for() -> None:
    model, x = Network(readers=1), draw(200, 4)
    plan = plan_of(model, x, "neuron")
    scores = reconstruction_scores(model, plan.map, ["first"], [(x, x[:, 0])], RIDGE, 0)["first"]
    hidden = F.relu(model.first(x)).detach().double()
    weight = model.left.weight.detach().T.double()
    # The output is the layer's own, less its mean: its gradients are centred normal numbers, drawn by the
    # seed.
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(200, 4, generator=generator).double()
    gradient = projection - projection.mean(1, keepdim=True)
    curvature = gradient.T @ gradient / 200
    order = scores.argsort().tolist()
    for count in (1, 5):
        gone = tuple(order[:count])
        total = float(scores[list(gone)].sum())
        assert total == pytest.approx(least_error(hidden, weight, curvature, gone), rel=1e-3)
    singles = [least_error(hidden, weight, curvature, (unit,)) for unit in range(5)]
    assert order[0] == singles.index(min(singles))


def test_several_units_that_go_at_a_time_cost_what_they_cost_together() -> None:
    torch.manual_seed(3)
    model, x = Network(readers=1), draw(600, 4)
    model.first, model.left = nn.Linear(4, 200), nn.Linear(200, 4)
    plan = plan_of(model, x, "neuron")
    scores = reconstruction_scores(model, plan.map, ["first"], [(x, x[:, 0])], RIDGE, 0)["first"]
    hidden = F.relu(model.first(x)).detach().double()
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(600, 4, generator=generator).double()
    gradient = projection - projection.mean(1, keepdim=True)
    weight = model.left.weight.detach().T.double()
    found = least_error(hidden, weight, gradient.T @ gradient / 600, tuple(range(200)))
    assert float(scores.double().sum()) == pytest.approx(found, rel=1e-3)
    # The half that it calls cheap costs less than any half drawn at random.
    halves = [tuple(torch.randperm(200, generator=generator)[:100].tolist()) for _ in range(20)]
    curvature = gradient.T @ gradient / 600
    cheap = least_error(hidden, weight, curvature, tuple(scores.argsort()[:100].tolist()))
    assert cheap < 0.5 * min(least_error(hidden, weight, curvature, half) for half in halves)


def test_units_of_several_widths_cost_what_least_squares_says_until_none_is_left() -> None:
    """Columns that are gone leave the matrices on the way; units with fewer columns are filled up."""
    columns = tuple(map(torch.tensor, ([0, 1, 2], [3], [4, 5], [6, 7, 8], [9], [10, 11])))
    inputs, weight = draw(300, 12).double(), draw(12, 4, seed=1).double()
    gradients = draw(50, 4, seed=2).double()
    curvature = gradients.T @ gradients
    surgeon = Surgeon(weight, torch.cov(inputs.T, correction=0), curvature, columns, RIDGE)
    gone: tuple[int, ...] = ()
    total = 0.0
    for unit in (3, 1, 4, 0, 5, 2):
        left = [other for other in range(6) if not set(columns[other].tolist()) & set(gone)]
        now = least_error(inputs, weight, curvature, gone)
        costs = surgeon.costs(torch.tensor(left)).tolist()
        for other, cost in zip(left, costs, strict=True):
            without = least_error(inputs, weight, curvature, (*gone, *columns[other].tolist()))
            assert cost == pytest.approx(without - now, rel=1e-6)
        total += surgeon.remove(torch.tensor([unit]))
        gone = (*gone, *columns[unit].tolist())
        assert total == pytest.approx(least_error(inputs, weight, curvature, gone), rel=1e-6)


def test_two_readers_count_together() -> None:
    x = draw(300, 4)
    totals = []
    for readers in (1, 2):
        model = Network(readers=readers)
        plan = plan_of(model, x, "neuron")
        totals.append(
            reconstruction_scores(model, plan.map, ["first"], [(x, x[:, 0])], RIDGE, 0)["first"].sum()
        )
    assert totals[1] > 2 * totals[0]


def test_a_unit_that_another_one_carries_goes_first() -> None:
    model, x = Network(convolution=True), draw(60, 2, 8, 8)
    with torch.no_grad():
        model.first.weight[3], model.first.bias[3] = 7 * model.first.weight[1], 7 * model.first.bias[1]
    plan = plan_of(model, x, "filter")
    scores = reconstruction_scores(model, plan.map, ["first"], [(x, x[:, 0])], RIDGE, 0)["first"]
    assert int(scores.argmin()) in (1, 3)
    magnitude = model.first.weight.detach().square().sum((1, 2, 3))
    assert int(magnitude.argmax()) == 3  # by magnitude it would be the last to go


def test_the_slopes_are_those_of_the_lower_hull() -> None:
    for seed in range(20):
        steps = draw(9, seed=seed).abs().double()
        errors = [0.0, *steps.cumsum(0).tolist()]
        slopes = hull_slopes(errors)
        assert slopes == sorted(slopes) and sum(slopes) == pytest.approx(errors[-1])
        below = list(itertools.accumulate(slopes, initial=0.0))
        assert all(hull <= error + 1e-9 for hull, error in zip(below, errors, strict=True))


def test_units_of_one_slope_go_in_the_order_in_which_they_were_removed() -> None:
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1)).tolist()
    scores = score_by_curve(order[:400], [0.3 * count for count in range(401)], order[400:])
    assert scores.argsort().tolist() == order


class TwoParts(nn.Module):
    """Only a layer with groups reads `first`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.third, self.fourth = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fourth(F.relu(self.third(self.second(F.relu(self.first(x)))))).mean((2, 3))


def test_what_no_layer_reads_is_refused() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x))).mean((2, 3))

    model, x = Grouped(), draw(4, 2, 8, 8)
    plan = plan_of(model, x, "filter")
    with pytest.raises(ModelError) as caught:
        reconstruction_scores(model.eval(), plan.map, ["first"], [(x, x)], RIDGE, 0)
    assert str(caught.value) == (
        "criterion 'reconstruction' cannot score a group: no convolution or Linear layer without groups, "
        "called as a layer, reads 'first'; use magnitude or taylor there"
    )


def test_magnitude_takes_over_in_all_rules_that_allow_it() -> None:
    model, x = TwoParts(), draw(8, 2, 8, 8)
    optional = {"kind": "reconstruction", "required": False}
    rules = [
        {"layers": name, "group": "filter", "criterion": optional, "sparsity": "50%"}
        for name in ("first", "third")
    ]
    recipe = {"version": 1, "title": "t", "data": {"source": "digits"}, "rules": rules}
    plan = sparsify.make_plan(recipe, model.eval(), (x[:2],))
    result = sparsify.cut(plan, model, batches=[(x, torch.zeros(8, dtype=torch.int64))])
    assert (
        "Magnitude chose, in place of criterion 'reconstruction': no convolution or Linear layer without "
        "groups, called as a layer, reads 'first'."
    ) in result.notes
    magnitude = [{**rule, "criterion": {"kind": "magnitude"}} for rule in rules]
    plain = sparsify.cut(sparsify.make_plan({**recipe, "rules": magnitude}, model, (x[:2],)), model)
    assert plain.cuts.widths == result.cuts.widths


def test_rules_of_one_criterion_are_scored_in_one_pass() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    x, calls = draw(8, 4), list[int]()
    model.register_forward_hook(lambda *_: calls.append(1))
    spec = {"kind": "reconstruction", "batches": 3}
    rule = {"group": "neuron", "criterion": spec, "sparsity": "20%"}
    counts = []
    for layers in (["0"], ["0", "2"]):
        rules = [{**rule, "layers": name} for name in layers]
        plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model.eval(), (x[:2],))
        calls.clear()
        score_units(plan, model, [(x, x)] * 3, None)
        counts.append(len(calls))
    assert counts == [3, 3]


def test_matrices_that_take_too_much_are_left_to_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "MEMORY", 8 * 45**2)
    model, x = Network(convolution=True, readers=1), draw(8, 2, 8, 8)
    plan = plan_of(model, x, "filter")
    arguments = model, plan.map, ["first"], [(x, x)], RIDGE, 0
    assert reconstruction_scores(*arguments, required=False)
    monkeypatch.setattr(reconstruction, "MEMORY", 8 * 45**2 - 1)
    with pytest.raises(reconstruction.CannotScoreError) as caught:
        reconstruction_scores(*arguments, required=False)
    assert caught.value.reason == "its matrices take 0.0 GiB, which is more than 0"
    assert reconstruction_scores(*arguments)


@pytest.mark.parametrize("group", ["weight", "2:4"])
def test_groups_that_it_cannot_score_are_refused(group: str) -> None:
    rule = {"layers": "*", "group": group, "criterion": {"kind": "reconstruction"}}
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe({"version": 1, "title": "t", "data": {"source": "digits"}, "rules": [rule]})
    assert (
        f"criterion 'reconstruction' cannot act on group '{group}': "
        "it scores the units that other layers read; "
        "use magnitude"
    ) in str(caught.value)


def test_a_recipe_cuts_by_it() -> None:
    model, x = Network(convolution=True), draw(80, 2, 8, 8)
    rule = {"layers": "first", "group": "filter", "criterion": {"kind": "reconstruction"}, "sparsity": "40%"}
    recipe = {"version": 1, "title": "t", "data": {"source": "digits"}, "rules": [rule]}
    plan = sparsify.make_plan(recipe, model.eval(), (x[:2],))
    result = sparsify.cut(plan, model, batches=[(x, torch.zeros(80, dtype=torch.int64))])
    scores = reconstruction_scores(model, plan.map, ["first"], [(x, x)], 0.01, 0)["first"]
    kept = next(w for w in result.cuts.widths if w.group == "first").keep
    gone = {0, 1, 2, 3, 4} - {unit for start, end in kept for unit in range(start, end)}
    assert gone == set(scores.argsort()[:2].tolist())


class Told(Network):
    """One reader, and what becomes of the hidden units before it or of its output."""

    def __init__(self, kind: str) -> None:
        super().__init__(readers=1)
        self.kind = kind
        if kind == "integers":
            self.numbers = nn.Parameter(torch.arange(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        with torch.set_grad_enabled(self.kind != "no gradient" and torch.is_grad_enabled()):
            found: Tensor = self.left(hidden)
        if self.kind == "called again":
            self.left(hidden)
        match self.kind:
            case "in place":
                return found.relu_()
            case "detached":
                return found.detach() + self.left.bias
            case "infinite":
                return found / 0.0
            case "integers":
                return found.relu() + self.numbers
        return found.relu()


@pytest.mark.parametrize("kind", ["in place", "called again", "integers"])
def test_what_happens_behind_the_reader_changes_no_score(kind: str) -> None:
    x = draw(50, 4)
    wanted, found = (
        reconstruction_scores(model, plan_of(model, x, "neuron").map, ["first"], [(x, x[:, 0])], RIDGE, 0)[
            "first"
        ]
        for model in (Told("plain"), Told(kind))
    )
    torch.testing.assert_close(found, wanted)
    assert bool((wanted > 0).all())


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no gradient", "no gradient reaches 'left', which reads 'first'"),
        ("detached", "no gradient reaches 'left', which reads 'first'"),
        ("infinite", "NaN or infinity arrives at 'left', which reads 'first', or its gradients are such"),
    ],
)
def test_readers_without_sound_gradients_are_left_to_magnitude(kind: str, reason: str) -> None:
    def cut(criterion: dict[str, object]) -> Result:
        x, model = draw(50, 4), Told("plain")
        rules = [{"layers": "first", "group": "neuron", "sparsity": "40%", "criterion": criterion}]
        plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (x[:2],))
        model.kind = kind
        return sparsify.cut(plan, model, batches=[(x, torch.zeros(50))], loss=lambda found, _: found.sum())

    wanted = cut({"kind": "magnitude"})
    found = cut({"kind": "reconstruction", "required": False})
    assert found.cuts.widths == wanted.cuts.widths
    assert f"Magnitude chose, in place of criterion 'reconstruction': {reason}." in found.notes
    with pytest.raises(ModelError) as error:
        cut({"kind": "reconstruction"})
    assert str(error.value) == (
        f"criterion 'reconstruction' cannot score a group: {reason}; use magnitude or taylor there"
    )


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_examples_that_are_all_alike_say_nothing(noise: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.ones(32, 4) + noise * draw(32, 4)
    rule = {"layers": "*", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "reconstruction"}}

    def cut(batch: Tensor, required: bool = True) -> Result:
        own = {**rule, "criterion": {"kind": "reconstruction", "required": required}}
        recipe = {"version": 1, "title": "t", "data": {"source": "digits"}, "rules": [own]}
        return sparsify.cut(sparsify.make_plan(recipe, model, (draw(2, 4),)), model, batches=[batch])

    with pytest.raises(ModelError) as caught:
        cut(x)
    reason = "what arrives at '2', '4' is the same at every place of every example"
    assert str(caught.value) == (
        f"criterion 'reconstruction' cannot score a group: {reason}; use magnitude or taylor there"
    )
    assert f"Magnitude chose, in place of criterion 'reconstruction': {reason}." in cut(x, False).notes
    assert cut(x + 0.01 * draw(32, 4)).notes == ()


class Pixels(nn.Module):
    """Scores of four classes at each pixel, of that pixel alone."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.form = form
        self.first, self.left = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Any:
        scores = 4 * self.left(F.relu(self.first(x)))
        return scores if self.form == "tensor" else {"first": scores, "second": -scores}


def cut_pixels(weigh: str | None, form: str = "tensor", task: str = "segmentation") -> Result:
    model, x = Pixels(form), draw(20, 2, 6, 6)
    criterion = {"kind": "reconstruction"} | ({} if weigh is None else {"weigh": weigh})
    rule = {"layers": "first", "group": "filter", "sparsity": "40%", "criterion": criterion}
    recipe = {"version": 1, "title": "t", "task": task, "data": {"source": "digits"}, "rules": [rule]}
    return sparsify.cut(sparsify.make_plan(recipe, model.eval(), (x[:2],)), model, batches=[x])


def test_places_count_by_how_much_the_predictions_depend_on_them() -> None:
    model, x = Pixels(), draw(20, 2, 6, 6)
    plan = plan_of(model, x, "filter")
    task = Task(kind="segmentation")
    scores = reconstruction_scores(model, plan.map, ["first"], [(x, None)], RIDGE, 0, task=task)["first"]

    pixels = x.movedim(1, -1).reshape(-1, 2)
    hidden = F.relu(F.linear(pixels, model.first.weight[:, :, 0, 0], model.first.bias)).detach().double()
    weight = model.left.weight.detach()[:, :, 0, 0].T.double()
    with torch.no_grad():
        p = model(x).movedim(1, -1).reshape(-1, 4).softmax(1)
    drawn = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    gradient = 4 * (p - F.one_hot(drawn, 4)).double()
    lengths = gradient.norm(dim=1).view(20, 36)
    relative = lengths / lengths.mean(1, keepdim=True)
    weights = ((0.1 + relative) / 1.1).flatten()
    assert float(weights.std()) > 0.3, "else all places count alike"

    curvature = gradient.T @ gradient / 20
    order = scores.argsort().tolist()
    for count in (1, 5):
        gone = tuple(order[:count])
        wanted = least_error(hidden, weight, curvature, gone, weights)
        assert float(scores[list(gone)].sum()) == pytest.approx(wanted, rel=1e-3)
        assert wanted != pytest.approx(least_error(hidden, weight, curvature, gone), rel=0.02)


def test_a_segmentation_is_weighed_unless_its_recipe_says_no() -> None:
    scores = {weigh: score_pixels(weigh) for weigh in (None, "places", "none")}
    assert scores[None] == scores["places"] != scores["none"]
    # Where no part of what it returns can be told to be the scores of classes, all places count alike.
    assert score_pixels(None, "mapping") == score_pixels("none", "mapping")
    with pytest.raises(TrainingError, match=r"say in task\.outputs which part is the prediction"):
        score_pixels("places", "mapping")


def score_pixels(weigh: str | None, form: str = "tensor") -> list[float]:
    model, x = Pixels(form), draw(20, 2, 6, 6)
    plan = plan_of(model, x, "filter")
    spec = Reconstruction.model_validate({"kind": "reconstruction", "weigh": weigh})
    task = Task(kind="segmentation")
    return model_scores(spec, model, plan.map, ["first"], [(x, None)], 0, task)["first"].tolist()


def test_a_cut_of_a_segmentation_is_chosen_by_weighed_places(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Task | None]()
    plain = reconstruction.reconstruction_scores

    def note(*given: Any) -> dict[str, Tensor]:
        asked.append(given[-1])
        return plain(*given)

    monkeypatch.setattr(reconstruction, "reconstruction_scores", note)
    kept = cut_pixels(None).cuts.widths
    assert cut_pixels("places").cuts.widths == kept
    cut_pixels("none")
    cut_pixels(None, task="classification")
    assert [task and task.kind for task in asked] == ["segmentation", "segmentation", None, None]


def test_places_of_a_task_without_classes_cannot_be_weighed() -> None:
    with pytest.raises(RecipeError) as caught:
        cut_pixels("places", task="regression")
    assert str(caught.value) == (
        "<recipe>: rules.0.criterion.weigh: 'reconstruction' weighs places by predictions of classes, which "
        "this task has not, or which a loss of its own may read otherwise; leave 'weigh' out"
    )
