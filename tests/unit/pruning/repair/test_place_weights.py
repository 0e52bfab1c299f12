"""How much places count in a repair, against gradients written out, and a refit by weighed rows."""

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.criteria.drawn_classes import FLOOR
from sparsify.pruning.repair.place_weights import weigh_places
from sparsify.pruning.repair.regression import Fit, fit_ridge
from sparsify_schemas.task import Task

SEGMENTATION = Task(kind="segmentation")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Pixels(nn.Module):
    """Scores of three classes for each pixel, by two convolutions of size 1; nothing depends on `aside`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.aside, self.last = nn.Conv2d(2, 5, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        _ = self.aside(x)
        made: Tensor = self.last(self.first(x).relu())
        return made


def test_the_mean_over_draws_is_what_each_pixel_is_open_by() -> None:
    """At the scores themselves E |g| = sum over classes y of p_y |p - e_y|; many images that are alike stand
    for as many draws."""
    model, count = Pixels().eval(), 4000
    image = 3 * draw(1, 2, 2, 3)
    weights = weigh_places(model, SEGMENTATION, (image.expand(count, -1, -1, -1),), count, 0)
    assert weights.keys() == {"first", "last"}
    p = model(image).detach().double().softmax(1)[0].flatten(1).T  # [pixels, classes]
    apart = torch.linalg.vector_norm(p[:, None] - torch.eye(3), dim=-1)
    expected = (p * apart).sum(1)
    relative = weights["last"].double().flatten(1) * (FLOOR + 1) - FLOOR
    assert relative.mean(1).sub(1).abs().max() < 1e-5  # each image has its own mean
    found = relative.mean(0)
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.98


def test_gradients_of_one_draw_are_those_of_the_chain_rule() -> None:
    """One pixel in an image: every weight is 1. Two: each by the size of W'(p - one hot), where the ReLU is
    open."""
    model = Pixels().eval()
    assert bool((weigh_places(model, SEGMENTATION, (draw(6, 2, 1, 1),), 6, 0)["first"] == 1).all())
    x = draw(3, 2, 1, 2)
    found = weigh_places(model, SEGMENTATION, (x,), 3, 5)
    with torch.no_grad():
        inner = model.first(x)
        p = model.last(inner.relu()).softmax(1)
        rows = p.movedim(1, -1).flatten(0, -2)
        drawn = torch.multinomial(rows, 1, generator=torch.Generator().manual_seed(5))[:, 0]
        felt = rows - nn.functional.one_hot(drawn, 3)
        felt = felt.view(3, 1, 2, 3) @ model.last.weight[:, :, 0, 0]
        sizes = torch.linalg.vector_norm(felt * (inner > 0).movedim(1, -1), dim=-1)
        expected = (FLOOR + sizes / sizes.mean((1, 2), keepdim=True)) / (FLOOR + 1)
    assert torch.allclose(found["first"], expected, atol=1e-5)


def test_a_model_without_scores_of_classes_is_refused() -> None:
    message = (
        "repair: 'weigh': places are weighed by predictions that score two classes or more, and the model "
        "returns none; leave it out"
    )
    with pytest.raises(ModelError, match=f"^{message}$"):
        weigh_places(nn.Linear(2, 1), Task(), (draw(4, 2),), 4, 0)


def test_one_channel_is_the_score_of_a_second_class() -> None:
    """As two channels do of which the first is 0, in a segmentation of an object and its background."""
    torch.manual_seed(2)
    single, double = (nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, count, 1)) for count in (1, 2))
    with torch.no_grad():
        double[0].load_state_dict(single[0].state_dict())
        for name in ("weight", "bias"):
            getattr(double[1], name).zero_()[1] = getattr(single[1], name)[0]
    x = 4 * draw(5, 2, 3, 3)
    found, expected = (weigh_places(one, SEGMENTATION, (x,), 5, 1)["0"] for one in (single, double))
    assert found.std() > 0.2 and torch.allclose(found, expected, atol=1e-5)


def test_a_task_without_classes_has_no_such_weights() -> None:
    model, x = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), draw(60, 3)
    rules = [{"layers": "0", "group": "neuron", "sparsity": "50%"}]
    plan = sparsify.make_plan({"version": 1, "title": "t", "task": "regression", "rules": rules}, model, (x,))
    with pytest.raises(ModelError) as caught:
        sparsify.repair(sparsify.cut(plan, model), [x], weigh="places")
    assert str(caught.value) == (
        "repair: 'weigh': 'repair' weighs places by predictions of classes, which this task has not, or "
        "which a loss of its own may read otherwise; leave 'weigh' out"
    )


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(40, 5), (6, 12)])
def test_a_row_that_counts_twice_is_a_row_that_stands_there_twice(
    rows: int, columns: int, intercept: bool
) -> None:
    x, y = draw(rows, 1, columns), draw(rows, 1, 3, seed=1)
    start = Fit(draw(1, columns, 3, seed=2).double(), draw(1, 3, seed=3).double())
    counts = torch.randint(1, 4, (rows,), generator=torch.Generator().manual_seed(4))
    weighed = fit_ridge(x, y, start, 0.1, intercept=intercept, weights=counts.float())
    repeated = fit_ridge(
        x.repeat_interleave(counts, 0), y.repeat_interleave(counts, 0), start, 0.1, intercept=intercept
    )
    assert torch.allclose(weighed.weight, repeated.weight, atol=1e-4)
    assert torch.allclose(weighed.intercept, repeated.intercept, atol=1e-4)


class Objects(nn.Module):
    """Two classes in a few pixels, which the last channel marks; in all others, whose inputs are much larger,
    the model is sure of the first class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(4, 24, 1), nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.last(self.first(x).relu())
        sure = torch.stack([torch.full_like(x[:, 3], 20.0), torch.zeros_like(x[:, 3])], 1)
        return torch.where(x[:, 3:] > 0.5, found, found + sure)


def scenes(count: int, seed: int) -> Tensor:
    x = 6 * draw(count, 4, 8, 8, seed=seed)
    inside = torch.rand(count, 8, 8, generator=torch.Generator().manual_seed(seed)) < 0.1
    x[:, 3] = inside.float()
    x[:, :3] *= torch.where(inside, 0.2, 1.0)[:, None]
    return x


def test_a_segmentation_is_repaired_where_its_predictions_are_open() -> None:
    """The squared error of the scores on other images, weighed by how open the dense model's predictions
    are."""
    model, x, fresh = Objects().eval(), scenes(300, 1), scenes(200, 2)
    with torch.no_grad():
        wanted = model(fresh)
        p = wanted.softmax(1)
        is_open = (p * (1 - p)).sum(1).sqrt()
    assert float(is_open.mean()) < 0.15 * float(is_open.max())  # of few pixels
    rules = [{"layers": "first", "group": "filter", "sparsity": "75%"}]
    recipe = {"version": 1, "title": "t", "task": "segmentation", "rules": rules}
    plan = sparsify.make_plan(recipe, model, (x[:2],))
    errors = {}
    for weigh in ("none", "places", None):
        result = sparsify.cut(plan, model)
        repaired = sparsify.repair(result, [x], weigh=weigh)
        assert repaired.weighed == ("places weighed" in repr(repaired)) == (weigh != "none")
        with torch.no_grad():
            errors[weigh] = float(((result.model(fresh) - wanted).square().sum(1) * is_open).mean())
    assert errors["places"] == errors[None] < 0.8 * errors["none"]
