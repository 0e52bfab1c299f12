"""A plan as tables: what each rule reaches, what it comes to, what is protected and why."""

from collections.abc import Iterator, Mapping
from typing import assert_never

from sparsify.cost.cost_model import Costs
from sparsify.formatting.numbers import MISSING, count, few, milliseconds, plain, plural, share, size, spaced
from sparsify.formatting.table import Table, columns
from sparsify.formatting.table import as_text as lay_out_all
from sparsify.formatting.verdict_text import LABELS
from sparsify.graph.model_map import Branch, Coupled
from sparsify.pruning.planning.baseline_recipes import same_dense, training
from sparsify.pruning.planning.cut_targets import moments
from sparsify.pruning.planning.group_types import group_type_of
from sparsify.pruning.planning.plan import Assignment, Plan
from sparsify_schemas.group import Block, Group, Pattern, count_inside, in_one_tensor, within
from sparsify_schemas.penalty import Penalty
from sparsify_schemas.recipe import Rule
from sparsify_schemas.schedule import Strength
from sparsify_schemas.stage import Cut, Distill, Goal, Repair, Stage, Train


def describe(plan: Plan, width: int = 100) -> str:
    """Show a plan as text: what each rule reaches, what is protected and why, what a cut would leave today.

    Args:
        plan: As `make_plan` returns it.
        width: Columns that the tables may take.

    Returns:
        The tables of `sparsify plan`, separated by empty lines.

    Examples:
        >>> text = sparsify.describe(sparsify.make_plan(recipe, model, (x,)))
        >>> text.splitlines()[1]
        'Cut on the present weights it would leave 50.0 % of the MACs and 51.1 % of the parameters.'
    """
    return lay_out_all((Table("", (), (), tuple(summary(plan).splitlines())), *tables(plan)), width)


def summary(plan: Plan) -> str:
    """One sentence: how much of the model is open to the rules, and what the cut would come to today."""
    reached = _reached(plan)
    branches = [b.name for b in plan.map.branches if not b.group.protected]
    whole = (
        f", {len(reached & set(branches))} of {plural(len(branches), 'residual block')}" if branches else ""
    )
    text = (
        f"{plan.recipe.title}: {plural(len(plan.recipe.rules), 'rule')}, {len(reached - set(branches))} of {len(plan.map.coupled)} coupled groups open{whole}, "
        f"{_protected_count(plan)} protected; plan {plan.digest}"
    )
    after = costs(plan)
    if plan.preview and after["macs"] < plan.map.macs:
        text += f"\nCut on the {_weights(plan)} it would leave {share(_part(after['macs'], plan.map.macs))} of the MACs and {share(_part(after['params'], plan.map.params))} of the parameters."
    return text


def _weights(plan: Plan) -> str:
    return "present weights (they are random)" if plan.random else "present weights"


def tables(plan: Plan) -> tuple[Table, ...]:
    """What `sparsify plan` shows, in order; a table without rows is left out."""
    rules = [_rule_table(plan, a) for a in plan.assignments if not plan.recipe.rules[a.rule].protect]
    found = [*rules, _costs_table(plan), _protected_table(plan), _stages_table(plan), _notes_table(plan)]
    return tuple(t for t in found if t.rows or t.notes)


def costs(plan: Plan) -> dict[str, float]:
    """MACs, params and bytes at the preview's widths; which units go makes no difference to them."""
    by_name = plan.map.by_name
    return Costs(plan.map).of(
        {name: range(units, by_name[name].width) for name, units in plan.preview if name in by_name}
    )


def _part(value: float, whole: float) -> float | None:
    return value / whole if whole else None


def _reached(plan: Plan) -> set[str]:
    rules = plan.recipe.rules
    return {
        c
        for a in plan.assignments
        if not rules[a.rule].protect
        for c in a.coupled
        if not plan.map.by_name[c].protected
    }


def _protected_count(plan: Plan) -> int:
    return sum(c.protected is not None for c in plan.map.coupled)


def _rule_table(plan: Plan, assignment: Assignment) -> Table:
    rule = plan.recipe.rules[assignment.rule]
    title = f"rules.{assignment.rule}: {_plural(rule)} of {', '.join(rule.layers)}"
    deeds = f"{_capital(', '.join(_deeds(rule, assignment.multiple)))}."
    if rule.group is not None and in_one_tensor(rule.group):
        heads = columns("tensor", "shape", ">weights", *((">groups",) if within(rule.group) else ()))
        return Table(title, heads, _weight_rows(plan, assignment, rule.group), (deeds,))
    preview = dict(plan.preview)
    if rule.group == "depth":
        rows = tuple(_branch_row(plan, b, preview) for b in plan.map.branches if b.name in assignment.coupled)
        title = f"rules.{assignment.rule}: residual branches of {', '.join(rule.layers)}"
        return Table(
            title,
            columns(
                "block or branch",
                "class",
                ">of the MACs",
                ">of the parameters",
                "what takes its place",
                "now",
            ),
            rows,
            (deeds,),
        )
    rows = tuple(_group_row(plan, assignment, plan.map.by_name[name], preview) for name in assignment.coupled)
    return Table(
        title,
        columns("layers matched", ">of the MACs", ">width", ">after", "narrowed with them"),
        rows,
        (deeds,),
    )


def _group_row(
    plan: Plan, assignment: Assignment, group: Coupled, preview: Mapping[str, int]
) -> tuple[str, ...]:
    asked = plan.recipe.rules[assignment.rule].group
    role = "out" if asked is None else group_type_of(asked).role
    reached = {s.tensor.rpartition(".")[0] for s in group.slices if s.role == role}
    matched = tuple(n for n in group.layers if n in reached and n in assignment.layers)
    dragged = tuple(n for n in group.layers if n not in matched)
    macs = sum(layer.macs for layer in plan.map.layers if layer.name in matched)
    after = preview.get(group.name)
    return (
        few(matched) or group.name,
        share(_part(macs, plan.map.macs)),
        str(group.width),
        MISSING if after is None else str(after),
        few(dragged) or MISSING,
    )


def _branch_row(plan: Plan, branch: Branch, preview: Mapping[str, int]) -> tuple[str, ...]:
    params = sum(t.numel for t in plan.map.tensors if t.parameter and t.name in branch.tensors)
    kept = preview.get(branch.name)
    return (
        branch.name,
        branch.type,
        share(_part(branch.macs, plan.map.macs)),
        share(_part(params, plan.map.params)),
        "zeros" if any(s.zeros for s in branch.stubs) else "its input",
        MISSING if kept is None else "stays" if kept else "goes",
    )


def _weight_rows(plan: Plan, assignment: Assignment, group: Group) -> tuple[tuple[str, ...], ...]:
    covered = (t for t in plan.map.tensors if t.name in assignment.tensors)
    return tuple(
        (
            t.name,
            " x ".join(map(str, t.shape)),
            count(t.numel),
            *((count(count_inside(group, t.shape)),) if within(group) else ()),
        )
        for t in covered
    )


def _plural(rule: Rule) -> str:
    match rule.group:
        case Block():
            return f"{rule.group} blocks"
        case Pattern():
            return f"{rule.group} patterns"
        case _:
            return f"{rule.group}s"


def _deeds(rule: Rule, multiple: int) -> Iterator[str]:
    yield f"penalty {_penalty(rule.penalty, in_one_tensor(rule.group))}" if rule.penalty else "no penalty"
    yield "random ones go" if rule.criterion.kind == "random" else f"least {rule.criterion.kind} goes first"
    if isinstance(rule.group, Pattern):
        yield f"{rule.group.stay} of every {rule.group.of} along the inputs stay"
    elif rule.sparsity:
        yield f"{spaced(str(rule.sparsity))} removed"
    else:
        yield (
            "those that are zero by then go" if in_one_tensor(rule.group) else "as many go as the budget asks"
        )
    if rule.keep.at_least is not None and (rule.keep.at_least > 1 or rule.group == "depth"):
        yield f"at least {rule.keep.at_least} stay"
    if multiple > 1:
        yield f"widths are multiples of {multiple}"
    if rule.keep.limits:
        yield f"{plural(len(rule.keep.limits), 'layer')} within limits"
    if rule.keep.uniform:
        yield "all keep the same number"


def _penalty(penalty: Penalty, inner: bool) -> str:
    facts = penalty.facts()
    fields = {name: _field(getattr(penalty, name)) for name in type(penalty).model_fields}
    if facts.strength is not None:
        fields["strength"] = _scheduled(facts.strength)
    alone = " on each layer alone" if facts.reach == "slices" and not inner else ""
    return facts.summary.format_map(fields) + alone


def _field(value: object) -> str:
    return plain(value) if isinstance(value, float) else str(value)


def _scheduled(value: Strength) -> str:
    match value.kind:
        case "auto":
            return value.kind
        case "constant":
            return plain(value.value)
        case "step":
            return f"{plain(value.value)} times {plain(value.factor)} at {', '.join(map(str, value.at))}"
        case "one_shot":
            return f"{plain(value.from_)}, {plain(value.to)} from {value.at} on"
        case "linear" | "cosine" | "cubic" | "exponential":
            return f"{plain(value.from_)} to {plain(value.to)} ({value.kind}, {value.start} to {value.end})"
        case _:
            assert_never(value)


def _costs_table(plan: Plan) -> Table:
    after = costs(plan)
    dense: dict[str, float] = {"macs": plan.map.macs, "params": plan.map.params, "bytes": plan.map.bytes}
    dense |= {} if plan.map.lifetimes is None else {"peak_memory": Costs(plan.map).dense["peak_memory"]}
    floors = {f.what.removeprefix("budget."): f for f in plan.floors}
    rows = []
    for what, now in dense.items():
        floor = floors.get(what)
        asked = getattr(plan.recipe.budget, what)
        rows.append(
            (
                LABELS[what],
                _amount(what, now, asked),
                _amount(what, after[what], asked) if plan.preview else MISSING,
                share(_part(after[what], now)) if plan.preview else MISSING,
                MISSING if asked is None else f"at most {spaced(str(asked))}",
                share(_part(floor.least, floor.dense)) if floor else MISSING,
            )
        )
    rows += _latency_rows(plan)
    drop = plan.recipe.budget.accuracy_drop
    rows += (
        [
            (
                "validated accuracy",
                MISSING,
                MISSING,
                MISSING,
                f"drop at most {spaced(str(drop.at_most))}",
                MISSING,
            )
        ]
        if drop
        else []
    )
    notes = (
        f"after: cut on the {_weights(plan)}{', milliseconds as predicted' if plan.recipe.budget.latency else ''}; lowest: with everything removed that rules and protections allow.",
    )
    return Table("Model", columns("", ">dense", ">after", ">left", ">budget", ">lowest"), tuple(rows), notes)


def _latency_rows(plan: Plan) -> Iterator[tuple[str, str, str, str, str, str]]:
    predicted = dict(plan.predicted)
    floors = {f.what: f for f in plan.floors}
    for target, asked in plan.recipe.budget.latency.items():
        floor, after = floors.get(f"latency.{target}"), predicted.get(target)
        if floor is not None:
            left, lowest = (
                share(_part(after or 0.0, floor.dense)) if after else MISSING,
                share(_part(floor.least, floor.dense)),
            )
            yield (
                f"time on {target}",
                milliseconds(floor.dense),
                milliseconds(after),
                left,
                f"at most {spaced(str(asked))}",
                lowest,
            )


def _amount(what: str, value: float, asked: object) -> str:
    return size(value, str(asked or "")) if what in ("bytes", "peak_memory") else count(value)


def _protected_table(plan: Plan) -> Table:
    reasons: dict[str, list[str]] = {}
    for group in plan.map.coupled:
        if group.protected is not None:
            reasons.setdefault(group.protected, []).append(f"{group.name} ({group.width})")
    rows = tuple((few(tuple(names), 4), why) for why, names in reasons.items())
    reached = _reached(plan)
    free = tuple(g.name for g in plan.map.coupled if g.protected is None and g.name not in reached)
    notes = (f"No rule reaches the width of {few(free, 8)}.",) if free else ()
    return Table("Protected", columns("kept whole", "why"), rows, notes)


def _stages_table(plan: Plan) -> Table:
    penalised = any(r.penalty for r in plan.recipe.rules)
    rows = [(s.name, _stage(s, penalised)) for s in plan.recipe.stages]
    return Table("Stages", columns("stage", "what happens"), (*rows, *_baseline_rows(plan)))


def _baseline_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """What the baselines cost in epochs, besides the run itself."""
    kinds = plan.recipe.baselines
    if kinds:
        before, after = (sum(s.epochs for s in stages) for stages in training(plan.recipe, plan.random))
        own = (
            f", and {plural(before, 'epoch')} before it once, without penalties"
            if before and not same_dense(plan.recipe)
            else ""
        )
        each = (
            f"{len(kinds)} x the {plural(after, 'epoch')} after the cut"
            if after
            else "no epochs after the cut"
        )
        yield "baselines", f"{', '.join(kinds)}, each at the cost that the cut comes to: {each}{own}"


def _stage(stage: Stage, penalised: bool) -> str:
    match stage:
        case Cut():
            return f"choose, remove, verify{_goal(stage)}"
        case Train():
            penalties = ", penalties on" if stage.penalties and penalised else ""
            optimizer = f"{stage.optimizer.kind} lr {_scheduled(stage.optimizer.lr)}"
            steps = f"train {plural(stage.epochs, 'epoch')}, batch {stage.batch}, {optimizer}"
            return f"{steps}{_manner(stage)}{penalties}{_cuts(stage)}"
        case Repair():
            words = {"least_squares": "least squares", "batch_norm": "batch-norm statistics", "mean": "means"}
            examples = plural(stage.examples, "training example")
            return f"refit by {words[stage.method]} on {examples}, without labels"
        case _:
            assert_never(stage)


def _manner(stage: Train) -> str:
    """How the steps are taken, where that is not the plain way."""
    parts = [f"warm-up {stage.warmup}"] if stage.warmup.value else []
    parts += [f"clipped at {plain(stage.clip)}"] if stage.clip is not None else []
    parts += [stage.precision] if stage.precision != "fp32" else []
    parts += ["sharded"] if stage.shard else []
    parts += [f"in {stage.accumulate} parts"] if stage.accumulate > 1 else []
    parts += [_distilled(stage.distill)] if stage.distill is not None else []
    return "".join(f", {part}" for part in parts)


def _distilled(spec: Distill) -> str:
    return (
        f"distilled from the dense model (weight {plain(spec.weight)}, temperature {plain(spec.temperature)})"
    )


def _cuts(stage: Train) -> str:
    if stage.cuts is None:
        return ""
    after = [epoch for epoch, _ in moments(stage.epochs, stage.cuts)]
    shown = f"{', '.join(map(str, after[:3]))}{f', ..., {after[-1]}' if len(after) > 3 else ''}"
    return f", cut after epoch {shown} ({stage.cuts.schedule}){_goal(stage.cuts)}"


def _goal(goal: Goal) -> str:
    """How far a cut goes, where it does not meet the recipe's budget at once."""
    parts = [f"{goal.way} of the way"] if goal.way.fraction < 1 else []
    parts += [f"to {what} {limit}" for what, limit in goal.budget or () if limit is not None]
    return f", {' '.join(parts)}" if parts else ""


def _notes_table(plan: Plan) -> Table:
    drop = plan.recipe.budget.accuracy_drop
    depth = (
        (
            f"- accuracy_drop: how deep to cut is found by at most {plural(drop.trials, 'trial')}; shown is the shallowest.",
        )
        if drop
        else ()
    )
    return Table("Notes", (), (), (*depth, *(f"- {n}" for n in plan.notes)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
