"""gsm, agp and growing_l2 on groups inside a tensor: kernel positions, filter shapes, blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import RecipeError

X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 3))


def groups(weight: Tensor, group: str) -> Tensor:
    """The weights of W[4, 3, 3, 3] with a row for each group."""
    match group:
        case "tap":
            return weight.permute(2, 3, 0, 1).reshape(9, -1)
        case "shape":
            return weight.permute(1, 2, 3, 0).reshape(27, -1)
        case _:
            return weight.reshape(2, 2, 9, 3).permute(0, 2, 1, 3).reshape(18, -1)


def after(penalty: dict[str, Any], group: str, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(weights, gradient that the optimizer saw) after one step with learning rate 0.1."""
    net = model()
    rule = {"layers": "0", "group": group, "sparsity": "50%", "penalty": penalty}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, (X,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with sparsify.attach(plan, net, optimizer, steps_per_epoch=1, steps=1):
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        net[0].weight.grad = gradient.clone()
        optimizer.step()
    assert net[0].weight.grad is not None
    return net[0].weight.detach(), net[0].weight.grad


@pytest.mark.parametrize("group", ["tap", "shape", "2x3"])
class TestInside:
    def test_gsm_keeps_the_gradient_of_the_most_important(self, group: str) -> None:
        start, gradient = (
            model()[0].weight.detach(),
            torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(2)),
        )
        importance = groups(start * gradient, group).sum(1).abs()
        keep = len(importance) - int(len(importance) * 0.5 + 0.5)
        active = importance >= importance.sort(descending=True).values[keep - 1]
        _, seen = after({"kind": "gsm"}, group, gradient)
        torch.testing.assert_close(groups(seen, group), groups(gradient, group) * active[:, None])

    def test_agp_sets_the_weakest_to_zero(self, group: str) -> None:
        start = model()[0].weight.detach()
        found, _ = after(
            {"kind": "agp", "start": "0it", "end": "1it", "every": "1it"}, group, torch.zeros(4, 3, 3, 3)
        )
        assert torch.equal(found, start), "nothing before the window"
        net = model()
        rule = {
            "layers": "0",
            "group": group,
            "sparsity": "50%",
            "penalty": {"kind": "agp", "start": "0it", "end": "1it", "every": "1it"},
        }
        plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, (X,))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with sparsify.attach(plan, net, optimizer):
            for _ in range(2):
                for p in net.parameters():
                    p.grad = torch.zeros_like(p)
                optimizer.step()
        norms = groups(start, group).norm(dim=1)
        gone = norms <= norms.sort().values[int(len(norms) * 0.5 + 0.5) - 1]
        assert torch.equal(groups(net[0].weight.detach(), group), groups(start, group) * ~gone[:, None])

    def test_growing_l2_shrinks_the_weakest(self, group: str) -> None:
        start = model()[0].weight.detach()
        found, _ = after(
            {"kind": "growing_l2", "delta": 1.0, "every": 1, "limit": 1.0}, group, torch.zeros(4, 3, 3, 3)
        )
        norms = groups(start, group).norm(dim=1)
        gone = norms <= norms.sort().values[int(len(norms) * 0.5 + 0.5) - 1]
        torch.testing.assert_close(
            groups(found, group), groups(start, group) * torch.where(gone, 0.9, 1.0)[:, None]
        )


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (
            {"group": "shape", "penalty": {"kind": "group_lasso", "strength": "auto"}, "sparsity": "50%"},
            (
                "strength 'auto' counts groups that can leave, not those inside a tensor; "
                "give group 'shape' a number"
            ),
        ),
        (
            {"group": "tap", "penalty": {"kind": "growing_l2"}},
            "growing_l2 on group 'tap' needs the rule's own 'sparsity': it says what has been chosen to go",
        ),
        (
            {"group": "2:4", "penalty": {"kind": "bn_scale", "strength": 0.1}},
            "bn_scale cannot act on group '2:4': a scale belongs to a whole channel",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(rule: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        sparsify.make_plan({"version": 1, "title": "t", "rules": [{"layers": "0", **rule}]}, model(), (X,))
    assert text in str(caught.value)
