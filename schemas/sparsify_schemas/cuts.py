"""The cut log: what was removed, as operations that replay on a fresh dense model without tracing."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sparsify_schemas.base import Positive, Spec, Text, Whole

Range = tuple[Whole, Whole]
"""half-open [start, end)"""


class Width(Spec):
    """What one coupled group keeps."""

    group: Text
    """name of the coupled group: its first layer"""
    width: Positive
    """units before"""
    keep: tuple[Range, ...]
    """units that stay, as half-open ranges; none where the whole group left with a residual branch"""

    @property
    def kept(self) -> int:
        return sum(end - start for start, end in self.keep)


class Narrow(Spec):
    """tensor <- tensor.index_select(dim, keep)"""

    op: Literal["narrow"] = "narrow"
    tensor: Text
    """dotted name of a parameter or buffer"""
    dim: Whole
    """dimension that is narrowed"""
    size: Positive
    """its length before; replay refuses a model where it differs"""
    keep: tuple[Range, ...]
    """indices that stay, as half-open ranges"""


class Shorten(Spec):
    """ModuleList or ModuleDict <- the members that stay, numbered anew. It comes first: what follows in the
    log calls members by their new numbers."""

    op: Literal["shorten"] = "shorten"
    module: Text
    """dotted name of the list, whose members are the experts of a mixture"""
    prefix: str = ""
    """what stands before the number in the names of members: expert_"""
    size: Positive
    """its members before; replay refuses a model where they differ"""
    keep: tuple[Range, ...]
    """members that stay, as half-open ranges"""


class SetAttribute(Spec):
    """module.attribute <- value"""

    op: Literal["set"] = "set"
    module: str
    """dotted name of the module"""
    attribute: Text
    """such as out_channels; inside a container that the module holds a path, such as config.hidden_size"""
    value: int | tuple[int, ...]
    """the new value"""
    own: bool = False
    """whether the module gets a copy of its own of a container that it shares with others, such as config,
    as their widths differ from its own"""


def _one_place(value: tuple[bool, ...]) -> tuple[bool, ...]:
    if value and sum(value) != 1:
        raise ValueError("exactly one place of a returned tuple holds the tensor")
    return value


Returns = Annotated[tuple[bool, ...], AfterValidator(_one_place)]
"""what a module returns: () the tensor itself, else a tuple with the tensor at the place that is true and
nothing elsewhere"""


class Bypass(Spec):
    """module <- a module without parameters that returns its first tensor input"""

    op: Literal["bypass"] = "bypass"
    module: Text
    """dotted name of a residual block, or of a module inside a residual branch"""
    returns: Returns = ()
    """how the tensor is returned; empty: by itself"""


class Silence(Spec):
    """module <- a module without parameters that returns zeros of its first tensor input's shape"""

    op: Literal["silence"] = "silence"
    module: Text
    """dotted name of the module that a residual branch ended in"""
    returns: Returns = ()
    """how the tensor is returned; empty: by itself"""


class Replace(Spec):
    """The module became one that computes the same from the same parameters and takes widths that its own
    class refuses: torch's MultiheadAttention, whose inner width must be that of its inputs, became
    `sparsify.models.attention`'s."""

    op: Literal["replace"] = "replace"
    module: Text
    """dotted name of the module"""
    by: Literal["MultiheadAttention"] = "MultiheadAttention"
    """what it became"""


class Zero(Spec):
    """So many elements of the tensor were set to zero; the zeros are in the weights file."""

    op: Literal["zero"] = "zero"
    tensor: Text
    """dotted name of a parameter"""
    count: Whole
    """elements that are zero"""
    size: Positive
    """elements in all"""


class AddBias(Spec):
    """A layer without a bias got one, which takes what removed constant units emitted; a recurrent layer got
    all of its biases."""

    op: Literal["bias"] = "bias"
    module: Text
    """dotted name of the layer"""


class Fold(Spec):
    """Removed units emitted constants, which the weights prove; a consumer lost them and got them back. The
    values are in the weights file."""

    op: Literal["fold"] = "fold"
    module: Text
    """dotted name of the consumer"""
    channels: Positive
    """constant channels that it lost"""
    exact: bool
    """false where the constants' effect is not one number: next to the zeros of a padding, along a
    sequence"""
    loss: float = Field(default=0.0, ge=0.0)
    """largest deviation of the effect from what was put back, in float64, relative to the consumer's largest
    output"""
    into: Literal["bias", "running_mean", "nothing"] = "bias"
    """what took it: a bias, the running mean of the BatchNorm behind the consumer, or nothing, so that it is
    lost"""


class Crop(Spec):
    """A convolution's kernel shrinks to the positions on a grid; padding and dilation give way, so that it
    computes the same."""

    op: Literal["crop"] = "crop"
    module: Text
    """dotted name of the convolution"""
    kernel: tuple[Positive, ...]
    """its size before; replay refuses a model where it differs"""
    grids: tuple[tuple[Whole, Positive, Positive], ...]
    """first, step and count of the positions that stay, along each dimension"""


class Gather(Spec):
    """A layer gathers the live columns of its weight as a matrix [outputs, channels * kernel positions], and
    computes with them alone."""

    op: Literal["gather"] = "gather"
    module: str
    """dotted name of the layer"""
    size: Positive
    """columns before; replay refuses a model where they differ"""
    keep: tuple[Range, ...]
    """columns that stay, as half-open ranges"""


class Select(Spec):
    """A module selects places of a tensor that it is given: whoever makes it still makes those of all heads,
    as the slopes of ALiBi, which would be others for fewer heads."""

    op: Literal["select"] = "select"
    module: Text
    """dotted name of the module"""
    argument: int | str
    """place or name of the argument of its `forward`"""
    dim: Whole
    """dimension of the tensor; places repeat along it if its length is a multiple of `size`"""
    size: Positive
    """places before"""
    keep: tuple[Range, ...]
    """places that stay, as half-open ranges"""


Operation = Annotated[
    Shorten
    | Narrow
    | Replace
    | SetAttribute
    | Bypass
    | Silence
    | Zero
    | AddBias
    | Fold
    | Crop
    | Gather
    | Select,
    Field(discriminator="op"),
]


class Zeroed(Spec):
    """What one rule set to zero inside weight tensors."""

    rule: Whole
    """its index in the recipe"""
    group: Text
    """what it chose among: weight, shape, tap, 4x1 or 2:4"""
    groups: Whole
    """groups in the tensors when it chose"""
    gone: Whole
    """groups that are zero, those that were zero before included"""
    weights: Whole
    """weights in the tensors when it chose"""
    zeros: Whole
    """weights in the groups that are zero"""


class Trial(Spec):
    """A layer timed with its zeros against the same layer that gathers, on one target."""

    target: Text
    """name in the recipe"""
    dense_ms: float
    gathered_ms: float
    speedup: float
    """median of dense / gathered over interleaved pairs"""
    low: float
    """lower end of the 95 % bootstrap interval"""
    high: float
    """upper end"""


class Execution(Spec):
    """How a layer with dead shapes or taps is computed, and why."""

    module: str
    """dotted name of the layer"""
    form: Literal["dense", "cropped", "gathered", "cropped and gathered"]
    """dense: as it was, zeros included"""
    columns: Positive
    """columns of the weight as a matrix, before"""
    live: Positive
    """columns that it computes with now"""
    why: Text
    """in words"""
    trials: tuple[Trial, ...] = ()
    """the timings that decided, where gathering was tried"""


class Cuts(Spec):
    """Everything that a cut did, in order."""

    version: Literal[1] = 1
    plan: Text
    """digest of the plan that it follows"""
    widths: tuple[Width, ...] = ()
    """what each coupled group keeps"""
    operations: tuple[Operation, ...] = ()
    """what was done to which tensor and attribute"""
    zeroed: tuple[Zeroed, ...] = ()
    """what each rule on groups inside tensors set to zero"""
    executions: tuple[Execution, ...] = ()
    """how layers with dead shapes or taps are computed"""
    notes: tuple[str, ...] = ()
    """what a user of the cut model must know: numbers on its modules that still state an old width"""


class Rounds(Spec):
    """The cuts of a run that cut more than once: each replays on what the one before it left."""

    version: Literal[2] = 2
    rounds: tuple[Cuts, ...] = Field(min_length=2)
    """in order"""


Log = Annotated[Cuts | Rounds, Field(discriminator="version")]
"""What cuts.json holds."""
