"""Penalties: what drives groups towards zero while the model trains. They act through the optimizer's step
hooks."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, final

from pydantic import Field, model_validator

from sparsify_schemas.base import AtKey, NonNegative, Number, Positive, Spec, Text
from sparsify_schemas.schedule import Auto, Scheduled, Strength
from sparsify_schemas.units import Duration, Share

Solver = Literal["proximal", "subgradient"]
EVERY = 8
"""steps of the optimizer for one of the proximal solver"""


class Threshold(Spec):
    """Weights below T become zero and stay zero, T the largest for which

        validation loss with them zero <= (1 + tolerance) * validation loss

    found by bisection whenever the validation loss has not improved for `patience` epochs. Sources:
    Tartaglione et al., arXiv:1810.11764 (a threshold); Tartaglione et al., arXiv:2011.09905 (how it is
    found).
    """

    tolerance: Share = Share(5.0, "%")
    """how much larger the validation loss may become each time"""
    patience: Positive = 5
    """epochs without a better validation loss before weights are set to zero"""


Reach = Literal["units", "slices", "weights", "arrivals", "elements"]


@dataclass(frozen=True)
class Facts:
    """What a penalty says of itself, so that nothing else needs to know which penalty it is."""

    reach: Reach
    """units: all that leaves with a unit; slices: the matched layer's own slice of each; arrivals: the
    consumers' slices, where a unit arrives; weights: the layer's weights; elements: each weight by itself. Of
    groups inside a tensor always these groups, or for single weights the weights, for arrivals and elements
    each by itself"""
    summary: str
    """what the plan says of it, names of fields in braces"""
    strength: Strength | None = None
    """lambda, where the recipe says it"""
    every: int = 1
    """steps of the optimizer between two proximal actions"""
    goal: Literal["sparsity", "sparsity or budget"] | None = None
    """what it works towards: the rule's own `sparsity`, or else the budget; it does not act where there is
    none"""
    ranks_over_rules: bool = False
    """whether all its rules of one `sparsity` rank their groups, or weights, together"""
    chooses: bool = False
    """whether it chooses what is to go, and after a cut chooses anew"""
    threshold: Threshold | None = None
    """when weights below a threshold become zero during training; needs validation data"""
    strength_is: Literal["lambda", "fraction"] = "lambda"
    """what the strength at a step is: lambda, or the fraction that is held at zero, which the log of the
    training does not show as a strength"""
    needs_classes: bool = False
    """whether it looks at the output of each target's class"""
    moments: tuple[Duration, ...] = ()
    """times besides those of `strength`; what is not in steps needs to know how long the stage is"""


class PenaltySpec(Spec):
    """What every penalty has: the facts that the rest of the program asks for."""

    @abstractmethod
    def facts(self) -> Facts:
        """What is to be known of it besides what it does, which `build` of `sparsify.training.penalties`
        says."""


def _goal_of(strength: Strength) -> Literal["sparsity or budget"] | None:
    """A strength that is found needs something to be found by."""
    return "sparsity or budget" if isinstance(strength, Auto) else None


def _refuse_auto(strength: object, solver: str) -> None:
    if isinstance(strength, Auto) and solver != "proximal":
        raise AtKey(
            "strength",
            "strength 'auto' also says how far each group may shrink, which only solver 'proximal' heeds",
        )


def _refuse_every(every: int, solver: str) -> None:
    if every != EVERY and solver != "proximal":
        raise AtKey("every", "'every' is for 'solver: proximal'; the other solvers act on each step")


@final
class GroupLasso(PenaltySpec):
    """Group lasso: whole groups become exactly zero.

    R = sum over groups g of strength * v_g * ||w_g||_2
    v_g = sqrt(|g|) * max(1/20, (price of g / |g|) / (price of all / number of all)), price: |g|, MACs, or
    milliseconds;
          so sqrt(|g|) for `weight: size`
    proximal step, after the optimizer's:  w_g <- w_g * max(0, 1 - lr * strength * v_g / ||w_g||)
    sub-gradient, added before it:         strength * v_g * w_g / ||w_g||   (0 at 0)
    half-space: the sub-gradient, and w_g <- 0 after a step from w_g to w'_g with <w'_g, w_g> <= epsilon *
    ||w_g||^2; zero stays

    Coupled groups overlap where one layer's columns are another's rows; each entry is then multiplied by the
    factors of
    both its groups, taken at the same point (equal to the joint proximal step up to (lr * strength)^2).
    Source: Yuan & Lin 2006; Wen et al., arXiv:1608.03665; half-space: Chen et al., arXiv:2004.03639, equation
    9.
    """

    kind: Literal["group_lasso"]
    strength: Strength
    """lambda: a number, a schedule, or auto, which finds it"""
    scope: Literal["coupled", "layer"] = "coupled"
    """coupled: a group is every slice that leaves with the channel (filter, bias, normalisation, consumers'
    columns); layer: the matched layer's own weight slice, the form of the SSL paper"""
    weight: Literal["size", "macs", "latency"] = "size"
    """what a group's pull is in proportion to: its weights, the MACs that they take, or the milliseconds that
    go with it"""
    target: Text | None = None
    """weight latency: on which of the recipe's targets; left out where it has one"""
    solver: Literal["proximal", "subgradient", "half_space"] = "proximal"
    """proximal and half_space reach exact zeros, groups may return from the former; subgradient only comes
    near them"""
    every: Positive = EVERY
    """proximal solver: act on every n-th step with the lr * strength of the n steps added up; 1 acts on each
    step"""
    epsilon: NonNegative = 0.0
    """half_space solver: larger sets groups to zero earlier; below 1"""
    zero_below: NonNegative | None = None
    """subgradient solver: single weights of magnitude below this become zero after every step; 1e-4 in the
    SSL paper's code"""

    @model_validator(mode="after")
    def _consistent(self) -> "GroupLasso":
        _refuse_auto(self.strength, self.solver)
        _refuse_every(self.every, self.solver)
        if isinstance(self.strength, Auto) and self.scope == "layer":
            raise AtKey(
                "strength", "strength 'auto' counts groups that can leave, which are of scope 'coupled'"
            )
        if self.epsilon and self.solver != "half_space":
            raise AtKey("epsilon", "'epsilon' is for 'solver: half_space'")
        if self.epsilon >= 1:
            raise AtKey(
                "epsilon", "'epsilon' must be below 1; at 1 every group that shrinks would become zero"
            )
        if self.zero_below is not None and self.solver != "subgradient":
            raise AtKey(
                "zero_below",
                "'zero_below' is for 'solver: subgradient'; the other solvers reach zero by themselves",
            )
        if self.target is not None and self.weight != "latency":
            raise AtKey("target", "'target' is for 'weight: latency'")
        if self.weight == "latency" and self.scope == "layer":
            raise AtKey(
                "weight",
                (
                    "weight 'latency' is known of groups that can leave, which are of scope "
                    "'coupled'; write 'weight: macs'"
                ),
            )
        return self

    def facts(self) -> Facts:
        return Facts(
            every=self.every,
            goal=_goal_of(self.strength),
            strength=self.strength,
            reach="units" if self.scope == "coupled" else "slices",
            summary="group_lasso {strength}",
        )


@final
class L1(PenaltySpec):
    """l1: single weights become exactly zero.

    R = strength * sum |w|
    proximal step:  w <- sign(w) * max(0, |w| - lr * strength)
    sub-gradient:   strength * sign(w)
    Source: Tibshirani 1996; Parikh & Boyd, Proximal Algorithms, 6.5.2.
    """

    kind: Literal["l1"]
    strength: Strength
    """lambda: a number, a schedule, or (with group `weight`) auto, which finds it"""
    solver: Solver = "proximal"
    """proximal reaches exact zeros; subgradient only comes near them"""
    every: Positive = EVERY
    """proximal solver: act on every n-th step with the lr * strength of the n steps added up; 1 acts on each
    step"""

    @model_validator(mode="after")
    def _consistent(self) -> "L1":
        _refuse_auto(self.strength, self.solver)
        _refuse_every(self.every, self.solver)
        return self

    def facts(self) -> Facts:
        return Facts(
            every=self.every,
            goal=_goal_of(self.strength),
            strength=self.strength,
            reach="weights",
            summary="l1 {strength}",
        )


@final
class L2(PenaltySpec):
    """l2: weights shrink in proportion, none becomes exactly zero.

    R = strength / 2 * sum w^2
    proximal step:  w <- w / (1 + lr * strength)
    gradient:       strength * w
    Source: Tikhonov regularisation; Parikh & Boyd, Proximal Algorithms, 6.1.1.
    """

    kind: Literal["l2"]
    strength: Scheduled
    """lambda, a number or a schedule"""
    solver: Solver = "proximal"
    """proximal is decoupled from momentum, subgradient is classical weight decay"""
    every: Positive = EVERY
    """proximal solver: act on every n-th step with the lr * strength of the n steps added up; 1 acts on each
    step"""

    @model_validator(mode="after")
    def _consistent(self) -> "L2":
        _refuse_every(self.every, self.solver)
        return self

    def facts(self) -> Facts:
        return Facts(every=self.every, strength=self.strength, reach="weights", summary="l2 {strength}")


@final
class Gsm(PenaltySpec):
    """gsm: global sparse momentum. Only the top-Q weights receive gradients of the loss; the rest shrink by
    weight decay, and may become active again.

    T = |w * dL/dw|     of every weight that gsm rules of one `sparsity` cover, in all layers together
    (group: weight)
    T = |sum over w in g of w * dL/dw|     of every group                                             (any
    other group)
    before the optimizer's step: dL/dw stays where T is among the Q largest, Q = (1 - sparsity) of their
    number, else 0

    Of more than a million single weights every 31st is ranked, so that Q is met within about 3 %.
    Weight decay and momentum are the optimizer's and act on all: a weight inactive for n steps shrinks by
    exp(-n * lr * weight_decay / (1 - momentum)), which `plan` predicts. It takes a momentum of 0.98 or 0.99.
    Source: Ding et al., arXiv:1909.12778, algorithm 1 (single weights); on groups as Ding et al.,
    arXiv:2007.03260, mask them.
    """

    kind: Literal["gsm"]

    def facts(self) -> Facts:
        return Facts(goal="sparsity", ranks_over_rules=True, reach="units", summary="gsm")


@final
class Sensitivity(PenaltySpec):
    """sensitivity: weights that the outputs hardly depend on shrink, the others are left alone.

    S = sum_k a_k * |dy_k/dw|,   y the mean of the model's outputs over the batch     (of: outputs)
    S = |dL/dw|                                                                       (of: loss)
    after the optimizer's step: w <- w - strength * w * max(0, 1 - S)       (not multiplied by the learning
    rate)

    Of outputs, unspecific takes one backward pass per class and step, specific one more per step; of the loss
    none.
    Outputs of a torch.compile'd model are not seen: there, take the loss. Where several processes share a
    batch, y is the
    mean over all of it, for which they exchange one gradient more per backward pass.
    Source: Tartaglione et al., arXiv:1810.11764; of the loss: Tartaglione et al., arXiv:2011.09905.
    """

    kind: Literal["sensitivity"]
    strength: Scheduled
    """lambda per step, a number or a schedule; 1e-5 to 1e-4 are usual"""
    of: Literal["loss", "outputs"] = "loss"
    """whose derivative: of the loss (free), or of the outputs (the paper's)"""
    mode: Literal["unspecific", "specific"] = "unspecific"
    """of outputs: a_k = 1 / classes, or a_k = 1 for the class that the loss pulls up (the label) and 0 for
    the others"""
    classes: Positive | None = None
    """of outputs, unspecific: only so many classes, drawn anew in each step; all of them when left out"""
    threshold: Threshold | None = None
    """when and how small weights become zero during training; needs validation data. Left out: at the cut
    only"""

    @model_validator(mode="after")
    def _classes_are_outputs(self) -> "Sensitivity":
        if self.of == "loss":
            extra = "mode" if self.mode != "unspecific" else None
            if self.classes is not None:
                extra = "classes"
            if extra:
                raise AtKey(extra, f"'{extra}' is for 'of: outputs'; the loss has one derivative")
        elif self.mode == "specific" and self.classes is not None:
            raise AtKey(
                "classes", "'classes' is for 'mode: unspecific'; specific looks at one class per example"
            )
        return self

    def facts(self) -> Facts:
        return Facts(
            strength=self.strength,
            reach="weights",
            summary="sensitivity ({of}) {strength}"
            if self.of == "loss"
            else "sensitivity ({of}, {mode}) {strength}",
            threshold=self.threshold,
            needs_classes=self.of == "outputs" and self.mode == "specific",
        )


@final
class BnScale(PenaltySpec):
    """bn_scale: l1 on the scales of normalisations, so that whole channels fall silent (network slimming).

    R = strength * sum |scale|, of every normalisation whose channel is in one of the rule's groups
    proximal step:  scale <- sign(scale) * max(0, |scale| - lr * strength)
    sub-gradient:   strength * sign(scale)

    A silent channel still has its weights: choose what goes by criterion bn_scale as well.
    Source: Liu et al., arXiv:1708.06519 (by the sub-gradient).
    """

    kind: Literal["bn_scale"]
    strength: Scheduled
    """lambda, a number or a schedule; 1e-5 to 1e-4 in the paper"""
    solver: Solver = "proximal"
    """proximal reaches exact zeros; subgradient only comes near them"""
    every: Positive = EVERY
    """proximal solver: act on every n-th step with the lr * strength of the n steps added up; 1 acts on each
    step"""

    @model_validator(mode="after")
    def _consistent(self) -> "BnScale":
        _refuse_every(self.every, self.solver)
        return self

    def facts(self) -> Facts:
        return Facts(every=self.every, strength=self.strength, reach="units", summary="bn_scale {strength}")


@final
class GrowingL2(PenaltySpec):
    """growing_l2: an l2 that grows without pause on what has been chosen to go, until nothing is left of it
    (GReg-1).

    gradient on the chosen: min(limit, delta * (1 + floor(step / every))) * w

    Chosen at the first step: what a cut at that moment would remove, by magnitude; single weights by
    `sparsity`.
    Source: Wang et al., arXiv:2012.09243, algorithm 1.
    """

    kind: Literal["growing_l2"]
    delta: NonNegative = 1e-4
    """how much the strength rises each time"""
    every: Positive = 10
    """steps between two rises"""
    limit: NonNegative = 1.0
    """where the strength stays"""

    def facts(self) -> Facts:
        steps = f"{self.every} step" if self.every == 1 else f"{self.every} steps"
        return Facts(
            goal="sparsity or budget",
            chooses=True,
            reach="units",
            summary=f"growing_l2 rising by {{delta}} every {steps} to {{limit}}",
        )


@final
class Agp(PenaltySpec):
    """agp: automated gradual pruning. The smallest are set to zero and held there, more and more of them.

    share at zero: sparsity * (1 - (1 - t)^3),   t from 0 at `start` to 1 at `end`

    By |w| for group weight, by ||w_g|| / sqrt(|g|) for others, over all layers of the rule; chosen anew
    whenever the share rises, from what is not zero. It counts on the clock of its stage; where a stage is cut
    little by little, each cut is a goal, and what lies between two cuts is the stage. Source: Zhu & Gupta,
    arXiv:1710.01878, equation 1.
    """

    kind: Literal["agp"]
    start: Duration = Duration(0, "dur")
    """when the first go"""
    end: Duration = Duration(0.8, "dur")
    """when `sparsity` is reached"""
    every: Duration = Duration(100, "it")
    """how often the share rises"""

    @model_validator(mode="after")
    def _window(self) -> "Agp":
        if self.start.unit == self.end.unit and self.start.value >= self.end.value:
            raise ValueError(
                f"agp starts at {self.start} and ends at {self.end}; 'end' must come after 'start'"
            )
        return self

    def facts(self) -> Facts:
        return Facts(
            goal="sparsity",
            chooses=True,
            moments=(self.start, self.end, self.every),
            strength_is="fraction",
            reach="units",
            summary="agp from {start} to {end}",
        )


@final
class Dns(PenaltySpec):
    """dns: dynamic network surgery. Small single weights are masked; masked ones go on learning and are
    spliced back when they grow.

    t = max(0, mean |w| + c_rate * std |w|) of each layer, as it is when the stage begins
    mask <- 0 where |w| <= 0.9 t, 1 where |w| > 1.1 t, as it was between;   in a step with probability (1 +
    gamma * step)^(-power)
    the model computes with w * mask; the gradient by w * mask moves w

    How many go follows from c_rate; a rule with group `weight` may leave `sparsity` out. Source: Guo et al.,
    arXiv:1608.04493.
    """

    kind: Literal["dns"]
    c_rate: Number = 1.0
    """standard deviations above the mean magnitude: larger masks more"""
    gamma: NonNegative = 1e-4
    """how fast masks come to rest"""
    power: NonNegative = 1.0
    """how fast masks come to rest"""
    stop: Positive | None = None
    """step from which masks stay as they are; never when left out"""

    def facts(self) -> Facts:
        return Facts(reach="weights", summary="dns")


@final
class L0(PenaltySpec):
    """l0: a gate for every group, open or closed, learnt with the weights; groups whose gates have closed
    become zero.

    R = strength * sum over groups g of |g| * P(z_g > 0),   P = sigmoid(a_g - beta * log(-gamma / zeta))
    a step's loss is of w * z_g:  z = min(1, max(0, s * (zeta - gamma) + gamma)),  s = sigmoid((log u - log(1
    - u) + a_g) / beta)
    between epochs and at the end s = sigmoid(a_g);   u uniform in (0, 1), anew for every step;  beta 2/3,
    gamma -0.1, zeta 1.1

    A unit is gated where it arrives, at its consumers' input slices. a_g is moved by an Adam of its own. The
    model computes
    with gates between two steps as well: in a loop of your own call flush() before you evaluate or save.
    Source: Louizos et al., arXiv:1712.01312, equations 10 to 13.
    """

    kind: Literal["l0"]
    strength: Scheduled
    """lambda for each weight, a number or a schedule; the paper's, divided by the number of training
    examples"""
    rate: NonNegative = 0.02
    """learning rate of the gates"""
    closed: Share = Share(5.0, "%")
    """1 - sigmoid(a_g) at the beginning; more lets gates move sooner"""

    @model_validator(mode="after")
    def _gates_can_move(self) -> "L0":
        if not 0 < self.closed.fraction < 1:
            raise AtKey(
                "closed", f"gates cannot start {self.closed} closed: from 0 % and 100 % they never move"
            )
        return self

    def facts(self) -> Facts:
        return Facts(strength=self.strength, reach="arrivals", summary="l0 {strength}")


@final
class VariationalDropout(PenaltySpec):
    """variational_dropout: noise on every single weight, as much as the loss bears; weights that are all
    noise become zero.

    loss + strength * KL;  KL of a weight = 1/2 log(1 + 1/alpha) - k1 * sigmoid(k2 + k3 * log alpha),  alpha =
    sigma^2 / w^2
    a step's loss is of w + sigma * eps;   eps normal, anew for every step;   k = 0.63576, 1.87320, 1.48695
    between epochs and at the end: w where log alpha <= 3, else 0

    eps is drawn once a step for all examples; the paper draws for each (local reparametrisation), with less
    variance.
    log sigma^2 is moved by an Adam of its own. How many go follows; a rule may leave `sparsity` out. The
    model computes with
    noise between two steps as well: in a loop of your own call flush() before you evaluate or save.
    Source: Molchanov et al., arXiv:1701.05369, equations 11 and 14.
    """

    kind: Literal["variational_dropout"]
    strength: Scheduled
    """weight of KL, a number or a schedule; 1 / number of training examples is the paper's, mostly after a
    warm-up from 0"""
    rate: NonNegative = 0.02
    """learning rate of log sigma^2"""

    def facts(self) -> Facts:
        return Facts(strength=self.strength, reach="elements", summary="variational_dropout {strength}")


Penalty = Annotated[
    GroupLasso | L1 | L2 | Gsm | Sensitivity | BnScale | GrowingL2 | Agp | Dns | L0 | VariationalDropout,
    Field(discriminator="kind"),
]
