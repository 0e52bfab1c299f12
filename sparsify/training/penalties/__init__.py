"""Penalties: what each does around a step of the optimizer, one family member a file.

All are pure in everything but the tensors they are given to change and their own `state`. `amount` is lr *
strength (summed over the steps since the last proximal action) per tensor; `strength` is lambda.
"""

from collections.abc import Sequence
from functools import partial
from typing import assert_never

from torch import Tensor

from sparsify.errors import ModelError
from sparsify.graph.group_index import Layout, is_scale
from sparsify.training.penalties import (
    agp,
    dns,
    group_lasso,
    growing_l2,
    gsm,
    l0,
    l1_l2,
    sensitivity,
    variational_dropout,
)
from sparsify.training.penalties.step_action import Action, Tensors
from sparsify_schemas.penalty import (
    L0,
    L1,
    L2,
    Agp,
    BnScale,
    Dns,
    GroupLasso,
    GrowingL2,
    Gsm,
    Penalty,
    Sensitivity,
    VariationalDropout,
)
from sparsify_schemas.schedule import Auto


def build(
    spec: Penalty,
    layouts: Sequence[Layout],
    parameters: Tensors,
    *,
    share: float = 0.0,
    single: bool = False,
    roots: Tensor | None = None,
) -> Action:
    """The action of a penalty on the groups of some layouts;
    those of single weights act on all of the layouts' tensors.

    share: what a rule's `sparsity` removes; single: whether it counts single weights (group `weight`),
    not groups; roots: what a lasso weighs each slot's norm by;
    sqrt(|g|), for l0 also where the layout has only a part of each group. Left out, of the layout.
    """
    names = tuple(dict.fromkeys(part.name for layout in layouts for part in layout.parts))
    match spec:
        case GroupLasso():
            return _build_lasso(
                spec, layouts[0], layouts[0].sizes(parameters).sqrt() if roots is None else roots, names
            )
        case L1():
            if spec.solver == "proximal":
                state = (
                    group_lasso.make_strength_state(0, parameters[names[0]].device)
                    if isinstance(spec.strength, Auto)
                    else {}
                )
                return Action(proximal=partial(l1_l2.l1_proximal, names), state=state)
            return Action(gradient=partial(l1_l2.l1_gradient, names))
        case L2():
            if spec.solver == "proximal":
                return Action(proximal=partial(l1_l2.l2_proximal, names))
            return Action(gradient=partial(l1_l2.l2_gradient, names))
        case Gsm():
            return gsm.make_action(layouts, parameters, share, single)
        case Sensitivity():
            return sensitivity.make_action(spec, names, parameters)
        case BnScale():
            scales = tuple(n for n in names if is_scale(n, parameters[n]))
            if not scales:
                raise ModelError(
                    "penalty bn_scale finds no normalisation with a scale in the rule's groups; "
                    "use group_lasso there"
                )
            if spec.solver == "proximal":
                return Action(proximal=partial(l1_l2.l1_proximal, scales))
            return Action(gradient=partial(l1_l2.l1_gradient, scales))
        case GrowingL2():
            return growing_l2.make_action(spec, layouts[0], parameters, single)
        case Agp():
            return agp.make_action(spec, layouts[0], parameters, share, single)
        case Dns():
            return dns.make_action(spec, layouts[0], parameters)
        case L0():
            sizes = layouts[0].sizes(parameters) if roots is None else roots.square()
            return l0.make_action(spec, layouts[0], sizes, parameters)
        case VariationalDropout():
            return variational_dropout.make_action(spec, layouts[0], parameters)
        case _:
            assert_never(spec)


def _build_lasso(spec: GroupLasso, layout: Layout, roots: Tensor, names: tuple[str, ...]) -> Action:
    match spec.solver:
        case "proximal":
            if isinstance(spec.strength, Auto):
                state = group_lasso.make_strength_state(layout.count, roots.device)
                return Action(
                    proximal=partial(group_lasso.group_lasso_proximal, layout, roots, floor=state["floor"]),
                    state=state,
                    per={"floor": "group"},
                )
            return Action(proximal=partial(group_lasso.group_lasso_proximal, layout, roots))
        case "subgradient":
            after = partial(l1_l2.zero_below, names, spec.zero_below) if spec.zero_below is not None else None
            return Action(gradient=partial(group_lasso.group_lasso_gradient, layout, roots), after=after)
        case "half_space":
            return group_lasso.half_space(layout, roots, names, spec.epsilon)
        case _:
            assert_never(spec.solver)
