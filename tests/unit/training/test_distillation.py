"""Distillation: the formula, its gradient, and a stage that learns from the dense model."""

from typing import Any

import pytest
import torch

import sparsify
from sparsify.data import load_data
from sparsify.errors import RecipeError, TrainingError
from sparsify.models import digits_cnn
from sparsify.runs.save_load import load_dense
from sparsify_schemas.data import Data

CUT = {"kind": "cut", "repair": False}
TRAIN = {"kind": "train", "epochs": 1, "optimizer": {"kind": "adam", "lr": 0.003}}
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "10%"},
    "targets": {"eager": {"kind": "cpu"}},
    "budget": {"macs": "40%"},
    "rules": [{"layers": "Conv2d", "group": "filter"}],
}


def draw(seed: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (4.0, 0.5), (4.0, 1.0), (2.0, 0.25)])
def test_the_loss_is_the_formula(temperature: float, weight: float) -> None:
    outputs, teacher, labels = draw(0), draw(1), torch.tensor([0, 1, 2, 1, 0])
    found = sparsify.distillation_losses(outputs, labels, teacher, temperature, weight)
    for row in range(5):
        soft, own = (torch.exp(one[row] / temperature) for one in (teacher, outputs))
        soft, own = soft / soft.sum(), own / own.sum()
        divergence = sum(float(p * torch.log(p / q)) for p, q in zip(soft, own, strict=True))
        cross = -float(torch.log(torch.exp(outputs[row]) / torch.exp(outputs[row]).sum())[labels[row]])
        assert float(found[row]) == pytest.approx((1 - weight) * cross + weight * temperature**2 * divergence)


def test_the_gradient_leads_to_the_teacher() -> None:
    outputs, teacher = draw(0).requires_grad_(), draw(1)
    sparsify.distillation_losses(
        outputs, torch.zeros(5, dtype=torch.int64), teacher, 3.0, 1.0
    ).sum().backward()
    wanted = 3 * (torch.softmax(outputs.detach() / 3, 1) - torch.softmax(teacher / 3, 1))
    assert outputs.grad is not None and torch.allclose(outputs.grad, wanted)


def test_classes_that_both_rule_out_add_nothing() -> None:
    """Their scores are -inf, and 0 * log(0 / 0) is 0."""
    out, out_of_teacher = draw(0), draw(1)
    out[:, 2] = out_of_teacher[:, 2] = -torch.inf
    out.requires_grad_()
    labels = torch.tensor([0, 1, 1, 0, 1])
    found = sparsify.distillation_losses(out, labels, out_of_teacher)
    of_two = sparsify.distillation_losses(out[:, :2], labels, out_of_teacher[:, :2])
    assert torch.allclose(found, of_two)
    found.sum().backward()
    assert out.grad is not None and bool(out.grad.isfinite().all())


def test_no_gradient_goes_to_the_teacher() -> None:
    teacher = draw(1).requires_grad_()
    sparsify.distillation_losses(draw(0).requires_grad_(), torch.arange(5) % 3, teacher).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"teacher": draw(1)[:, :1]},
            "outputs and teacher have the shapes [5, 3] and [5, 1]; a distillation compares tensors of one "
            "shape",
        ),
        (
            {"features": [(draw(0), draw(1)[:1])]},
            "the two of a pair of features have the shapes [5, 3] and [1, 3]; a distillation compares "
            "tensors of one shape",
        ),
        ({"temperature": 0.0}, "the temperature of a distillation is above 0, found 0.0"),
        ({"weight": 2.0}, "the weight of a distillation is a share, from 0 to 1, found 2.0"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], words: str) -> None:
    given = {"outputs": draw(0), "targets": torch.arange(5) % 3, "teacher": draw(1), **changed}
    with pytest.raises(TrainingError) as caught:
        sparsify.distillation_losses(**given)
    assert str(caught.value) == words


def test_a_stage_that_only_follows_the_dense_model_comes_nearer_to_it(tmp_path, monkeypatch) -> None:
    """The dense model disagrees with the labels; with weight 1 the cut model learns back what it says."""
    monkeypatch.chdir(tmp_path)
    learn = [{**TRAIN, "epochs": 2}, {"kind": "cut"}]
    dense = load_dense(sparsify.apply({**RECIPE, "stages": learn}, from_scratch=True, timing=0.05))
    with torch.no_grad():
        for parameter in dense.get_submodule("fc").parameters():
            parameter.copy_(parameter.roll(1, 0))  # it names the class before the right one
    torch.save(dense.state_dict(), "dense.pt")
    x = load_data(Data(source="digits"), 0).test.ready()
    tunes = [
        {**TRAIN, "epochs": 1, "name": "tune", "distill": distill} for distill in (None, {"weight": 1.0})
    ]
    apart = []
    for stages in ([CUT], *([CUT, tune] for tune in tunes)):
        run = sparsify.apply({**RECIPE, "stages": stages}, "dense.pt", timing=0.05)
        with torch.no_grad():
            own, wanted = (model(x).log_softmax(1) for model in (sparsify.load_run(run), dense))
        apart.append(float((wanted.exp() * (wanted - own)).sum(1).mean()))
    cut, labels, taught = apart
    assert taught < 0.5 * cut and taught < 0.5 * labels


def test_the_plan_says_so_and_a_stage_before_the_cut_is_refused() -> None:
    stages = [{"kind": "cut"}, {**TRAIN, "distill": {}}]
    plan = sparsify.make_plan({**RECIPE, "stages": stages}, digits_cnn().eval(), (torch.zeros(2, 1, 8, 8),))
    words = " ".join(sparsify.describe(plan).split())
    assert "distilled from the dense model (weight 0.5, temperature 4)" in words
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe({**RECIPE, "stages": stages[::-1]})
    assert (
        "'train' distils from the dense model, and no stage before it cuts; "
        "move 'distill' to a stage after a cut, or name a file as its 'teacher'"
    ) in str(caught.value)
