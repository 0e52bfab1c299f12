"""The stages of a plan as a table: what each trains, cuts or repairs."""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

from sparsify.formatting.numbers import (
    count_noun,
    format_plain,
)
from sparsify.formatting.table import Table, make_columns
from sparsify.pruning.planning.baseline_recipes import list_training_stages, shares_dense_model
from sparsify.pruning.planning.cut_targets import list_cuts
from sparsify.pruning.planning.plan import Plan
from sparsify.reporting.schedule_text import describe_strength
from sparsify_schemas.stage import Cut, Distill, Goal, Optimizer, OtherOptimizer, Repair, Stage, Train


def make_stages_table(plan: Plan) -> Table:
    has_penalties = any(rule.penalty for rule in plan.recipe.rules)
    rows = [(stage.name, _describe_stage(stage, has_penalties)) for stage in plan.recipe.stages]
    return Table("Stages", make_columns("stage", "what happens"), (*rows, *_list_baseline_rows(plan)))


def _list_baseline_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """What the baselines cost in epochs, besides the run itself."""
    kinds = plan.recipe.baseline_kinds
    if not kinds:
        return
    before, after = (
        sum(stage.epochs for stage in stages) for stages in list_training_stages(plan.recipe, plan.random)
    )
    each = "no epochs after the cut"
    if after:
        each = f"{len(kinds)} x the {count_noun(after, 'epoch')} after the cut"
    shared = ""
    if before and not shares_dense_model(plan.recipe):
        shared = f", and {count_noun(before, 'epoch')} before it once, without penalties"
    yield "baselines", f"{', '.join(kinds)}, each at the cost of the cut model: {each}{shared}"


def _name_optimizer(optimizer: Optimizer) -> str:
    return optimizer.use if isinstance(optimizer, OtherOptimizer) else optimizer.kind


def _describe_stage(stage: Stage, has_penalties: bool) -> str:
    match stage:
        case Cut():
            return f"select, remove, verify{_describe_goal(stage)}"
        case Train():
            parts = [
                f"train {count_noun(stage.epochs, 'epoch')}, batch {stage.batch}",
                f", {_name_optimizer(stage.optimizer)} lr {describe_strength(stage.optimizer.lr)}",
                _describe_manner(stage),
                ", penalties on" if stage.penalties and has_penalties else "",
                _describe_cuts(stage),
            ]
            return "".join(parts)
        case Repair(method="merge"):
            return "add what removed units computed to those most like them, without data"
        case Repair():
            words = {"least_squares": "least squares", "batch_norm": "batch-norm statistics", "mean": "means"}
            examples = count_noun(stage.examples, "training example")
            default = "" if stage.required else "; by default, unless the cut says 'repair: false'"
            return f"refit by {words[stage.method]} on {examples}, without labels{default}"
        case _:
            assert_never(stage)


def _describe_rates(stage: Train) -> str:
    return " and ".join(
        f"{format_plain(rate.scale)} of it in {', '.join(rate.layers)}" for rate in stage.rates
    )


def _describe_manner(stage: Train) -> str:
    """How a training step differs from the default."""
    parts = [f"warm-up {stage.warmup}"] if stage.warmup.value else []
    parts += [f"rates {_describe_rates(stage)}"] if stage.rates else []
    parts += [f"clipped at {format_plain(stage.clip)}"] if stage.clip is not None else []
    parts += [stage.precision] if stage.precision != "fp32" else []
    parts += ["sharded"] if stage.shard else []
    parts += [stage.layout] if stage.layout is not None else []
    parts += ["activations recomputed"] if stage.recompute_activations else []
    parts += [f"in {stage.accumulate} parts"] if stage.accumulate > 1 else []
    parts += [f"labels smoothed by {format_plain(stage.label_smoothing)}"] if stage.label_smoothing else []
    parts += [_describe_mixing(stage)] if stage.mixes else []
    parts += [f"weights averaged ({format_plain(stage.ema)})"] if stage.ema is not None else []
    parts += ["best epoch kept"] if stage.ends_with == "best" else []
    parts += (
        [f"ended after {count_noun(stage.patience, 'epoch')} without a better one"] if stage.patience else []
    )
    parts += [_describe_distillation(stage.distill)] if stage.distill is not None else []
    return "".join(f", {part}" for part in parts)


def _describe_mixing(stage: Train) -> str:
    return " or ".join(f"{way} {format_plain(alpha)}" for way, alpha in stage.mixes.items())


def _describe_distillation(spec: Distill) -> str:
    weight, temperature = format_plain(spec.weight), format_plain(spec.temperature)
    teacher = Path(spec.teacher).name if spec.is_from_file else "the dense model"
    parts = [f"weight {weight}", f"temperature {temperature}"] if spec.weight else []
    if spec.features is not None:
        parts.append(f"features {', '.join(spec.features)} with weight {format_plain(spec.features_weight)}")
    return f"distilled from {teacher} ({', '.join(parts)})"


def _describe_cuts(stage: Train) -> str:
    if stage.cuts is None:
        return ""
    after = [str(epoch) for epoch, _ in list_cuts(stage.epochs, stage.cuts)]
    if len(after) > 3:
        after = [*after[:3], "...", after[-1]]
    return f", cut after epoch {', '.join(after)} ({stage.cuts.schedule}){_describe_goal(stage.cuts)}"


def _describe_goal(goal: Goal) -> str:
    """How far a cut goes, where it does not meet the recipe's budget at once."""
    parts = [f"{goal.way} of the target reduction"] if goal.way.fraction < 1 else []
    parts += [f"to {what} {limit}" for what, limit in goal.budget or () if limit is not None]
    return f", {' '.join(parts)}" if parts else ""
