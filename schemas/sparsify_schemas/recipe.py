"""The recipe: what a user writes."""

from itertools import pairwise
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sparsify_schemas.base import AtKey, Seed, Spec, Text, Title
from sparsify_schemas.baseline import (
    NARROWING,
    AnyBaseline,
    Baseline,
    TorchPruningBaseline,
    find_options,
    name_baseline,
)
from sparsify_schemas.budget import Budget, fit_drop
from sparsify_schemas.criterion import Reconstruction
from sparsify_schemas.data import Data
from sparsify_schemas.goals import check_goals, check_target, name_known
from sparsify_schemas.group import in_one_tensor, removes_branches
from sparsify_schemas.model import Call, Inputs, Model
from sparsify_schemas.penalty import (
    GroupLasso,
)
from sparsify_schemas.rule import Rule
from sparsify_schemas.search import Search
from sparsify_schemas.search_fit import check_search
from sparsify_schemas.stage import Cut, Repair, Stage, Train, goal
from sparsify_schemas.target import Named
from sparsify_schemas.task import NamedTask, Task, deciding_metric


def _find_goal(index: int, stage: Stage) -> tuple[str | int, ...]:
    """Path of what a stage cuts to."""
    return (index, "cuts") if isinstance(stage, Train) else (index,)


Tracker = Literal["tensorboard", "mlflow", "wandb"]
_MIXED = {
    "mixup": ("classification", "multilabel", "regression"),
    "cutmix": ("classification", "multilabel"),
}
"""way of mixing examples -> tasks that it goes with; a number of an image does not follow from its area"""


class Recipe(Spec):
    """A whole recipe, resolved: variables filled in, parents merged."""

    version: Literal[1]
    """version of the recipe language, 1"""
    title: Title
    """what the recipe is for; names the run folder"""
    reference: Title | None = None
    """where the method or its figures come from"""
    seed: Seed = 0
    """seeds every random choice"""
    model: Model | None = None
    """how to build the dense model; needed when the model file holds weights only"""
    inputs: Inputs | None = None
    """what one forward call takes, in order or by keyword; taken from data when left out"""
    calls: tuple[Call, ...] | None = Field(default=None, min_length=1)
    """calls of the model in place of `inputs`, where one of `forward` does not reach all of it: it is
    followed, tried, proven, counted and timed in all of them"""
    data: Data | None = None
    """training, validation and test examples"""
    task: NamedTask = Task()
    """what the model is trained for and judged by: a kind, or its parts; classification when left out"""
    targets: dict[Text, Named] = {}
    """named hardware on which the result is timed; a preset's name stands for what it holds (`sparsify
    targets` lists them)"""
    budget: Budget = Budget()
    """what may remain of the dense model"""
    rules: tuple[Rule, ...] = Field(min_length=1)
    """what happens to which layers"""
    stages: tuple[Stage, ...] = Field(default=(Cut(kind="cut"),), min_length=1)
    """what is done, in order"""
    baselines: tuple[AnyBaseline, ...] = ()
    """simpler choices that the result is compared with, at its cost as measured, and trained like it after
    the cut, without penalties

    uniform_width: the same share of every layer, smallest units first; random: random units; magnitude:
    smallest units of all
    layers first; by_macs, with a latency budget: the rules' own criterion, chosen by MACs in place of
    milliseconds, widths as
    they fall; torch_pruning: what that package's own pruner cuts, checked; it takes options as a mapping. All
    from the weights that the penalties began with; from scratch, trained without penalties"""

    trackers: tuple[Tracker, ...] = ()
    """where losses, metrics and cuts are shown while the run goes on, by Accelerate: tensorboard (files in
    the run's folder), mlflow, wandb (Weights & Biases)"""
    search: Search | None = None
    """what `sparsify tune` tries to find the best recipe; `sparsify apply` leaves it out"""

    @property
    def baseline_kinds(self) -> tuple[Baseline, ...]:
        """The baselines by their names."""
        return tuple(map(name_baseline, self.baselines))

    @property
    def peer_baseline(self) -> TorchPruningBaseline:
        """The options of baseline torch_pruning."""
        return find_options(self.baselines)

    @field_validator("stages")
    @classmethod
    def _stages_fit(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [s.name for s in stages]
        doubled = next((i for i, name in enumerate(names) if name in names[:i]), None)
        if doubled is not None:
            raise AtKey(
                (doubled, "name"),
                f"two stages are called '{names[doubled]}'; give one of them another 'name'",
            )
        cutting = [(i, found) for i, s in enumerate(stages) if (found := goal(s)) is not None]
        if not cutting:
            raise ValueError("a recipe needs a 'cut' stage, or a 'train' stage with 'cuts'")
        for (earlier, before), (later, after) in pairwise(cutting):
            if before.budget is None and after.budget is None and after.way.value <= before.way.value:
                name = names[earlier]
                raise AtKey(
                    (*_find_goal(earlier, stages[earlier]), "way"),
                    f"'{names[later]}' cuts {after.way} of the way, and '{name}' before it has gone "
                    f"{before.way}; give '{name}' a shorter 'way'",
                )
        index, last = cutting[-1]
        if last.budget is not None or last.way.fraction < 1:
            raise AtKey(
                (*_find_goal(index, stages[index]), "way" if last.budget is None else "budget"),
                f"'{names[index]}' is the last cut and must meet the recipe's budget; leave out its 'way' "
                "and 'budget', or add a 'cut' stage",
            )
        return stages

    @field_validator("budget")
    @classmethod
    def _drop_is_of_the_metric(cls, budget: Budget, info: ValidationInfo) -> Budget:
        """A drop is in the deciding metric's own unit."""
        limit, task = budget.accuracy_drop, info.data.get("task")
        if limit is None or not isinstance(task, Task):
            return budget
        try:
            drop = fit_drop(limit.at_most, deciding_metric(task))
        except ValueError as error:
            raise AtKey("accuracy_drop", str(error)) from None
        limit = limit.model_copy(update={"at_most": drop})
        return budget.model_copy(update={"accuracy_drop": limit})

    @field_validator("trackers")
    @classmethod
    def _trackers_differ(cls, trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        doubled = next((name for name in trackers if trackers.count(name) > 1), None)
        if doubled:
            raise ValueError(f"'{doubled}' stands there twice; leave one out")
        return trackers

    @field_validator("baselines")
    @classmethod
    def _baselines_differ(cls, baselines: tuple[AnyBaseline, ...]) -> tuple[AnyBaseline, ...]:
        kinds = tuple(map(name_baseline, baselines))
        doubled = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if doubled:
            raise ValueError(f"'{doubled}' stands there twice; leave one out")
        return baselines

    @model_validator(mode="after")
    def _called_one_way(self) -> "Recipe":
        if self.inputs is not None and self.calls is not None:
            raise AtKey(
                "inputs",
                (
                    "'inputs' are those of one call of forward; write them as an entry of "
                    "'calls', or leave 'calls' out"
                ),
            )
        return self

    @model_validator(mode="after")
    def _baselines_have_widths(self) -> "Recipe":
        groups = {rule.group for rule in self.rules if not rule.protect and not in_one_tensor(rule.group)}
        if self.baselines and not groups:
            raise AtKey(
                "baselines",
                (
                    "baselines remove whole units, and no rule has a group of those (filter, "
                    "channel, neuron, head, hidden, expert, depth); leave 'baselines' out"
                ),
            )
        narrows = next((kind for kind in self.baseline_kinds if kind in NARROWING), None)
        if narrows is not None and all(map(removes_branches, groups)):
            raise AtKey(
                "baselines", f"'{narrows}' narrows layers, and group 'depth' has no widths; leave it out"
            )
        if "by_macs" in self.baselines and not self.budget.latency:
            raise AtKey(
                "baselines",
                "'by_macs' is what a latency budget is compared with; write budget.latency, or leave it out",
            )
        return self

    @model_validator(mode="after")
    def _budget_names_targets(self) -> "Recipe":
        stranger = next((name for name in self.budget.latency if name not in self.targets), None)
        if stranger is not None:
            raise AtKey(
                ("budget", "latency", stranger),
                f"'{stranger}' is no target of the recipe; {name_known(list(self.targets))}",
            )
        for at, own in self._list_own_budgets():
            if own.latency:
                raise AtKey(
                    (*at, "latency"),
                    "only the recipe's own budget names a latency; 'way' goes part of it",
                )
        return self

    def _list_own_budgets(self) -> list[tuple[tuple[str | int, ...], Budget]]:
        """(path, budget) of each stage that has its own."""
        found = []
        for index, stage in enumerate(self.stages):
            cut = goal(stage)
            if cut is not None and cut.budget is not None:
                found.append((("stages", *_find_goal(index, stage), "budget"), cut.budget))
        return found

    @model_validator(mode="after")
    def _accuracy_can_be_searched(self) -> "Recipe":
        for at, own in self._list_own_budgets():
            if own.accuracy_drop is not None:
                raise AtKey(
                    (*at, "accuracy_drop"),
                    "only the recipe's own budget names an accuracy_drop; leave it out",
                )
        if self.budget.accuracy_drop is None:
            return self
        if self.data is None or self.data.validation.value == 0:
            raise AtKey(
                ("budget", "accuracy_drop"),
                "accuracy_drop is judged on validation data; write 'data' with 'validation' above 0%",
            )
        for index, stage in enumerate(self.stages):
            if isinstance(stage, Train) and stage.cuts is not None:
                raise AtKey(
                    ("stages", index, "cuts"),
                    f"budget.accuracy_drop tries whole cuts, and '{stage.name}' cuts between its epochs; "
                    "write a 'cut' stage in place of its 'cuts'",
                )
        return self

    @model_validator(mode="after")
    def _latency_is_of_a_target(self) -> "Recipe":
        for i, rule in enumerate(self.rules):
            if isinstance(rule.penalty, GroupLasso) and rule.penalty.weight == "latency":
                check_target(i, rule.penalty.target, list(self.targets))
        return self

    def _check_distillation(self) -> None:
        """The teacher is the dense model as the first cut found it, unless a file is named."""
        for index, stage in enumerate(self.stages):
            before = any(goal(earlier) is not None for earlier in self.stages[:index])
            distill = stage.distill if isinstance(stage, Train) else None
            if distill is not None and not distill.is_from_file and not before:
                raise AtKey(
                    ("stages", index, "distill"),
                    f"'{stage.name}' distils from the dense model, and no stage before it cuts; move "
                    "'distill' to a stage after a cut, or name a file as its 'teacher'",
                )

    def _check_repairs(self) -> None:
        """A repair stage looks at training examples, and there must be a cut that it repairs."""
        repairs = [stage for stage in self.stages if isinstance(stage, Repair)]
        if not repairs:
            return
        repair = repairs[0]
        if self.data is None and any(stage.method != "merge" for stage in repairs):
            raise ValueError(
                "a recipe with a 'repair' stage needs 'data': it looks at training examples, not at labels"
            )
        first = self.stages.index(repair)
        if not any(goal(stage) is not None for stage in self.stages[:first]):
            raise AtKey(
                ("stages", first), f"'{repair.name}' repairs what a cut left, and no stage before it cuts"
            )
        for index, stage in enumerate(self.stages):
            merges = isinstance(stage, Repair) and stage.method == "merge"
            if merges and not (index == 1 and isinstance(self.stages[0], Cut)):
                raise AtKey(
                    ("stages", index),
                    f"'{stage.name}' merges units into those that the cut left as they were; it must be the "
                    "second stage, after a 'cut'",
                )

    @model_validator(mode="after")
    def _text_fits_the_task(self) -> "Recipe":
        data, kind = self.data, self.task.kind
        if data is None or not (data.is_text or data.text is not None):
            return self
        if kind == "language_model" and data.target is not None:
            raise AtKey(
                ("data", "target"), "the targets of a language model are its tokens; leave 'target' out"
            )
        return self

    @model_validator(mode="after")
    def _stages_fit_the_task(self) -> "Recipe":
        has_classes = self.task.has_classes
        for index, stage in enumerate(self.stages):
            if isinstance(stage, Train) and stage.label_smoothing and (not has_classes or self.task.loss):
                raise AtKey(
                    ("stages", index, "label_smoothing"),
                    f"'{stage.name}' smooths labels, which a task with a class for each target has; leave "
                    "it out",
                )
            if isinstance(stage, Train):
                self._check_choices(index, stage)
                self._check_mixing(index, stage)
            if isinstance(stage, Repair):
                why = self.task.explain_unweighable(stage.weigh, stage.name)
                if why is not None:
                    raise AtKey(("stages", index, "weigh"), why)
        for index, rule in enumerate(self.rules):
            if isinstance(rule.criterion, Reconstruction):
                why = self.task.explain_unweighable(rule.criterion.weigh, rule.criterion.kind)
                if why is not None:
                    raise AtKey(("rules", index, "criterion", "weigh"), why)
            if rule.penalty is not None and rule.penalty.facts().needs_classes and not has_classes:
                raise AtKey(
                    ("rules", index, "penalty", "mode"),
                    f"'mode: specific' looks at the output of the true class, and a task of {self.task.kind} "
                    "has none; write 'mode: unspecific'",
                )
        return self

    def _check_mixing(self, index: int, stage: Train) -> None:
        """Mixed examples have two targets: the loss is taken of each."""
        for key in stage.mixes:
            kinds = _MIXED[key]
            why = ""
            if self.task.kind not in kinds:
                listed = f"{', '.join(kinds[:-1])} or {kinds[-1]}"
                why = f"goes with a task of {listed}, and this one is '{self.task.kind}'"
            elif self.task.loss == "model":
                why = "takes the loss of two targets for each example, and the model returns its own"
            elif self.task.collate is not None:
                why = "mixes one tensor of inputs, and batches of task.collate may be anything"
            if why:
                raise AtKey(("stages", index, key), f"'{key}' of '{stage.name}' {why}; leave it out")

    def _check_choices(self, index: int, stage: Train) -> None:
        """What chooses among epochs needs validation data; averages never reach the zeros that penalties
        make."""
        chooses = (
            "patience" if stage.patience is not None else "ends_with" if stage.ends_with == "best" else None
        )
        if chooses and self.data is not None and self.data.validation.value == 0:
            raise AtKey(
                ("stages", index, chooses),
                f"'{chooses}' of '{stage.name}' goes by the validation set; write data.validation above 0%",
            )
        if stage.ema is not None and stage.penalties and any(rule.penalty is not None for rule in self.rules):
            raise AtKey(
                ("stages", index, "ema"),
                f"'{stage.name}' averages weights while penalties act, and an average of weights that "
                "become zero is not zero; write 'penalties: false', or leave 'ema' out",
            )

    @model_validator(mode="after")
    def _training_needs_data(self) -> "Recipe":
        check_goals(self.rules, self.budget)
        if self.data is None and any(isinstance(s, Train) for s in self.stages):
            raise ValueError("a recipe with a 'train' stage needs 'data'")
        self._check_repairs()
        self._check_distillation()
        check_search(self)
        asked = [
            (i, threshold)
            for i, rule in enumerate(self.rules)
            if rule.penalty is not None and (threshold := rule.penalty.facts().threshold) is not None
        ]
        if asked and self.data is not None and self.data.validation.value == 0:
            raise AtKey(
                ("rules", asked[0][0], "penalty", "threshold"),
                "the threshold needs validation data: it looks at the loss there; write data.validation "
                "above 0%",
            )
        other = next((i for i, threshold in asked if threshold != asked[0][1]), None)
        if other is not None:
            raise AtKey(
                ("rules", other, "penalty", "threshold"),
                f"rules.{asked[0][0]} and rules.{other} ask for different thresholds; "
                "weights become zero for all rules at once, write the same",
            )
        return self
