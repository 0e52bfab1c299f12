"""Stages: train, cut, train again, in as many rounds as it takes."""

from typing import Annotated, Any, Literal, assert_never

from pydantic import Field, field_validator, model_validator

from sparsify_schemas.base import AtKey, Callable, Flag, NonNegative, Positive, Spec, Text, Weigh
from sparsify_schemas.budget import Budget
from sparsify_schemas.schedule import Constant, Scheduled
from sparsify_schemas.selector import Layers
from sparsify_schemas.target import Layout
from sparsify_schemas.units import Duration, Share, Size

Above = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Unit = Annotated[float, Field(strict=True, ge=0, lt=1)]


class Sgd(Spec):
    """torch.optim.SGD"""

    kind: Literal["sgd"]
    lr: Scheduled
    """learning rate, a number or a schedule"""
    momentum: Unit = 0.0
    """momentum factor"""
    weight_decay: NonNegative = 0.0
    """decay of every parameter, added to the gradient"""
    nesterov: Flag = False
    """Nesterov momentum"""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Sgd":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above zero")
        return self


class Adam(Spec):
    """torch.optim.Adam"""

    kind: Literal["adam"]
    lr: Scheduled = Constant(kind="constant", value=1e-3)
    """learning rate, a number or a schedule"""
    betas: tuple[Unit, Unit] = (0.9, 0.999)
    """decay of the running means of gradient and squared gradient"""
    weight_decay: NonNegative = 0.0
    """decay added to the gradient"""


class AdamW(Spec):
    """torch.optim.AdamW"""

    kind: Literal["adamw"]
    lr: Scheduled = Constant(kind="constant", value=1e-3)
    """learning rate, a number or a schedule"""
    betas: tuple[Unit, Unit] = (0.9, 0.999)
    """decay of the running means of gradient and squared gradient"""
    weight_decay: NonNegative = 0.01
    """decay decoupled from the gradient"""


class OtherOptimizer(Spec):
    """Another optimizer of torch.optim, or one of your own."""

    kind: Literal["other"]
    use: Callable
    """name of a class of torch.optim, such as RAdam or RMSprop, or package.module:callable that takes
    parameters and `lr` and returns a torch optimizer"""
    lr: Scheduled = Constant(kind="constant", value=1e-3)
    """learning rate, a number or a schedule"""
    args: dict[Text, Any] = {}
    """further keyword arguments, such as {alpha: 0.9, momentum: 0.9}"""

    @field_validator("args")
    @classmethod
    def _lr_has_its_own_key(cls, args: dict[str, Any]) -> dict[str, Any]:
        if "lr" in args:
            raise ValueError("the learning rate is the key 'lr' beside 'args'")
        return args


Optimizer = Annotated[Sgd | Adam | AdamW | OtherOptimizer, Field(discriminator="kind")]


class Goal(Spec):
    """What a cut is to leave."""

    way: Share = Share(100, "%")
    """fraction of the target reduction (the budget's and the rules' own sparsities) that this cut applies,
    measured from the dense model; the last cut must be 100%"""
    budget: Budget | None = None
    """what this cut may leave of the dense model, in place of the recipe's budget; not in the last cut"""


class Gradual(Goal):
    """Cuts between the epochs of a train stage, deeper each time; optimizer and penalties go on where they
    were.

    after epoch e, t = (e - start) / (end - start):  way(e) = way * (1 - (1 - t)^3)      cubic  (Zhu & Gupta,
    arXiv:1710.01878)
                                                     way * t                             linear
                                                     way * (1 - cos(pi t)) / 2           cosine
    """

    every: Duration = Duration(1, "ep")
    """whole epochs between two cuts; the last cut comes at `end`"""
    schedule: Literal["cubic", "linear", "cosine"] = "cubic"
    """how the way goes on: cubic begins fast and ends slowly"""
    start: Duration = Duration(0, "ep")
    """when it begins, in ep or dur"""
    end: Duration = Duration(1, "dur")
    """when it is complete, in ep or dur; what is left of the stage is fine-tuning"""

    @model_validator(mode="after")
    def _between_epochs(self) -> "Gradual":
        if self.every.unit != "ep" or self.every.value != int(self.every.value) or not self.every.value:
            raise ValueError(
                f"'every: {self.every}' is no number of whole epochs, and cuts come between epochs; write 1ep"
            )
        for key, moment in (("start", self.start), ("end", self.end)):
            if moment.unit == "it":
                raise ValueError(
                    f"'{key}: {moment}' counts steps, and cuts come between epochs; write it in ep or dur"
                )
        return self


class Distill(Spec):
    """Learn from a teacher besides the labels: from the dense model, or one of a file.

    loss = (1 - weight) * the task's loss + weight * T^2 * KL(softmax(teacher / T) || softmax(outputs / T))
           + features_weight * mean over the layers of mean((f - t)^2) / var(t)

    over classes, or over the two values of each label of a multilabel task; (outputs - teacher)^2 in place of
    the second term for a regression or a task of its own. f is what a layer of `features` returns, t what it
    returns in the teacher, of the units that stayed.

    Source: Hinton et al., arXiv:1503.02531; Romero et al., arXiv:1412.6550, without the regressor, since the
    log of the cuts says which units stayed.
    """

    teacher: Text = "dense"
    """`dense`, the model as the first cut found it; or a file relative to this recipe: weights for the
    recipe's own `model`, a whole model, the folder of a run (its cut model), or dense.safetensors in it"""
    temperature: Above = 4.0
    """T: softens both distributions"""
    weight: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.5
    """share of the loss that follows the teacher's outputs; 0 with `features` alone"""
    features: Layers | None = None
    """modules whose outputs are drawn to the teacher's: globs on their names, `re:` and a regular expression,
    or names of classes"""
    features_weight: Above = 1.0
    """factor of what `features` adds to the loss, which is 1 where each layer returns no more than the
    teacher's mean"""

    @property
    def is_from_file(self) -> bool:
        """Whether the teacher is read from a file."""
        return self.teacher != "dense"

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Distill":
        if self.features is None and self.features_weight != 1.0:
            raise AtKey("features_weight", "there are no 'features' to weigh; name them, or leave it out")
        if self.features is None and not self.weight:
            raise AtKey("weight", "a weight of 0 leaves the teacher out; write one above 0, or 'features'")
        return self


class Rate(Spec):
    """Learning rate of some layers."""

    layers: Layers
    """globs on module names, `re:` and a regular expression, or names of classes"""
    scale: NonNegative
    """what `lr` is multiplied by there; 0 leaves the weights as they are, unless a penalty moves them"""


class Train(Spec):
    """Train for some epochs by the task's loss, with the rules' penalties attached unless `penalties:
    false`."""

    kind: Literal["train"]
    name: Text = "train"
    """how the stage is called in the report; unique within the recipe"""
    epochs: Positive
    """passes over the training set"""
    batch: Positive = 64
    """examples per step"""
    optimizer: Optimizer
    """what takes the steps"""
    warmup: Duration = Duration(0, "it")
    """over which the learning rate rises evenly from zero to what `lr` says; 0it for none"""
    rates: tuple[Rate, ...] = ()
    """learning rates of some layers relative to `lr`; of several entries that match, the first counts"""
    clip: Above | None = None
    """largest norm of the loss' gradient over all parameters; a larger one is scaled down to it, before
    penalties are added"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """of the forward pass, by autocast: bf16, or fp16 with the loss scaled so that gradients do not vanish (a
    step whose gradients overflow is skipped); weights and optimizer stay in float32"""
    shard: Flag = False
    """whether several processes spread parameters, gradients and optimizer state among them (FSDP 2), in
    place of a copy for each (DDP)"""
    label_smoothing: Unit = 0.0
    """share of each target that is spread evenly over all classes, in training alone (Szegedy et al.,
    arXiv:1512.00567); of tasks with classes"""
    mixup: Above | None = None
    """alpha: each batch becomes m * x + (1 - m) * x' with m ~ Beta(alpha, alpha) and x' the same batch in
    another order, its loss m * loss(y) + (1 - m) * loss(y'), in training alone (Zhang et al.,
    arXiv:1710.09412); 0.2 is usual"""
    cutmix: Above | None = None
    """alpha: a box of x' is pasted into each image x, as large as 1 - m of it, m ~ Beta(alpha, alpha); the
    loss is that of mixup with m the true share of x (Yun et al., arXiv:1905.04899); 1 is usual. Beside
    `mixup` each batch gets one of the two, with equal chance"""
    accumulate: Positive = 1
    """parts in which a batch passes through the model, for less memory; the step is that of the whole
    batch"""
    recompute_activations: Flag = False
    """whether what the model's blocks compute is computed again in the backward pass in place of being kept,
    for less memory and about a third more time (Chen et al., arXiv:1604.06174)"""
    layout: Layout | None = None
    """order in memory of convolution weights and images during the stage; channels_last is often faster. As
    the model has it when left out; after the stage it is that again"""
    penalties: Flag = True
    """whether the rules' penalties act in this stage"""
    cuts: Gradual | None = None
    """cut little by little while training"""
    ema: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    """decay d of an exponential moving average of the weights, a <- d * a + (1 - d) * w after each step,
    such as 0.999; the stage is validated by the average and ends with it"""
    ends_with: Literal["last", "best"] = "last"
    """the weights that the stage ends with: those of its last epoch, or of the epoch that the task's deciding
    metric is best after, on the validation set"""
    patience: Positive | None = None
    """epochs without a better deciding metric after which the stage ends early"""
    distill: Distill | None = None
    """learn from a teacher besides the labels: `distill: {}` from the dense model, in a stage after a cut, or
    with a `teacher` from a file in any"""

    @property
    def mixes(self) -> dict[Literal["mixup", "cutmix"], float]:
        """Ways of mixing that are asked for -> alpha."""
        found: dict[Literal["mixup", "cutmix"], float] = {}
        if self.mixup is not None:
            found["mixup"] = self.mixup
        if self.cutmix is not None:
            found["cutmix"] = self.cutmix
        return found

    @model_validator(mode="after")
    def _goes_together(self) -> "Train":
        """Cuts between epochs change the shapes of what is kept; FSDP takes contiguous weights alone."""
        asked = {
            "ema": self.ema is not None,
            "ends_with": self.ends_with == "best",
            "patience": self.patience is not None,
        }
        key = next((name for name, wanted in asked.items() if wanted), None)
        if self.cuts is not None and key is not None:
            raise AtKey(key, f"'{key}' does not go with 'cuts'; put it in a train stage after the last cut")
        if self.shard and self.ema is not None:
            raise AtKey("ema", "'ema' does not go with 'shard'; leave one of them out")
        if self.shard and self.layout is not None:
            raise AtKey("layout", "'layout' does not go with 'shard'; leave one of them out")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "Train":
        if self.accumulate > self.batch:
            raise AtKey(
                "accumulate",
                (
                    f"a batch of {self.batch} cannot pass in {self.accumulate} parts; choose "
                    f"at most {self.batch}"
                ),
            )
        return self

    @model_validator(mode="after")
    def _cuts_within(self) -> "Train":
        if self.cuts is not None:
            start, end = (moment.steps(1, self.epochs) for moment in (self.cuts.start, self.cuts.end))
            if not start < end <= self.epochs:
                raise ValueError(
                    f"the cuts start at {self.cuts.start} and end at {self.cuts.end}; 'end' "
                    f"must come after 'start' and within {self.epochs}ep"
                )
        return self


class Cut(Goal):
    """Choose what goes, remove it from a copy, verify the copy, go on with it."""

    kind: Literal["cut"]
    name: Text = "cut"
    """how the stage is called in the report; unique within the recipe"""
    repair: Flag = True
    """whether `apply` puts a repair by least squares behind it, where the recipe has `data`, cuts once and
    has no `repair` stage; a repair that is impossible is left out, and the report says why"""


LEAST_EXAMPLES = 10
"""of a repair: fewer could not judge it"""


class Repair(Spec):
    """Refit what a cut left, in closed form, so that each layer computes again what it did in the dense
    model.

    Unlabelled training examples pass through the dense and the cut model side by side. With X the inputs of a
    layer of the cut model as repaired so far, and Y the outputs of the same layer of the dense model, both
    centred:

        W = W0 + (X'X + l I)^-1 X'(Y - X W0),    l = ridge * mean(diag X'X)       least_squares
        running mean and variance of each batch normalisation, taken anew         batch_norm
        b = mean(Y) - mean(X) W0                                                   mean
        W[:, i] += s W[:, j], unit i being most like the removed unit j            merge

    A layer is refitted only where that helps on examples held out, and all is taken back where the outputs of
    the whole model do not come nearer to those of the dense model. `merge` looks at weights alone: units are
    alike by the cosine of their rows, and without data nothing judges it. It comes right after a cut that is
    the first stage.
    """

    kind: Literal["repair"]
    name: Text = "repair"
    """how the stage is called in the report; unique within the recipe"""
    method: Literal["least_squares", "batch_norm", "mean", "merge"] = "least_squares"
    """how layers are refitted; merge needs no data"""
    examples: Annotated[int, Field(strict=True, ge=LEAST_EXAMPLES)] = 1000
    """unlabelled training examples that are used at most; a tenth of them is held out"""
    ridge: Above = 0.01
    """strength of the pull towards the present weights, relative to the mean diagonal of the Gram matrix"""
    shortcuts: Flag = True
    """whether the last layer of a residual branch makes up for what its shortcut lost"""
    weigh: Weigh | None = None
    """places: each place of a layer's output, such as a pixel or a token, counts by how much the predictions
    of classes depend on it; none: all count alike. Left out: places where the task is segmentation and has no
    loss of its own, in which most pixels are background"""
    memory: Size = Size(2, "GiB")
    """of activations, at most; fewer examples are used where they would take more"""
    required: Flag = True
    """whether the run ends where the repair is impossible, such as for want of examples; false: it is left
    out, and the report says why"""

    @model_validator(mode="after")
    def _nothing_ignored(self) -> "Repair":
        for key in _NOT_OF.get(self.method, ()):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise AtKey(key, f"method '{self.method}' has no '{key}'; leave it out")
        return self


_NOT_OF = {
    "mean": ("ridge", "weigh"),
    "batch_norm": ("ridge", "shortcuts", "weigh"),
    "merge": ("ridge", "shortcuts", "weigh"),
}
"""method of a repair -> keys that it does not read"""

Stage = Annotated[Train | Cut | Repair, Field(discriminator="kind")]


def goal(stage: Stage) -> Cut | Gradual | None:
    """What a stage cuts to, if it cuts."""
    match stage:
        case Cut():
            return stage
        case Train():
            return stage.cuts
        case Repair():
            return None
        case _:
            assert_never(stage)
