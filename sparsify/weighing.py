"""What a group's norm is weighed by in a lasso: its size, the MACs that it takes, or the milliseconds that go with it."""

from typing import assert_never

import torch
from torch import Tensor

from sparsify.costs import Costs
from sparsify.groups import Layout
from sparsify.penalties.action import Tensors
from sparsify.plan import Plan
from sparsify.wrapping import local
from sparsify_schemas.penalty import GroupLasso
from sparsify_schemas.recipe import Recipe

LEAST = 1 / 20
"""of the mean price of a weight: what a group weighs by at least, also where nothing is gained with it"""


def factors(spec: GroupLasso, plan: Plan, layout: Layout, parameters: Tensors) -> Tensor:
    """v_g of every slot: sqrt(|g|) * max(1/20, (price of g / |g|) / (price of all / number of all)): [count + 1]."""
    sizes = layout.sizes(parameters)
    match spec.weight:
        case "size":
            return sizes.sqrt()
        case "macs":
            each = Costs(plan.map).macs_per_weight()
            prices = layout.reduce(lambda name: torch.full_like(local(parameters[name]), each.get(name, 0.0)))
        case "latency":
            target, known = target_of(spec, plan.recipe), {(t, name): price for t, name, price in plan.prices}
            prices = torch.zeros_like(sizes)
            for name, first, width in layout.names:
                prices[first : first + width] = known[target, name]
            if torch.distributed.is_initialized():  # no two processes agree on timings, and all must pull alike
                torch.distributed.broadcast(prices, 0)
        case _:
            assert_never(spec.weight)
    prices, sizes = prices.clone(), sizes.clone()
    prices[-1] = sizes[-1] = 0.0  # the spare slot is no group
    mean = prices.sum() / sizes.sum()
    return sizes.sqrt() * (prices / sizes.clamp(min=1) / mean).clamp(min=LEAST) if float(mean) else sizes.sqrt()


def target_of(spec: GroupLasso, recipe: Recipe) -> str:
    """The target by whose latency a penalty weighs."""
    return spec.target or next(iter(recipe.targets))


def weighed_by(recipe: Recipe) -> list[str]:
    """The targets by whose latency any penalty weighs."""
    asking = [r.penalty for r in recipe.rules if isinstance(r.penalty, GroupLasso) and r.penalty.weight == "latency"]
    return list(dict.fromkeys(target_of(spec, recipe) for spec in asking))
