"""Distillation with features: the formula, which units are compared, and one step of a stage written out."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sparsify
from sparsify.errors import RecipeError, TrainingError
from sparsify.models import digits_cnn
from sparsify.runs.save_load import load_dense

SETUP = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(inplace=True)),
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, image):
        return self.fc(self.body(image).mean((2, 3)))

def draw(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 7, 7, generator=generator)
    return images, torch.randint(0, 3, (count,), generator=generator)

def plain():
    return draw(60, 1), draw(20, 2)

def named():
    return tuple(({"image": x}, y) for x, y in plain())
"""
CUT = {"kind": "cut", "repair": False}
TRAIN = {"kind": "train", "epochs": 1, "batch": 60, "optimizer": {"kind": "sgd", "lr": 0.1}}
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Features",
    "model": {"build": "hinted.Net"},
    "data": {"source": "hinted:plain", "validation": "0%"},
    "targets": {"eager": {"kind": "cpu"}},
    "rules": [{"layers": "Conv2d", "group": "filter", "sparsity": "50%"}],
}


@pytest.fixture
def hinted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(importlib.sys.modules, "hinted", raising=False)  # type: ignore[attr-defined]
    Path("hinted.py").write_text(SETUP)
    yield importlib.import_module("hinted")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def test_the_loss_of_an_example_is_the_formula() -> None:
    outputs, teacher, labels = draw(0, 4, 3), draw(1, 4, 3), torch.tensor([0, 1, 2, 1])
    maps, tokens = (draw(2, 4, 5, 2, 2), draw(3, 4, 5, 2, 2) * 3 + 1), (draw(4, 4, 6), draw(5, 4, 6))
    flat = (draw(6, 4, 2), torch.full((4, 2), 0.1))  # does not vary: left out
    plain = sparsify.distillation_losses(outputs, labels, teacher)
    found = sparsify.distillation_losses(
        outputs, labels, teacher, features=[maps, tokens, flat], features_weight=0.7
    )
    for row in range(4):
        wanted = 0.0
        for own, taught in (maps, tokens):
            values = taught.flatten().tolist()
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            pairs = list(zip(own[row].flatten().tolist(), taught[row].flatten().tolist(), strict=True))
            wanted += sum((f - t) ** 2 for f, t in pairs) / len(pairs) / variance / 2
        assert float(found[row] - plain[row]) == pytest.approx(0.7 * wanted, rel=1e-4)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        made: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return made


def test_layers_of_a_padded_encoder_of_torch_are_recorded() -> None:
    """Its fused path fails where hooks watch a layer inside."""
    model = Padded().eval()
    pairs = sparsify.FeaturePairs(model, model, "*.linear1")
    with torch.no_grad(), pairs.record_teacher(), pairs.record_model():
        model(draw(0, 4, 5, 8), torch.arange(5) >= torch.tensor([[3], [4], [2], [1]]))
    own, taught = pairs.pairs()[0]
    assert own.shape == (4, 5, 12) and torch.equal(own, taught)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_layer_that_returns_the_mean_of_its_teacher_is_one_away() -> None:
    taught = draw(0, 50, 4)
    pair = (taught.mean().expand(50, 4), taught)
    logits, labels = draw(1, 50, 3), torch.zeros(50, dtype=torch.int64)
    found = sparsify.distillation_losses(logits, labels, logits, weight=1.0, features=[pair])
    assert float(found.mean()) == pytest.approx(1.0, rel=1e-5)


class Wide(nn.Module):
    """Layers of every kind before which nothing was cut, and a sum after them."""

    def __init__(self) -> None:
        super().__init__()
        norm, relu = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.first = nn.Sequential(nn.Conv2d(2, 8, 3), norm, relu, nn.PReLU(), nn.MaxPool2d(2))
        self.up = nn.ConvTranspose2d(2, 6, 2)
        self.one, self.two = nn.Conv2d(8, 4, 3), nn.Conv2d(6, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        joined = self.one(self.first(x)).mean((2, 3)) + self.two(self.up(x)).mean((2, 3))
        logits: Tensor = self.fc(joined)
        return logits


def test_the_units_that_stayed_are_compared() -> None:
    """What is before the first cut sees the inputs of the dense model, so its units say the same."""
    torch.manual_seed(0)
    model, x = Wide().eval(), torch.randn(5, 2, 8, 8)
    model.first[1].running_mean.normal_()
    recipe = {
        "version": 1,
        "title": "Kept",
        "rules": [{"layers": name, "group": "filter", "sparsity": "50%"} for name in ("first.0", "up")],
    }
    result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)
    assert result.model.first[0].out_channels == 4 and result.model.up.out_channels == 3
    layers = ["first", *(f"first.{i}" for i in range(5)), "up", "fc"]
    features = sparsify.FeaturePairs(result.model, result.dense, layers, result.cuts)
    result.model.eval()
    with features.record(), torch.no_grad():
        outputs, taught = result.model(x), result.dense.eval()(x)
    pairs = dict(zip(layers, features.pairs(), strict=True))
    assert [own.shape[1] for own, _ in pairs.values()] == [4, 4, 4, 4, 4, 4, 3, 3]
    for own, wanted in list(pairs.values())[:-1]:
        torch.testing.assert_close(own, wanted)
        assert float(wanted.abs().max()) > 0
    assert torch.equal(pairs["fc"][0], outputs) and torch.equal(pairs["fc"][1], taught)
    assert float(pairs["first.1"][0].min()) < 0, "before the ReLU that works in place"
    assert not result.model.first[0]._forward_hooks


@pytest.mark.parametrize(
    ("manner", "source"),
    [
        ({}, "plain"),
        ({"accumulate": 3}, "plain"),
        ({"recompute_activations": True, "weight": 0}, "plain"),
        ({"layout": "channels_last"}, "named"),
    ],
)
def test_one_step_of_a_stage_is_the_formula(hinted: Any, manner: dict[str, Any], source: str) -> None:
    """All 60 examples in one batch; the units that stayed are those whose bias is that of the dense model."""
    weight = manner.get("weight", 0.5)
    stage = {key: value for key, value in manner.items() if key != "weight"}
    distill = {"features": ["body.?.0", "body.1"], "features_weight": 0.3, "weight": weight}
    recipe = {**RECIPE, "data": {"source": f"hinted:{source}", "validation": "0%"}}
    torch.manual_seed(3)
    torch.save(hinted.Net().state_dict(), "dense.pt")
    cut = sparsify.apply({**recipe, "stages": [CUT]}, "dense.pt", timing=0.02)
    stages = [CUT, {**TRAIN, **stage, "distill": distill}]
    run = sparsify.apply({**recipe, "stages": stages}, "dense.pt", timing=0.02)

    dense, model = load_dense(cut), sparsify.load_run(cut)
    (x, y), _ = hinted.plain()

    def pass_through(net: nn.Module) -> tuple[Tensor, list[Tensor]]:
        seen = []
        for block in net.body:
            seen.append(block[0](x if not seen else seen[-1].relu()))
        return net.fc(seen[-1].relu().mean((2, 3))), [*seen, seen[-1].relu()]

    kept = []
    for own, whole in zip(model.body, dense.body, strict=True):
        found = [whole[0].bias.tolist().index(value) for value in own[0].bias.tolist()]
        kept.append(torch.tensor(found))
    assert [len(one) for one in kept] == [5, 2]
    outputs, own = pass_through(model)
    with torch.no_grad():
        said, taught = pass_through(dense)
    taught = [t[:, numbers] for t, numbers in zip(taught, [*kept, kept[1]], strict=True)]
    distances = [(f - t).pow(2).mean() / t.var(correction=0) for f, t in zip(own, taught, strict=True)]
    soft, hard = (said / 4).softmax(1), functional.cross_entropy(outputs, y)
    divergence = (soft * (soft.log() - (outputs / 4).log_softmax(1))).sum(1).mean()
    loss = (1 - weight) * hard + weight * 16 * divergence + 0.3 * sum(distances) / 3
    loss.backward()
    ended = sparsify.load_run(run)
    for (name, before), after in zip(model.named_parameters(), ended.parameters(), strict=True):
        wanted = before.detach() - 0.1 * before.grad
        assert float((wanted - before.detach()).abs().max()) > 1e-5, name
        torch.testing.assert_close(after.detach(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"features": "conv9"}, "features: 'conv9' matches no module of the model; did you mean 'conv4'?"),
        (
            {"features_weight": 2.0},
            "features_weight: there are no 'features' to weigh; name them, or leave it out",
        ),
        ({"weight": 0}, "weight: a weight of 0 leaves the teacher out; write one above 0, or 'features'"),
    ],
)
def test_what_does_not_fit_is_refused(
    distill: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = [
        CUT,
        {"kind": "train", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}, "distill": distill},
    ]
    recipe = {
        **RECIPE,
        "model": {"build": "sparsify.models.digits_cnn"},
        "data": {"source": "digits"},
        "stages": stages,
    }
    with pytest.raises(RecipeError) as caught:
        sparsify.apply(recipe, from_scratch=True)
    assert str(caught.value) == f"<recipe>: stages.1.distill.{message}"
    assert not Path("runs").exists()


def test_layers_that_cannot_be_compared_are_named() -> None:
    model, x = digits_cnn().eval(), torch.zeros(2, 1, 8, 8)
    narrow = digits_cnn(width=8).eval()

    def record(features: sparsify.FeaturePairs) -> None:
        with features.record(), torch.no_grad():
            narrow(x), model(x)
        features.pairs()

    with pytest.raises(TrainingError) as caught:
        record(sparsify.FeaturePairs(narrow, model, "bn1"))
    assert str(caught.value) == (
        "features: 'bn1' returns a tensor of shape (2, 8, 8, 8) and in the teacher one of (2, 16, 8, 8), and "
        "nothing says which of these belong together; name layers of equal widths"
    )
    with pytest.raises(TrainingError) as caught:
        sparsify.FeaturePairs(narrow, nn.Sequential(nn.Linear(2, 2)), "bn1")
    assert str(caught.value) == "features: 'bn1' is not in the teacher; name layers that both have"
    with pytest.raises(TrainingError, match=r"^features 'bn9' match no module of the model$"):
        sparsify.FeaturePairs(narrow, model, "bn9")


def test_the_plan_says_what_is_compared() -> None:
    distill = {"features": ["conv?", "fc"], "features_weight": 0.5, "weight": 0}
    stages = [
        CUT,
        {"kind": "train", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}, "distill": distill},
    ]
    recipe = {**RECIPE, "model": {"build": "sparsify.models.digits_cnn"}, "data": {"source": "digits"}}
    plan = sparsify.make_plan({**recipe, "stages": stages}, digits_cnn().eval(), (torch.zeros(2, 1, 8, 8),))
    words = " ".join(sparsify.describe(plan).split())
    assert "distilled from the dense model (features conv?, fc with weight 0.5)" in words
