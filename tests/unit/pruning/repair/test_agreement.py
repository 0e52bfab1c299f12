"""Agreement from sums alone, and a pass that ends with the last layer it refits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.repair import agreement, repair
from sparsify.pruning.repair.agreement import measure_agreement
from sparsify.pruning.repair.choose_fit import Settings, choose_fit
from sparsify.pruning.repair.memory import COPIES, affordable_examples
from sparsify.pruning.repair.regression import Fit
from sparsify_schemas.stage import Repair

VOCABULARY = 300


class LanguageModel(nn.Module):
    """Tokens [N, length] -> scores [N, length, vocabulary]; the head shares the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.calls: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        hidden = hidden + self.down(torch.relu(self.up(hidden)))
        self.calls.append(len(tokens))
        scores: Tensor = self.head(hidden)
        return scores


def tokens(count: int) -> Tensor:
    return torch.randint(VOCABULARY, (count, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("examples", [1, 5, 8, 9, 70])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_sums_over_chunks_give_what_all_outputs_give(examples: int, shift: float) -> None:
    """Also where the outputs are large beside their spread."""
    torch.manual_seed(examples)
    dense, cut = nn.Linear(3, 4).double(), nn.Linear(3, 4).double()
    with torch.no_grad():
        dense.bias.add_(shift)
        cut.bias.add_(shift)
    x = torch.randn(examples, 3, dtype=torch.float64)
    with torch.no_grad():
        y, z = dense(x).float().double(), cut(x).float().double()
    a, b = y - y.mean(0), z - z.mean(0)
    total, other = float((a * a).sum()), float((b * b).sum())
    found = measure_agreement(dense, cut, (x,), examples)
    if examples == 1:
        assert (found.correlation, found.error) == (0.0, 0.0)
    else:
        assert found.correlation == pytest.approx(float((a * b).sum()) / (total * other) ** 0.5, rel=1e-6)
        assert found.error == pytest.approx(float((z - y).square().sum()) / total, rel=1e-6)
    assert found.same_prediction == float((y.argmax(1) == z.argmax(1)).double().mean())


class TimeFirst(nn.Module):
    """Examples [N, T, F] -> outputs [T, N, C], as for a loss over time; and one more of no example."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x).transpose(0, 1), self.layer.weight


@pytest.mark.parametrize("steps", [1, 5, 8, 64])
@pytest.mark.parametrize("examples", [1, 2, 20, 100])
def test_examples_are_found_in_any_dimension_of_the_outputs(steps: int, examples: int) -> None:
    dense, cut = TimeFirst(0).eval(), TimeFirst(1).eval()
    x = torch.randn(examples, steps, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y, z = dense(x)[0].double().transpose(0, 1), cut(x)[0].double().transpose(0, 1)
    found = measure_agreement(dense, cut, (x,), examples)
    if examples > 1:
        total = float((y - y.mean(0)).square().sum())
        assert found.error == pytest.approx(float((z - y).square().sum()) / total, rel=1e-5)
    assert found.same_prediction is None


class Summary(nn.Module):
    """What becomes of all examples together: rows of one number, or of ever more."""

    def __init__(self, grows: bool) -> None:
        super().__init__()
        self.grows = grows

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0).repeat(2 * len(x) + 1 if self.grows else 1)


def test_outputs_without_a_dimension_for_examples() -> None:
    x = torch.randn(20, 3)
    found = measure_agreement(Summary(False), Summary(False), (x,), 20)
    assert found.correlation == pytest.approx(1) and found.error == 0
    with pytest.raises(ModelError, match="no dimension of the model's outputs counts its examples"):
        measure_agreement(Summary(True), Summary(True), (x,), 20)


class Spoilt(nn.Module):
    """NaN for examples of negative first numbers; -inf in place of the first class."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.inner(x).masked_fill(x[:, :1] < 0, torch.nan)
        return torch.cat([torch.full_like(made[:, :1], -torch.inf), made[:, 1:]], 1)


def test_examples_without_numbers_and_masked_classes_do_not_count() -> None:
    torch.manual_seed(0)
    dense, cut = nn.Linear(3, 4), nn.Linear(3, 4)
    x = torch.randn(40, 3)
    sound = x[x[:, 0] >= 0]
    with torch.no_grad():
        y, z = dense(sound)[:, 1:].double(), cut(sound)[:, 1:].double()
    found = measure_agreement(Spoilt(dense), Spoilt(cut), (x,), 40)
    a, b = y - y.mean(0), z - z.mean(0)
    assert found.error == pytest.approx(float((z - y).square().sum() / a.square().sum()), rel=1e-5)
    assert found.correlation == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), rel=1e-5)
    assert found.same_prediction == float((y.argmax(1) == z.argmax(1)).double().mean()) < 1


def test_outputs_that_vary_by_rounding_alone_have_no_spread() -> None:
    dense, cut = nn.Linear(3, 4), nn.Linear(3, 4)
    x = 1 + 1e-7 * torch.arange(3.0).repeat(40, 1) + 1e-9 * torch.randn(40, 3)
    found = measure_agreement(dense, cut, (x,), 40)
    assert (found.correlation, found.error) == (0, 0)


def test_large_outputs_come_in_small_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call that is compared has eight examples; what they hold says how many the next ones have."""
    model = LanguageModel().eval()
    monkeypatch.setattr(agreement, "OUTPUT_BYTES", 3 * 5 * VOCABULARY * 4)
    found = measure_agreement(model, model, (tokens(20),), 20, classes=False)
    to_find_the_examples, compared = model.calls[:2], model.calls[2:]
    assert to_find_the_examples == [3, 2]
    assert compared[::2] == [8, 3, 3, 3, 3]
    assert found.correlation == pytest.approx(1) and found.error == 0


def test_what_lies_behind_the_last_layer_to_refit_is_not_computed() -> None:
    dense = LanguageModel().eval()
    recipe = {
        "version": 1,
        "title": "t",
        "task": "language_model",
        "rules": [{"layers": "up", "group": "neuron", "sparsity": "50%"}],
    }
    result = sparsify.cut(sparsify.make_plan(recipe, dense, (tokens(2),)), dense)
    result.model.calls.clear()  # type: ignore[operator, union-attr]
    repaired = sparsify.repair(result, [tokens(60)])
    assert {row.layer: row.outcome for row in repaired.layers} == {
        "head": "skipped",
        "up": "unchanged",
        "down": "refitted",
    }
    assert 60 not in result.model.calls  # type: ignore[operator]
    assert repaired.after is not None and repaired.before is not None
    assert repaired.after.error < repaired.before.error


@pytest.mark.parametrize("every_size", [False, True])
def test_a_fit_that_a_few_large_rows_decide_is_refused_where_rows_are_divided_by_their_size(
    every_size: bool,
) -> None:
    """Two of 200 rows are a thousand times as large, and follow another map than the others: the fit of least
    squares goes to that one."""
    generator = torch.Generator().manual_seed(0)
    rows, weight, other = (torch.randn(size, generator=generator) for size in ((200, 3), (3, 2), (3, 2)))
    targets = rows @ weight
    rows[:2] *= 1000
    targets[:2] = rows[:2] @ other
    start = Fit(weight[None].double(), torch.zeros(1, 2, dtype=torch.float64))
    sizes = targets.square().mean(1).sqrt() if every_size else None
    row, fit = choose_fit(
        "layer",
        rows[:, None],
        targets[:, None],
        start,
        torch.float32,
        200,
        Settings(),
        shiftable=False,
        sizes=sizes,
    )
    assert row.before is not None and row.after is not None and row.after < row.before
    assert (row.outcome, fit is None) == (("reverted", True) if every_size else ("refitted", False))


def test_a_repair_that_does_not_help_is_tried_without_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    real = repair._repair_layers

    def ruin_first(dense: nn.Module, model: nn.Module, *rest: Any) -> Any:
        (stage,) = (each for each in rest if isinstance(each, Repair))
        tried.append(stage.shortcuts)
        layers = real(dense, model, *rest)
        if stage.shortcuts:
            model.down.weight.data.mul_(100)  # type: ignore[union-attr, operator]
        return layers

    monkeypatch.setattr(repair, "_repair_layers", ruin_first)
    dense = LanguageModel().eval()
    recipe = {
        "version": 1,
        "title": "t",
        "task": "language_model",
        "rules": [{"layers": "up", "group": "neuron", "sparsity": "50%"}],
    }
    result = sparsify.cut(sparsify.make_plan(recipe, dense, (tokens(2),)), dense)
    repaired = sparsify.repair(result, [tokens(60)])
    assert tried == [True, False] and not repaired.reverted
    assert repaired.after is not None and repaired.before is not None
    assert repaired.after.error < repaired.before.error


def test_memory_counts_what_is_computed() -> None:
    """Floats of the largest module with its input, for one example: of the head, and of `up` and `down`."""
    model = LanguageModel().eval()
    everything = COPIES * 4 * 5 * (VOCABULARY + 8)
    needed = COPIES * 4 * 5 * (24 + 8)
    assert affordable_examples(model, (tokens(50),), 50, 7 * everything) == 7
    layers = frozenset({"up", "down"})
    assert affordable_examples(model, (tokens(50),), 50, 7 * needed, layers) == 7
