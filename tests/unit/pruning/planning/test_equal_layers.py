"""Equal widths in the blocks of a transformer, where a rule does not say how its amount is divided."""

from typing import Any

import torch
from torch import Tensor, nn

import sparsify


class Encoder(nn.Module):
    """Three blocks of torch's; the weights of the last are larger, those of the first smaller."""

    def __init__(self, attention: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        if attention:
            blocks = [nn.TransformerEncoderLayer(16, 4, 24, batch_first=True) for _ in range(3)]
        else:
            blocks = [nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(3)]
        self.embed, self.layers, self.head = nn.Linear(5, 16), nn.ModuleList(blocks), nn.Linear(16, 3)
        with torch.no_grad():
            for number, block in enumerate(blocks):
                for name, parameter in block.named_parameters():
                    if "norm" not in name:
                        parameter *= 3.0**number

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        for block in self.layers:
            y = block(y)
        found: Tensor = self.head(y)
        return found


X = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
WIDE, HEADS = "layers.*.linear1", "layers.*.self_attn"


def widths(rules: list[dict[str, Any]], attention: bool = True, **more: Any) -> tuple[dict[str, int], str]:
    """Group -> units that stay; and the plan as it is shown."""
    model = Encoder(attention).eval()
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules, **more}, model, (X[:2],))
    result = sparsify.cut(plan, model)
    kept = {one.group: one.kept for one in result.cuts.widths}
    return kept, " ".join(sparsify.describe(plan).split())


SAID = "equal widths in all blocks of the transformer (unless 'keep: {uniform: false}')"


def test_blocks_of_a_transformer_keep_equal_widths() -> None:
    rules: list[dict[str, Any]] = [
        {"layers": WIDE, "group": "neuron", "sparsity": "50%"},
        {"layers": HEADS, "group": "head", "sparsity": "50%"},
    ]
    kept, said = widths(rules)
    assert {kept[f"layers.{n}.linear1"] for n in range(3)} == {12}
    assert {kept[f"layers.{n}.self_attn"] for n in range(3)} == {2}
    assert said.count(SAID) == 2


def test_a_budget_divides_evenly_too() -> None:
    kept, _ = widths([{"layers": WIDE, "group": "neuron"}], budget={"params": "80%"})
    found = {kept[f"layers.{n}.linear1"] for n in range(3)}
    assert len(found) == 1 and found < set(range(1, 24))


def test_layers_outside_of_the_blocks_go_by_their_own() -> None:
    """One rule over everything: the stream between the blocks has a width of its own."""
    kept, said = widths([{"layers": "*", "group": "neuron", "sparsity": "30%"}])
    assert len({kept[f"layers.{n}.linear1"] for n in range(3)}) == 1
    assert SAID in said


def test_it_can_be_switched_off_and_a_penalty_decides_by_itself() -> None:
    rule: dict[str, Any] = {"layers": WIDE, "group": "neuron", "sparsity": "50%"}
    penalty = {"kind": "group_lasso", "strength": 0.1}
    for more in ({"keep": {"uniform": False}}, {"penalty": penalty}):
        kept, said = widths([{**rule, **more}])
        assert kept["layers.0.linear1"] < kept.get("layers.2.linear1", 24)
        assert SAID not in said


def test_blocks_without_attention_are_no_transformer() -> None:
    kept, said = widths([{"layers": "layers.*.0", "group": "neuron", "sparsity": "50%"}], attention=False)
    assert kept["layers.0.0"] < kept.get("layers.2.0", 24)
    assert SAID not in said
