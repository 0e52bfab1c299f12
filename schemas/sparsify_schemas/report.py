"""The report: what a run measured, dense and cut side by side."""

from typing import Any, Literal

from pydantic import Field, model_validator

from sparsify_schemas.base import Spec
from sparsify_schemas.baseline import Baseline as Kind
from sparsify_schemas.cuts import Execution
from sparsify_schemas.table import Steps
from sparsify_schemas.task import Facts

_OLD_NAMES = {
    "validation_accuracy": "validation_metric",
    "test_accuracy": "test_metric",
    "train_accuracy": "train_metric",
    "cut_accuracy": "cut_metric",
}


class Measured(Spec):
    """What holds figures of the deciding metric; reports of before it had a name call them accuracies."""

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {_OLD_NAMES.get(name, name): held for name, held in value.items()}


class Side(Measured):
    """One model, dense or cut, as it lies on disk."""

    params: int
    """parameters stored"""
    nonzero: int
    """parameters that are not zero"""
    macs: int
    """multiply-accumulates of one forward call on one example (torch.utils.flop_counter, fast path off)"""
    bytes: int
    """size of the weights file"""
    peak_memory: int | None = None
    """bytes at the peak of one inference on one example, as the allocator saw it, with weights and inputs;
    where the budget limits it"""
    peak_memory_computed: int | None = None
    """the same from the lives of the tensors, without the work space of kernels"""
    validation_metric: float | None = None
    """the deciding metric on the validation set; null without data"""
    test_metric: float | None = None
    """the same on the test set; read once, at the end"""
    epochs: int = 0
    """epochs that the run trained this model for, or what it was cut from"""
    metrics: dict[str, float] = Field(default={}, exclude_if=lambda found: not found)
    """further figures on the validation and on the test set, by name"""


class LayerTime(Spec):
    """What the latency model says of one layer: its part of the milliseconds predicted."""

    layer: str
    """empty for what no layer accounts for"""
    dense_ms: float
    cut_ms: float


class Latency(Spec):
    """Dense and cut model timed interleaved on one target."""

    target: str
    """name in the recipe"""
    description: str
    """kind, runtime, threads, batch"""
    dense_ms: float
    """median milliseconds of a forward call; processor time on one thread, which other programs disturb
    least"""
    cut_ms: float
    """median milliseconds of a forward call"""
    speedup: float
    """median of dense / cut over interleaved pairs"""
    low: float
    """lower end of the 95 % bootstrap interval of the speed-up"""
    high: float
    """upper end"""
    pairs: int
    """interleaved measurements"""
    load: float
    """load average of the machine; above its cores the timing is not to be trusted"""
    predicted_dense_ms: float | None = None
    """what the latency model says of the dense model, where the budget names the target"""
    predicted_cut_ms: float | None = None
    """what it said of the cut model before that was ever timed"""
    by_layer: tuple[LayerTime, ...] = ()
    """where the milliseconds go as predicted; empty where nothing is predicted"""
    steps: Steps | None = None
    """the widths that the target rewards, where a prediction goes by them"""
    measured: bool = True
    """false where the target is not here and its table predicts everything; then there are no pairs and no
    interval"""


class Form(Measured):
    """A model as an ONNX file, in floats or quantised."""

    model: Literal["dense", "cut"]
    dtype: Literal["float32", "int8"]
    bytes: int
    """size of the ONNX file"""
    ms: dict[str, float]
    """int8 target -> median milliseconds of a forward call, all forms interleaved"""
    validation_metric: float | None = None
    """computed by ONNX Runtime"""
    test_metric: float | None = None


class Integers(Spec):
    """Dense and cut model in floats and in integers, quantised after the cut."""

    examples: int
    """training examples that the ranges of activations were found on; 0: random inputs, as the recipe has no
    data"""
    forms: tuple[Form, ...]
    """dense float32, cut float32, dense int8, cut int8"""


class LayerRow(Spec):
    """One layer before and after."""

    name: str
    type: str
    inputs: int
    """input width before"""
    inputs_after: int
    outputs: int
    """output width before"""
    outputs_after: int
    params: int
    params_after: int
    zeros: float
    """share of the remaining weights that is zero"""
    macs: int
    macs_after: int
    protected: str | None = None
    """why the width was kept, if it was protected"""
    removed: bool = False
    """whether it left as a whole, with the residual branch that it was part of"""
    kind: str | None = None
    """the class of torch.nn that its class is derived from, where that is another one"""


class MixtureRow(Spec):
    """One mixture of experts before and after."""

    name: str
    type: str
    experts: int
    """experts before"""
    experts_after: int
    least: int
    """with fewer the model does not run"""


class Limit(Spec):
    """A budget or a rule's own sparsity: what was asked for and what came out."""

    what: str
    """such as budget.macs or rules.0.sparsity"""
    asked: str
    """as the recipe says it"""
    limit: float
    """the same in units of `achieved`"""
    achieved: float
    """as measured"""
    met: bool


class Sparsity(Spec):
    """Zeros that rules set inside weight tensors, and what they come to."""

    what: str
    """such as rules.0; 'model' for all together"""
    group: str
    """what was chosen among"""
    nominal: float
    """share of the weights that the rule chose among, set to zero"""
    effective: float
    """share of the dense weights that are gone or zero, with all that dead units took along"""
    weights: int
    """dense weights"""


class Agreement(Spec):
    """How far a model's outputs follow those of the dense model, on unlabelled training examples."""

    correlation: float
    """of the outputs, each less its mean over the examples; near 0 where they no longer follow the inputs"""
    error: float
    """sum of squared differences, relative to the spread of the dense outputs over the examples"""
    same_prediction: float | None = None
    """share of the examples of which both models name the same class; null where outputs are no scores of
    classes"""


class LayerRepair(Spec):
    """What a repair made of one layer. Errors are on examples held out, relative to the variance of the
    outputs."""

    layer: str
    outcome: Literal["refitted", "reverted", "unchanged", "skipped", "merged"]
    before: float | None = None
    """error of the layer's outputs before it was refitted, with the layers before it repaired"""
    after: float | None = None
    """error with the refitted weights; where it was no smaller, the old ones were kept"""
    reason: str = ""
    """why it was skipped; of merged: how many units"""


class RepairRow(Spec):
    """What a repair stage did."""

    method: Literal["least_squares", "batch_norm", "mean", "merge"]
    examples: int
    """calibration examples used, a tenth of them held out; all judge a merge"""
    weighed: bool = Field(default=False, exclude_if=lambda found: not found)
    """whether places counted by how much the predictions depend on them"""
    before: Agreement | None
    """with the dense model, on the examples held out; null without data"""
    after: Agreement | None
    reverted: bool = False
    """whether all was taken back, as the outputs came no nearer to those of the dense model"""
    layers: tuple[LayerRepair, ...] = ()
    left_out: str = ""
    """why there was no repair; empty where there was one"""


class StageRow(Measured):
    """One stage: what it took and where it ended."""

    name: str
    kind: Literal["train", "cut", "repair"]
    seconds: float
    epochs: int = 0
    loss: float | None = None
    """mean training loss of the last epoch"""
    validation_metric: float | None = None
    """where the stage ended; for a cut, before any fine-tuning"""
    kept_epoch: int | None = Field(default=None, exclude_if=lambda found: found is None)
    """the epoch whose weights the stage ended with, where that is not its last"""
    penalty_share: float | None = None
    """share of the stage's step time spent in penalties"""
    agreement: Agreement | None = None
    """with the dense model after a cut, on training examples; null without data"""
    repair: RepairRow | None = None
    """of a repair stage"""


class Epoch(Measured):
    """One row of the history."""

    stage: str
    epoch: int
    loss: float
    train_metric: float | None = None
    """share of the training examples classified rightly, as they were trained on; null of other tasks"""
    validation_loss: float | None = None
    validation_metric: float | None = None
    lr: float
    sparsity: float
    """share of the groups that rules cover whose norm is zero"""
    strength: float | None = None
    woken: float | None = None
    """fraction of the weights of gsm rules that switched from inactive to active between two steps, mean over
    the steps"""
    threshold: float | None = None
    """weights up to so large were set to zero at the end of this epoch; the validation figures are of after
    that"""
    due: float | None = None
    """strength auto: the part of the goal that should have been reached by the end of this epoch"""
    reached: float | None = None
    """strength auto: the part of the goal that what is dead comes to"""
    processes: int | None = None
    """that trained together; null in reports of before it was written"""
    seconds: float


class Verdict(Spec):
    """What the equality check said of a cut."""

    outcome: Literal["equal", "statistics change", "nothing cut", "wrong"]
    """wrong: of a cut that was made elsewhere; its own are refused then"""
    difference: float
    """largest absolute difference between cut and masked dense model in float64, relative to the largest
    output"""
    control: float
    """the same between masked and unmasked dense model: zero would mean that the check could not see the
    cut"""
    groups: tuple[str, ...] = ()
    """coupled groups checked"""
    reference: Literal["masked model", "dense model", "masked model with random weights"] = "masked model"
    """what the cut model was compared with: the dense model where all that left was dead and its constants
    went on exactly; with random weights where those of the dense model are not known"""
    batches: tuple[int, ...] = ()
    """numbers of examples of the inputs that were drawn for the comparison after the choice; none: the given
    inputs"""
    note: str = ""


class Round(Measured):
    """One cut: where it came and what it left."""

    stage: str
    epoch: int = 0
    """epochs of a train stage before it; 0 for a cut stage"""
    macs: int
    """multiply-accumulates that it left"""
    params: int
    """parameters that it left"""
    validation_metric: float | None = None
    """right after it"""
    verdict: Verdict


class Baseline(Measured):
    """A simpler choice at the cost of the cut model, trained like it after the cut."""

    kind: Kind
    side: Side
    latency: tuple[Latency, ...] = ()
    """the dense model and this one, timed interleaved on each target"""
    cut_metric: float | None = None
    """the deciding metric on the validation set right after the cut"""
    verdict: Verdict


class FailedBaseline(Spec):
    """A baseline of another package that came to no model."""

    kind: Kind
    outcome: str
    """`raised: ...` or `timed out ...`"""


class Trial(Measured):
    """One depth of the search for the deepest cut within an accuracy_drop, carried through to the recipe's
    end."""

    depth: float
    """share of the way from what the other budgets ask for (0) to all that can be removed (1)"""
    macs: int
    """multiply-accumulates that it left"""
    params: int
    """parameters that it left"""
    validation_metric: float
    """at the recipe's end"""
    drop: float
    """how much worse that is than the dense model, in the metric's own unit"""
    inside: bool
    """whether the drop is within what was asked"""
    seconds: float
    """what its stages took"""


class Search(Spec):
    """The search for the deepest cut within an accuracy_drop."""

    dense: float
    """the dense model's deciding metric on the validation set"""
    depth: float | None = None
    """the trial that goes on; null when the search is over"""
    trials: tuple[Trial, ...] = ()
    """in the order in which they were made"""


class Environment(Spec):
    """What it ran on."""

    python: str
    packages: dict[str, str]
    processor: str
    cores: int
    platform: str


class Report(Spec):
    """What a run did and measured. Every figure is counted or measured on the artefact as reloaded from
    disk."""

    version: Literal[1] = 1
    title: str
    created: str
    """UTC, ISO 8601"""
    seed: int
    recipe_digest: str
    plan_digest: str
    model_digest: str
    """SHA-256 of the dense weights"""
    metric: Facts = Field(default=Facts(), exclude_if=lambda found: found == Facts())
    """what decides: the metric of the task that all figures called `metric` are of"""
    dense: Side
    cut: Side
    latency: tuple[Latency, ...] = ()
    integers: Integers | None = None
    """where the recipe has a target in int8 that is here"""
    limits: tuple[Limit, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    mixtures: tuple[MixtureRow, ...] = Field(default=(), exclude_if=lambda found: not found)
    """mixtures that rules with group expert reach"""
    sparsities: tuple[Sparsity, ...] = ()
    executions: tuple[Execution, ...] = ()
    stages: tuple[StageRow, ...] = ()
    history: tuple[Epoch, ...] = ()
    rounds: tuple[Round, ...] = ()
    """the cuts, in order"""
    baselines: tuple[Baseline, ...] = ()
    """what the recipe's baselines came to"""
    failed: tuple[FailedBaseline, ...] = Field(default=(), exclude_if=lambda found: not found)
    """baselines of other packages that came to no model"""
    search: Search | None = None
    """what was tried, where the budget limits an accuracy_drop"""
    verdict: Verdict
    """the worst verdict of any cut: by outcome, then by difference"""
    notes: tuple[str, ...] = ()
    """what a reader must know, in plain words"""
    files: dict[str, str] = {}
    """SHA-256 of each file of the run"""
    environment: Environment
