"""What a group's norm is weighed by in a lasso: its size, the MACs that it takes,
or the milliseconds that go with it."""

from typing import assert_never

import torch
from torch import Tensor

from sparsify.cost.cost_model import Costs
from sparsify.distributed import local_part
from sparsify.graph.group_index import Layout
from sparsify.pruning.planning.match_layers import find_target
from sparsify.pruning.planning.plan import Plan
from sparsify.training.penalties.step_action import Tensors
from sparsify_schemas.penalty import GroupLasso

LEAST = 1 / 20
"""of the mean price of a weight: what a group weighs by at least, also where nothing is gained with it"""


def weigh_groups(spec: GroupLasso, plan: Plan, layout: Layout, parameters: Tensors) -> Tensor:
    """v_g of every slot: sqrt(|g|) * max(1/20, (price of g / |g|) / (price of all / number of all)): [count +
    1]."""
    sizes = layout.sizes(parameters)
    match spec.weight:
        case "size":
            return sizes.sqrt()
        case "macs":
            each = Costs(plan.map).macs_per_weight()
            prices = layout.reduce(
                lambda name: torch.full_like(local_part(parameters[name]), each.get(name, 0.0))
            )
        case "latency":
            target, known = (
                find_target(spec, plan.recipe),
                {(t, name): price for t, name, price in plan.prices},
            )
            prices = torch.zeros_like(sizes)
            for name, first, width in layout.names:
                prices[first : first + width] = known[target, name]
            if (
                torch.distributed.is_initialized()
            ):  # no two processes agree on timings, and all must pull alike
                torch.distributed.broadcast(prices, 0)
        case _:
            assert_never(spec.weight)
    prices, sizes = prices.clone(), sizes.clone()
    prices[-1] = sizes[-1] = 0.0  # the spare slot is no group
    mean = prices.sum() / sizes.sum()
    return (
        sizes.sqrt() * (prices / sizes.clamp(min=1) / mean).clamp(min=LEAST) if float(mean) else sizes.sqrt()
    )
