"""Removed channels that still emit a constant: what they contributed stays."""

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify_schemas.cuts import Fold


class Shifted(nn.Module):
    """Filters before a BatchNorm with a shift; what consumes them is given."""

    def __init__(self, consumer: nn.Module, norm: bool, outputs: int = 6) -> None:
        super().__init__()
        self.conv, self.bn, self.consumer = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), consumer
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.fc = nn.Linear(outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x)).relu()
        if isinstance(self.consumer, nn.Linear):
            return self.fc(self.norm(self.consumer(y.mean((2, 3)))))
        return self.fc(self.norm(self.consumer(y)).relu().mean((2, 3)))


def prepared(model: Shifted) -> Shifted:
    """Random statistics and shifts, and eight filters of zeros that a positive shift keeps emitting."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features))
                module.running_var.copy_(torch.rand(module.num_features) + 0.5)
        model.conv.weight[:8] = 0
        model.bn.bias[:8] = model.bn.bias[:8].abs() + 3
    return model.eval()


X = torch.randn(4, 3, 10, 10, generator=torch.Generator().manual_seed(1))
CASES = {
    "1x1 convolution with a bias": (lambda: Shifted(nn.Conv2d(32, 6, 1), norm=False), True),
    "1x1 convolution before a norm": (lambda: Shifted(nn.Conv2d(32, 6, 1, bias=False), norm=True), True),
    "3x3 convolution without padding": (lambda: Shifted(nn.Conv2d(32, 6, 3), norm=True), True),
    "linear": (lambda: Shifted(nn.Linear(32, 6), norm=False), True),
    "3x3 convolution with padding": (lambda: Shifted(nn.Conv2d(32, 6, 3, padding=1), norm=False), False),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_eight_zero_filters_before_a_shift(name: str) -> None:
    build, exact = CASES[name]
    model = prepared(build())
    wanted = model(X)
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [{"layers": "conv", "group": "filter"}]}, model, (X,))
    result = sparsify.cut(plan, model, inputs=(X,))
    assert result.model.get_parameter("conv.weight").shape[0] == 24, "the dead filters, and no others, are gone"
    (fold,) = [op for op in result.cuts.operations if isinstance(op, Fold)]
    assert (fold.module, fold.channels, fold.exact) == ("consumer", 8, exact)
    difference = float((result.model.eval()(X) - wanted).abs().max() / wanted.abs().max())
    masked = _without(model)
    unfolded = float((masked(X) - wanted).abs().max() / wanted.abs().max())
    assert unfolded > 0.05, "without folding it would show"
    assert difference <= (1e-5 if exact else unfolded / 3)
    assert torch.equal(model(X), wanted), "the user's model has not changed"


def _without(model: Shifted) -> nn.Module:
    """The model whose consumer no longer sees the dead channels: what a cut without folding would be."""
    import copy

    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.consumer.weight[:, :8] = 0
    return twin.eval()


def test_living_channels_are_not_folded() -> None:
    model = prepared(Shifted(nn.Conv2d(32, 6, 1), norm=False))
    with torch.no_grad():
        model.conv.weight[:8] = torch.randn_like(model.conv.weight[:8])
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [{"layers": "conv", "group": "filter", "sparsity": "50%"}]}, model, (X,))
    assert not [op for op in sparsify.cut(plan, model, inputs=(X,)).cuts.operations if isinstance(op, Fold)]
