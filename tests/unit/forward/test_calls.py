"""Several calls, and methods other than forward: a model is followed, tried, proven and counted in all of
them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.planning.plan import Plan

X, Z = (
    torch.randn(4, 8, generator=torch.Generator().manual_seed(0)),
    torch.randn(2, 6, generator=torch.Generator().manual_seed(1)),
)
RULES = [{"layers": "*", "group": "neuron", "sparsity": "50%"}]
WRITTEN = [
    {"method": "encode", "inputs": [{"shape": [2, 8]}]},
    {"method": "decode", "inputs": {"z": {"shape": [2, 6]}}},
]


class Codes(nn.Module):
    """Nothing calls it as a whole: it has no forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))
        self.shared = nn.Linear(6, 6)
        self.decoder = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 8))

    def encode(self, x: Tensor) -> Tensor:
        return self.shared(self.encoder(x))

    def decode(self, z: Tensor) -> dict[str, Tensor]:
        return {"out": self.decoder(self.shared(z))}


def plan_of(**more: Any) -> Plan:
    return sparsify.make_plan({"version": 1, "title": "t", "rules": RULES} | more, Codes().eval())


def test_methods_in_a_recipe() -> None:
    plan = plan_of(calls=WRITTEN)
    assert [c.method for c in plan.map.inputs] == ["encode", "decode"]
    assert dict(plan.preview).keys() == {"encoder.0", "decoder.0"}


def test_what_feeds_any_of_the_outputs_stays() -> None:
    protected = {c.name: c.protected for c in plan_of(calls=WRITTEN).map.coupled}
    assert protected["shared"] == "it feeds the network's output", (
        "it is the output of encode, though decode goes on with it"
    )
    assert protected["encoder.0"] is None and protected["decoder.0"] is None


def test_macs_are_those_of_one_example_of_every_call() -> None:
    model = Codes().eval()
    calls = [sparsify.Call("encode", (X,)), sparsify.Call("decode", {"z": Z})]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": RULES}, model, calls)
    assert plan.map.macs == (8 * 16 + 16 * 6 + 6 * 6) + (6 * 6 + 6 * 20 + 20 * 8)
    assert {layer.name: layer.macs for layer in plan.map.layers}["shared"] == 2 * 36


def test_the_cut_holds_in_every_call() -> None:
    model = Codes().eval()
    plan = plan_of(calls=WRITTEN)
    for inputs in (None, [sparsify.Call("encode", (X,)), sparsify.Call("decode", {"z": Z})]):
        result = sparsify.cut(plan, model, inputs=inputs)
        assert result.verdicts[0].outcome == "equal"
    thin = result.model
    assert thin.encode(X).shape == (4, 6) and thin.decode(Z)["out"].shape == (2, 8)
    # Each removed unit of the first layer is silenced in the dense model by its column in the next.
    for name, method, given in (("encoder", "encode", X), ("decoder", "decode", Z)):
        kept = next(w.keep for w in result.cuts.widths if w.group == f"{name}.0")
        lost = [
            i
            for i in range(model.get_submodule(name)[0].out_features)
            if not any(a <= i < b for a, b in kept)
        ]
        assert lost
        masked = Codes().eval()
        masked.load_state_dict(model.state_dict())
        with torch.no_grad():
            masked.get_submodule(name)[2].weight[:, lost] = 0
            wanted, found = getattr(masked, method)(given), getattr(thin, method)(given)
            wanted, found = (r["out"] if isinstance(r, dict) else r for r in (wanted, found))
        torch.testing.assert_close(found, wanted)


class Sides(nn.Module):
    """Which half runs is an argument of forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(8, 16)
        self.left, self.right = nn.Linear(16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor, left: bool) -> Tensor:
        x = self.stem(x).relu()
        return self.left(x) if left else self.right(x)


def test_several_calls_of_forward_narrow_every_consumer() -> None:
    model = Sides().eval()
    rules = [{"layers": "stem", "group": "neuron", "sparsity": "50%"}]
    calls = [
        {"inputs": [{"shape": [2, 8]}, {"value": True}]},
        {"inputs": [{"shape": [2, 8]}, {"value": False}]},
    ]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules, "calls": calls}, model)
    result = sparsify.cut(plan, model)
    assert result.model.left.in_features == result.model.right.in_features == 8
    assert result.model(X, True).shape == (4, 3) and result.model(X, False).shape == (4, 5)


def test_residual_branches_of_a_method() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(3)
            )
            self.head = nn.Linear(8, 2)

        def score(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return self.head(x)

    rules = [{"layers": "blocks.*", "group": "depth", "sparsity": "30%"}]
    model = Residual().eval()
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": rules}, model, sparsify.Call("score", (X,))
    )
    result = sparsify.cut(plan, model)
    assert len(plan.map.branches) == 3 and result.verdicts[0].outcome == "equal"
    assert sum(p.numel() for p in result.model.parameters()) < sum(p.numel() for p in model.parameters())
    assert result.model.score(X).shape == (4, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (sparsify.Call("encod", (X,)), "the model has no method 'encod' to call; did you mean 'encode'?"),
        (
            sparsify.Call("encode", (X,), batch={"y": 0}),
            "batch names 'y', which is no tensor of the call; it has 0",
        ),
        (
            sparsify.Call("encode", (X[:0],)),
            (
                r"the first input has shape \(0, 8\); its first dimension must be a batch of at least "
                r"one example"
            ),
        ),
        (
            sparsify.Call("encode", (X[:, :0],), batch=1),
            r"the first input has shape \(4, 0\); its dimension 1 must be a batch of at least one example",
        ),
        (sparsify.Call("decode", (X,)), r"a forward call with inputs decode\(4x8\) failed: RuntimeError"),
    ],
)
def test_calls_that_cannot_be_are_refused(call: sparsify.Call, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        sparsify.make_plan({"version": 1, "title": "t", "rules": RULES}, Codes().eval(), call)


def test_a_saved_run_measures_the_calls(tmp_path: Path) -> None:
    model = Codes().eval()
    plan = plan_of(calls=WRITTEN)
    run = sparsify.save_run(sparsify.cut(plan, model), tmp_path / "run", timing=0.05)
    again = sparsify.load_run(run, build=lambda: Codes())
    assert again.encode(X).shape == (4, 6)
