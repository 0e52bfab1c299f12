"""A plan as tables: what each rule reaches, the cost after a cut, what is protected and why."""

from collections.abc import Iterator, Mapping

from sparsify.cost.cost_model import Costs
from sparsify.formatting.numbers import (
    MISSING,
    count_noun,
    format_count,
    format_milliseconds,
    format_plain,
    format_share,
    format_size,
    list_few,
    space_unit,
)
from sparsify.formatting.table import Table, make_columns
from sparsify.formatting.table import as_text as lay_out_all
from sparsify.formatting.verdict_text import LABELS
from sparsify.graph.model_map import Branch, Coupled, Mixture
from sparsify.pruning.planning.equal_layers import find_equal_layers
from sparsify.pruning.planning.group_types import group_type_of
from sparsify.pruning.planning.plan import Assignment, Plan
from sparsify.reporting.schedule_text import describe_strength
from sparsify.reporting.stage_table import make_stages_table
from sparsify_schemas.group import (
    Block,
    Group,
    Pattern,
    count_inside,
    in_one_tensor,
    removes_branches,
    removes_experts,
    within,
)
from sparsify_schemas.penalty import Penalty
from sparsify_schemas.rule import Rule
from sparsify_schemas.task import deciding_metric


def describe(plan: Plan, width: int = 100) -> str:
    """Show a plan as text: what each rule reaches, what is protected and why, what a cut would leave now.

    Args:
        plan: As `make_plan` returns it.
        width: Columns that the tables may take.

    Returns:
        The tables of `sparsify plan`, separated by empty lines.

    Examples:
        >>> text = sparsify.describe(sparsify.make_plan(recipe, model, (x,)))
        >>> text.splitlines()[1]
        'A cut by the current weights would leave 50.0 % of the MACs and 51.1 % of the parameters.'
    """
    head = Table("", (), (), tuple(summarize(plan).splitlines()))
    return lay_out_all((head, *list_tables(plan)), width)


def summarize(plan: Plan) -> str:
    """One or two sentences: how much of the model the rules reach, and what a cut would leave now."""
    reached = _list_reached(plan)
    branches = {branch.name for branch in plan.map.branches if not branch.group.protected}
    mixtures = {mixture.name for mixture in plan.map.mixtures}
    groups = f"{len(reached - branches - mixtures)} of {len(plan.map.coupled)} coupled groups"
    parts = [count_noun(len(plan.recipe.rules), "rule"), f"{groups} reached"]
    if branches:
        parts.append(f"{len(reached & branches)} of {count_noun(len(branches), 'residual block')}")
    if mixtures:
        parts.append(f"{len(reached & mixtures)} of {count_noun(len(mixtures), 'mixture')} of experts")
    parts.append(f"{_protected_count(plan)} protected")
    text = f"{plan.recipe.title}: {', '.join(parts)}; plan {plan.digest}"
    after = compute_costs(plan)
    if plan.preview and after["macs"] < plan.map.macs:
        macs, params = (
            format_share(_divide(after["macs"], plan.map.macs)),
            format_share(_divide(after["params"], plan.map.params)),
        )
        weights = _summarize_weights(plan)
        text += f"\nA cut by the {weights} would leave {macs} of the MACs and {params} of the parameters."
    return text


def _summarize_weights(plan: Plan) -> str:
    return "current weights (which are random)" if plan.random else "current weights"


def list_tables(plan: Plan) -> tuple[Table, ...]:
    """The tables that `sparsify plan` shows, in order, without empty ones."""
    rules = [_rule_table(plan, a) for a in plan.assignments if not plan.recipe.rules[a.rule].protect]
    found = [*rules, _costs_table(plan), _protected_table(plan), make_stages_table(plan), _notes_table(plan)]
    return tuple(t for t in found if t.rows or t.notes)


def compute_costs(plan: Plan) -> dict[str, float]:
    """MACs, params and bytes at the preview's widths. They do not depend on which units are removed."""
    by_name = plan.map.by_name
    removed = {name: range(kept, by_name[name].width) for name, kept in plan.preview if name in by_name}
    return Costs(plan.map).of(removed)


def _divide(value: float, whole: float) -> float | None:
    return value / whole if whole else None


def _list_reached(plan: Plan) -> set[str]:
    """Coupled groups that a rule reaches and nothing protects."""
    names: set[str] = set()
    for assignment in plan.assignments:
        if not plan.recipe.rules[assignment.rule].protect:
            names.update(assignment.coupled)
    return {name for name in names if not plan.map.by_name[name].protected}


def _protected_count(plan: Plan) -> int:
    return sum(c.protected is not None and c.is_reached for c in plan.map.coupled)


def _rule_table(plan: Plan, assignment: Assignment) -> Table:
    rule = plan.recipe.rules[assignment.rule]
    layers = ", ".join(rule.layers)
    title = f"rules.{assignment.rule}: {_name_groups(rule)} of {layers}"
    has_equal_layers = bool(find_equal_layers(plan, assignment))
    facts = ", ".join(_rule_facts(rule, assignment.multiple, has_equal_layers))
    notes = (f"{facts[:1].upper()}{facts[1:]}.",)
    if rule.group is not None and in_one_tensor(rule.group):
        heads = ["tensor", "shape", ">weights"]
        if within(rule.group):
            heads.append(">groups")
        return Table(title, make_columns(*heads), _weight_rows(plan, assignment, rule.group), notes)
    preview = dict(plan.preview)
    if removes_branches(rule.group):
        branches = [branch for branch in plan.map.branches if branch.name in assignment.coupled]
        rows = tuple(_branch_row(plan, branch, preview) for branch in branches)
        title = f"rules.{assignment.rule}: residual branches of {layers}"
        heads = ["block or branch", "class", ">of the MACs", ">of the parameters", "replaced by", "now"]
        return Table(title, make_columns(*heads), rows, notes)
    if removes_experts(rule.group):
        mixtures = [mixture for mixture in plan.map.mixtures if mixture.name in assignment.coupled]
        rows = tuple(_mixture_row(plan, mixture, preview) for mixture in mixtures)
        heads = ["mixture", "class", ">of the parameters", ">experts", ">after", ">at least"]
        return Table(title, make_columns(*heads), rows, notes)
    groups = [plan.map.by_name[name] for name in assignment.coupled]
    rows = tuple(_group_row(plan, assignment, group, preview) for group in groups)
    heads = ["layers matched", ">of the MACs", ">width", ">after", "narrowed with them"]
    return Table(title, make_columns(*heads), rows, notes)


def _group_row(
    plan: Plan, assignment: Assignment, group: Coupled, preview: Mapping[str, int]
) -> tuple[str, ...]:
    asked = plan.recipe.rules[assignment.rule].group
    role = "out" if asked is None else group_type_of(asked).role
    reached = {s.tensor.rpartition(".")[0] for s in group.slices if s.role == role}
    matched = tuple(n for n in group.layers if n in reached and n in assignment.layers)
    others = tuple(n for n in group.layers if n not in matched)
    macs = sum(layer.macs for layer in plan.map.layers if layer.name in matched)
    after = preview.get(group.name)
    return (
        list_few(matched) or group.name,
        format_share(_divide(macs, plan.map.macs)),
        str(group.width),
        MISSING if after is None else str(after),
        list_few(others) or MISSING,
    )


def _mixture_row(plan: Plan, mixture: Mixture, preview: Mapping[str, int]) -> tuple[str, ...]:
    numels = {t.name: t.numel for t in plan.map.tensors if t.parameter}
    params = sum(numels.get(name, 0) for name in mixture.group.reached)
    after, each = preview.get(mixture.name), mixture.count // mixture.group.width
    return (
        mixture.name,
        mixture.type,
        format_share(_divide(params, plan.map.params)),
        str(mixture.count),
        MISSING if after is None else str(after * each),
        str(mixture.group.least * each),
    )


def _branch_row(plan: Plan, branch: Branch, preview: Mapping[str, int]) -> tuple[str, ...]:
    params = sum(t.numel for t in plan.map.tensors if t.parameter and t.name in branch.tensors)
    kept = preview.get(branch.name)
    now = MISSING
    if kept is not None:
        now = "kept" if kept else "removed"
    leaves_zeros = any(stub.zeros for stub in branch.stubs)
    return (
        branch.name,
        branch.type,
        format_share(_divide(branch.macs, plan.map.macs)),
        format_share(_divide(params, plan.map.params)),
        "zeros" if leaves_zeros else "its input",
        now,
    )


def _weight_rows(plan: Plan, assignment: Assignment, group: Group) -> tuple[tuple[str, ...], ...]:
    rows = []
    for tensor in plan.map.tensors:
        if tensor.name not in assignment.tensors:
            continue
        row = [tensor.name, " x ".join(map(str, tensor.shape)), format_count(tensor.numel)]
        if within(group):
            row.append(format_count(count_inside(group, tensor.shape)))
        rows.append(tuple(row))
    return tuple(rows)


def _name_groups(rule: Rule) -> str:
    match rule.group:
        case Block():
            return f"{rule.group} blocks"
        case Pattern():
            return f"{rule.group} patterns"
        case _:
            return f"{rule.group}s"


def _rule_facts(rule: Rule, multiple: int, has_equal_layers: bool) -> Iterator[str]:
    """What a rule does, in parts of a sentence.

    has_equal_layers: whether some of its layers keep equal widths, asked for or not.
    """
    is_inner = rule.group is not None and in_one_tensor(rule.group)
    yield f"penalty {_describe_penalty(rule.penalty, is_inner)}" if rule.penalty else "no penalty"
    if rule.criterion.kind == "random":
        yield "pruned at random"
    else:
        yield f"pruned by lowest {rule.criterion.kind}"
    if isinstance(rule.group, Pattern):
        yield f"{rule.group.stay} of every {rule.group.of} weights along the inputs are kept"
    elif rule.sparsity:
        yield f"{space_unit(str(rule.sparsity))} removed"
    elif is_inner:
        yield "groups that are already zero are removed"
    else:
        yield "amount chosen to meet the budget"
    if rule.keep.at_least is not None and (rule.keep.at_least > 1 or removes_branches(rule.group)):
        yield f"at least {rule.keep.at_least} kept"
    if multiple > 1:
        yield f"widths are multiples of {multiple}"
    if rule.keep.limits:
        yield f"limits for {count_noun(len(rule.keep.limits), 'layer')}"
    if rule.keep.uniform:
        yield "all layers keep the same number"
    elif has_equal_layers:
        yield "equal widths in all blocks of the transformer (unless 'keep: {uniform: false}')"


def _describe_penalty(penalty: Penalty, inner: bool) -> str:
    facts = penalty.facts()
    fields = {name: _format_field(getattr(penalty, name)) for name in type(penalty).model_fields}
    if facts.strength is not None:
        fields["strength"] = describe_strength(facts.strength)
    scope = " on each layer alone" if facts.reach == "slices" and not inner else ""
    return facts.summary.format_map(fields) + scope


def _format_field(value: object) -> str:
    return format_plain(value) if isinstance(value, float) else str(value)


def _costs_table(plan: Plan) -> Table:
    dense: dict[str, float] = {"macs": plan.map.macs, "params": plan.map.params, "bytes": plan.map.bytes}
    if plan.map.lifetimes is not None:
        dense["peak_memory"] = Costs(plan.map).dense["peak_memory"]
    after = compute_costs(plan)
    floors = {floor.what.removeprefix("budget."): floor for floor in plan.floors}
    rows = []
    for what, value in dense.items():
        floor = floors.get(what)
        asked = getattr(plan.recipe.budget, what)
        rows.append(
            (
                LABELS[what],
                _format_amount(what, value, asked),
                _format_amount(what, after[what], asked) if plan.preview else MISSING,
                format_share(_divide(after[what], value)) if plan.preview else MISSING,
                MISSING if asked is None else f"at most {space_unit(str(asked))}",
                format_share(_divide(floor.least, floor.dense)) if floor else MISSING,
            )
        )
    rows += _latency_rows(plan)
    drop = plan.recipe.budget.accuracy_drop
    if drop:
        limit = f"drop at most {space_unit(str(drop.at_most))}"
        rows.append(
            (
                f"validation {deciding_metric(plan.recipe.task).name}",
                MISSING,
                MISSING,
                MISSING,
                limit,
                MISSING,
            )
        )
    predicted = ", milliseconds as predicted" if plan.recipe.budget.latency else ""
    notes = (
        f"after: a cut by the {_summarize_weights(plan)}{predicted}; "
        "lowest: everything removed that rules and protections allow.",
    )
    heads = make_columns("", ">dense", ">after", ">left", ">budget", ">lowest")
    return Table("Model", heads, tuple(rows), notes)


def _latency_rows(plan: Plan) -> Iterator[tuple[str, str, str, str, str, str]]:
    predicted = dict(plan.predicted)
    floors = {floor.what: floor for floor in plan.floors}
    for target, asked in plan.recipe.budget.latency.items():
        floor, after = floors.get(f"latency.{target}"), predicted.get(target)
        if floor is not None:
            yield (
                f"time on {target}",
                format_milliseconds(floor.dense),
                format_milliseconds(after),
                format_share(_divide(after, floor.dense)) if after else MISSING,
                f"at most {space_unit(str(asked))}",
                format_share(_divide(floor.least, floor.dense)),
            )


def _format_amount(what: str, value: float, asked: object) -> str:
    return format_size(value, str(asked or "")) if what in ("bytes", "peak_memory") else format_count(value)


def _protected_table(plan: Plan) -> Table:
    reasons: dict[str, list[str]] = {}
    for group in plan.map.coupled:
        if group.protected is not None and group.is_reached:
            reasons.setdefault(group.protected, []).append(f"{group.name} ({group.width})")
    rows = tuple((list_few(tuple(names), 4), why) for why, names in reasons.items())
    reached = _list_reached(plan)
    open_groups = [g for g in plan.map.coupled if g.protected is None or not g.is_reached]
    free = tuple(g.name for g in open_groups if g.name not in reached)
    notes = (f"No rule reaches the width of {list_few(free, 8)}.",) if free else ()
    return Table("Protected", make_columns("not pruned", "why"), rows, notes)


def _notes_table(plan: Plan) -> Table:
    notes = [f"- {note}" for note in plan.notes]
    drop = plan.recipe.budget.accuracy_drop
    if drop:
        trials = count_noun(drop.trials, "trial")
        notes.insert(
            0, f"- accuracy_drop: at most {trials} find how deep to cut; this plan shows the shallowest cut"
        )
    return Table("Notes", (), (), tuple(notes))
