"""Mixtures that lose half of their experts: what is left, and how far the cut model is from the dense one
with the scores of the removed experts at minus infinity, by the proof and by the tests' own reference.

    python tests/benchmarks/experts.py

Networks of tests/mixtures.py, and architectures of transformers with random weights and eight experts.
"""

import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))

import architectures
import mixtures
import reference
import shim  # noqa: F401
import torch
from reference import Experts
from torch import nn

import sparsify
from sparsify.errors import RecipeError

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""fields of configurations that hold the number of experts"""
ARCHITECTURES = (
    "mixtral qwen2_moe qwen3_moe qwen3_next olmoe flex_olmo granitemoe granitemoeshared gpt_oss glm4_moe "
    "dots1 solar_open afmoe ernie4_5_moe llama4_text minimax minimax_m2 hunyuan_v1_moe aria_text jamba "
    "jetmoe phimoe"
).split()
CORRECTIONS = ("correction_bias", "expert_bias")
"""names of what is added to scores for the choice alone"""
OWN: Mapping[str, dict[str, Any]] = {"jetmoe": {"pad_token_id": None}}
"""a padding token whose embedding is zero gives all experts of JetMoe's first layer equal scores"""


@dataclass(frozen=True)
class Row:
    """What became of one network."""

    name: str
    experts: str
    params: str
    proof: str
    reference: str

    def __str__(self) -> str:
        return f"| {self.name} | {self.experts} | {self.params} | {self.proof} | {self.reference} |"


def list_networks() -> Iterator[tuple[str, nn.Module, Any, Any]]:
    """(name, model, inputs, other inputs)"""
    example = (torch.randn(mixtures.SHAPE, generator=torch.Generator().manual_seed(3)),)
    for name, (make, _) in mixtures.CUTTABLE.items():
        yield name, mixtures.build(make), example, reference.fresh(example, 7, seed=5)
    for name in ("free", "hard-coded number"):
        made = mixtures.Free if name == "free" else mixtures.Counted
        yield name, mixtures.build(made), example, reference.fresh(example, 7, seed=5)
    for kind in ARCHITECTURES:
        yield kind, build(kind), architectures.draw(kind, 3, 0), architectures.draw(kind, 4, 1)


def build(kind: str) -> nn.Module:
    import transformers

    plain = transformers.AutoConfig.for_model(kind)
    fields: dict[str, Any] = {"num_experts_per_tok": 2}
    fields |= {field: 8 for field in COUNTS if hasattr(plain, field)}
    fields |= {field: 1 for field in ("n_group", "topk_group") if hasattr(plain, field)}
    architectures.ALL[kind] = {**architectures.ALL.get(kind, {}), **fields, **OWN.get(kind, {})}
    torch.manual_seed(0)
    model = architectures.build(kind).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2 and not parameter.any():  # a router that gives equal scores
            nn.init.normal_(parameter)
    return model


def measure(name: str, model: nn.Module, inputs: Any, other: Any) -> Row:
    rule = {"layers": "*", "group": "expert", "sparsity": "50%", "keep": {"uniform": True}}
    try:
        plan = sparsify.make_plan({"version": 1, "title": name, "rules": [rule]}, model, inputs)
    except RecipeError as error:
        why = str(error).partition("stays: ")[2].partition("; select")[0].partition(", and so on")[0]
        return Row(name, "stay", "100 %", why, "")
    result = sparsify.cut(plan, model, inputs=inputs)
    routers = {weight: dim for mixture in plan.map.mixtures for weight, dim in mixture.routers}
    offsets = [tensor for mixture in plan.map.mixtures for tensor in mixture.offsets]
    corrections = tuple(name for name in (*routers, *offsets) if name.endswith(CORRECTIONS))
    routers = {weight: dim for weight, dim in routers.items() if weight not in corrections}
    found = reference.compare(result, model, other, experts=Experts(routers, corrections))
    after = dict(plan.preview)
    mixture = plan.map.mixtures[0]
    each = mixture.count // mixture.group.width
    left = sum(p.numel() for p in result.model.parameters()) / sum(p.numel() for p in model.parameters())
    precision = "" if found.double else " in float32"
    return Row(
        name,
        f"{mixture.count} -> {after[mixture.name] * each}",
        f"{100 * left:.0f} %",
        f"{result.verdicts[0].difference:.0e}",
        f"{found.difference:.0e}{precision} (dense {found.to_dense:.0e})",
    )


def main() -> None:
    warnings.simplefilter("ignore")
    print("| network | experts | parameters left | proof | reference |\n|---|---|---|---|---|")
    for name, model, inputs, other in list_networks():
        print(measure(name, model, inputs, other), flush=True)


if __name__ == "__main__":
    main()
