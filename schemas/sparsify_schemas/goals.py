"""What strengths and penalties of a recipe aim at: a budget, a sparsity, a target's latency."""

from sparsify_schemas.base import AtKey
from sparsify_schemas.budget import Budget
from sparsify_schemas.group import in_one_tensor
from sparsify_schemas.rule import Rule
from sparsify_schemas.schedule import Auto


def _has_auto_strength(rule: Rule) -> bool:
    """Whether a rule's strength is auto."""
    return rule.penalty is not None and isinstance(rule.penalty.facts().strength, Auto)


def check_goals(rules: tuple[Rule, ...], budget: Budget) -> None:
    """A strength that is found needs a goal, and a budget is the goal of all rules that leave their amount to
    it."""
    left = [
        i
        for i, rule in enumerate(rules)
        if not rule.protect and rule.sparsity is None and not in_one_tensor(rule.group)
    ]
    counted = any(
        limit is not None
        for limit in (
            budget.macs,
            budget.params,
            budget.bytes,
            budget.peak_memory,
        )
    )
    for i in left:
        if _has_auto_strength(rules[i]) and not counted:
            what = (
                "the recipe a budget"
                if budget == Budget()
                else (
                    "the budget macs, params, bytes or peak_memory as well (latency and "
                    "accuracy_drop are held by the cut, not in training), the penalty a "
                    "number"
                )
            )
            raise AtKey(
                ("rules", i, "penalty", "strength"),
                f"'auto' needs a goal; give {what}, or the rule its own 'sparsity'",
            )
    other = next((i for i in left if not _has_auto_strength(rules[i])), None)
    if other is not None and any(_has_auto_strength(rules[i]) for i in left):
        raise AtKey(
            ("rules", other),
            "the rule leaves its amount to the budget, which strength 'auto' of another rule aims at alone; "
            "give it strength auto as well, or its own 'sparsity'",
        )


def check_target(rule: int, named: str | None, targets: list[str]) -> None:
    """That the latency which a penalty weighs by is of one known target."""
    if named is not None and named not in targets:
        raise AtKey(
            ("rules", rule, "penalty", "target"),
            f"'{named}' is no target of the recipe; {name_known(targets)}",
        )
    if named is None and len(targets) != 1:
        has = f"has {len(targets)}" if targets else "has none"
        raise AtKey(
            ("rules", rule, "penalty", "weight"),
            f"'latency' is of one of the recipe's targets, and it {has}; write "
            f"'target'{'' if targets else ' and targets'}",
        )


def name_known(targets: list[str]) -> str:
    return f"known: {', '.join(targets)}" if targets else "write it under 'targets'"
