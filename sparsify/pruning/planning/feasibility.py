"""Whether budgets, sparsities and uniform widths can be met, and what to change where they cannot."""

from collections.abc import Iterable, Sequence

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.cost.latency_model import LatencyModel
from sparsify.errors import Problem
from sparsify.formatting.numbers import format_milliseconds
from sparsify.pruning.planning.candidates import Candidate, keep_best_branches, list_candidates
from sparsify.pruning.planning.plan import Floor, Plan, join_ranked
from sparsify.pruning.planning.plan_notes import describe_kept_layers
from sparsify.pruning.planning.selection import find_least
from sparsify.recipe import Positions
from sparsify_schemas.budget import Budget
from sparsify_schemas.group import count_inside, facts_of, in_one_tensor
from sparsify_schemas.penalty import BnScale


def check_uniform_widths(positions: Positions, plan: Plan) -> Iterable[Problem]:
    """Rules that ask for the same number in groups of different widths."""
    for assignment in plan.assignments:
        widths = {plan.map.by_name[name].width: name for name in reversed(assignment.coupled)}
        if plan.recipe.rules[assignment.rule].keep.uniform and len(widths) > 1:
            shown = ", ".join(f"'{name}' has {width}" for width, name in sorted(widths.items())[:3])
            message = f"the layers of the rule have different numbers of groups: {shown}"
            yield positions.problem(
                f"rules.{assignment.rule}.keep.uniform", message, "give each width a rule of its own"
            )


def find_floors(plan: Plan, budget: Budget, clocks: Sequence[LatencyModel] = ()) -> Iterable[Floor]:
    costs = Costs(plan.map, clocks)
    allowed = absolute_limits(budget, costs.dense)
    bottom = costs.of(find_least(plan, clocks))
    for what, limit in allowed.items():
        yield Floor(what, costs.dense[what], limit, bottom[what])


def check_budget(
    positions: Positions, plan: Plan, path: str, budget: Budget, floors: Iterable[Floor]
) -> Iterable[Problem]:
    covered = {name for a in plan.assignments for name in a.coupled}
    for floor in floors:
        if floor.least <= floor.limit:
            continue
        protected = [c.name for c in plan.map.coupled if c.protected is not None and c.is_reached]
        open_groups = [c for c in plan.map.coupled if c.protected is None or not c.is_reached]
        free = [c.name for c in open_groups if c.name not in covered]
        part, target = f"{100 * floor.least / floor.dense:.1f}%", floor.what.removeprefix("latency.")
        if target in budget.latency and floor.what != target:
            message = (
                f"{budget.latency[target]} cannot be reached: with everything removed that the rules allow, "
                f"{part} of {format_milliseconds(floor.dense)} is predicted to remain"
            )
        else:
            message = (
                f"{getattr(budget, floor.what)} cannot be reached: with everything removed that the rules "
                f"allow, {part} remains"
            )
        hint = (
            f"raise it to {_round_up(100 * floor.least / floor.dense)}%"
            if floor.least <= floor.dense
            else "leave it out"
        )
        kept = [f"'{name} {n}'" for name, n in _strictest_keep(plan) if n > 1]
        if any(rule.keep.limits for rule in plan.recipe.rules):
            kept.append("'limits'")
        if kept:
            hint += f", or loosen {' and '.join(kept)} of 'keep'"
        fixed = [
            f"rules.{a.rule}"
            for a in plan.assignments
            if plan.recipe.rules[a.rule].sparsity is not None and a.coupled
        ]
        if fixed:
            hint += f", or leave the amount of {' and '.join(fixed)} to the budget in place of its 'sparsity'"
        if free:
            untried = any(not plan.map.by_name[name].is_reached for name in free[:5])
            hint += f", or let a rule reach {', '.join(free[:5])}{', ...' if len(free) > 5 else ''}"
            hint += ", not tried yet" if untried else ""
        if protected:
            hint += f" (protected: {', '.join(protected[:5])}{', ...' if len(protected) > 5 else ''})"
        yield positions.problem(f"{path}.{floor.what}", message, hint)


def _strictest_keep(plan: Plan) -> tuple[tuple[str, int], tuple[str, int]]:
    """The strictest bounds that rules set."""
    rules = plan.recipe.rules
    at_least = max((rules[a.rule].keep.at_least or 1 for a in plan.assignments), default=1)
    return ("at_least", at_least), ("multiple_of", max((a.multiple for a in plan.assignments), default=1))


def check_sparsities(positions: Positions, plan: Plan) -> Iterable[Problem]:
    """Rules that ask for more than they can remove.
    Half a group is rounding, as where the result is judged."""
    open_groups = keep_best_branches(plan, list_candidates(plan, {}, {}), lambda c: (float(c.rule),))
    shapes = {t.name: t.shape for t in plan.map.tensors}
    for together in join_ranked(plan):
        rule = plan.recipe.rules[together[0].rule]
        if (
            rule.sparsity is None
            or rule.group is None
            or facts_of(rule.group).keep == "nothing"
            or not rule.sparsity.value
        ):
            continue
        path, asked = f"rules.{together[0].rule}.sparsity", f"{rule.sparsity} cannot be reached"
        members = {assignment.rule for assignment in together}
        own = [candidate for candidate in open_groups if candidate.rule in members]
        inside = []
        if in_one_tensor(rule.group):
            names = [name for assignment in together for name in assignment.tensors if name in shapes]
            inside = [count_inside(rule.group, shapes[name]) for name in names]
        at_least = rule.keep.at_least or 1
        total = sum(len(candidate.order) for candidate in own) + sum(inside)
        most_units = sum(len(candidate.gone(len(candidate.order))) for candidate in own)
        most = most_units + sum(max(0, count - at_least) for count in inside)
        why = [text for a in together for text in describe_kept_layers(plan.recipe, plan.map, a)]
        if not own and not inside and why:
            yield positions.problem(
                path,
                f"{asked}: {why[0]}{', and so on' if why[1:] else ''}",
                "select other layers, or leave 'sparsity' out",
            )
        elif most < rule.sparsity.fraction * total - 0.5:
            multiple = max(assignment.multiple for assignment in together)
            bounds = (("at_least", at_least), ("multiple_of", multiple))
            floors = [f"keep.{name} {bound}" for name, bound in bounds if bound > 1]
            floors += ["keep.limits"] if rule.keep.limits else []
            because = f"with {' and '.join(floors)}" if floors else _describe_least(plan, own)
            message = f"{asked}: {because} at most {1000 * most // total / 10:g}% of the groups can go"
            yield positions.problem(path, message, "lower it, or loosen 'keep'" if floors else "lower it")


def _describe_least(plan: Plan, own: Sequence[Candidate]) -> str:
    """Why some groups stay in any case where the rule has no bounds."""
    names = {candidate.name for candidate in own}
    mixtures = [mixture for mixture in plan.map.mixtures if mixture.name in names]
    needed = sorted({m.group.least * (m.count // m.group.width) for m in mixtures})
    if needed and needed[-1] > 1:
        return f"as a mixture does not run with fewer than {' or '.join(map(str, needed))} experts,"
    bound = next((c.name for c in own if plan.map.by_name[c.name].least > 1), None)
    if bound is None:
        return "as one group stays in every layer,"
    least = plan.map.by_name[bound].least
    return f"as '{bound}' runs with {least} of {plan.map.by_name[bound].width} units or more,"


def check_scales(positions: Positions, plan: Plan) -> Iterable[Problem]:
    """Rules whose penalty shrinks the scales of normalisations, and whose groups have none."""
    shapes = {t.name: t.shape for t in plan.map.tensors}
    for together in join_ranked(plan):
        rule = plan.recipe.rules[together[0].rule]
        if not isinstance(rule.penalty, BnScale):
            continue
        names = {name for a in together for name in a.tensors}
        for coupled in [name for a in together for name in a.coupled]:
            names |= plan.map.by_name[coupled].reached
        scales = [n for n in names if n.endswith(".weight") and len(shapes.get(n, ())) == 1]
        if names and not scales:
            yield positions.problem(
                f"rules.{together[0].rule}.penalty",
                "penalty bn_scale finds no normalisation with a scale in the rule's groups",
                "use group_lasso there",
            )


def _round_up(percent: float) -> str:
    return f"{-(-percent * 10 // 1) / 10:.1f}"
