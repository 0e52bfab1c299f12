"""The profile of a network: what each layer bears to lose. `sparsify sensitivity` writes it, a recipe's
`keep.limits` reads it."""

from typing import Annotated, Any, Literal, assert_never

from pydantic import Field, model_validator

from sparsify_schemas.base import Positive, Spec, Text, Whole
from sparsify_schemas.budget import parse_drop
from sparsify_schemas.task import Facts
from sparsify_schemas.units import Points, Share

By = Literal["ablation", "taylor", "gsm"]
Tolerance = Points | Share | float
Part = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _rename_accuracy(value: Any) -> Any:
    """Profiles of before the deciding metric had a name call it accuracy."""
    if not isinstance(value, dict):
        return value
    return {"metric" if name == "accuracy" else name: held for name, held in value.items()}


class Point(Spec):
    """One layer with some of its units gone and all else as it was."""

    share: Part
    """share asked for: of the layer's own units; by gsm of those of all layers together"""
    removed: Whole
    """units of the layer that it comes to"""
    loss: float | None = None
    """mean cross-entropy without them: measured, or by taylor predicted; null by gsm"""
    metric: float | None = None
    """the deciding metric without them, as measured; null where nothing is measured"""

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, value: Any) -> Any:
        return _rename_accuracy(value)


class Curve(Spec):
    """One layer, with everything that its units are coupled to."""

    group: Text
    """coupled group, named after its first layer"""
    layers: tuple[Text, ...]
    """layers whose outputs leave together"""
    width: Positive
    """units"""
    points: tuple[Point, ...] = ()
    """by ascending share"""


class Profile(Spec):
    """How much each layer bears to lose, judged on validation examples."""

    version: Literal[1] = 1
    by: By
    """ablation: units are removed and the rest is validated; taylor: the first-order change of the loss; gsm:
    what global sparse momentum would leave out"""
    digest: Text
    """of what it depends on: model, data, layers, criteria, seed, number of examples"""
    network: str | None = None
    """digest of the structure of the network, without its weights: names, types and shapes of its layers and
    tensors; null in files of before it was written"""
    examples: Positive
    """validation examples"""
    loss: float
    """of the whole model on them"""
    metric: float
    """the deciding metric of the whole model on them"""
    judged_by: Facts = Field(default=Facts(), exclude_if=lambda found: found == Facts())
    """what the deciding metric is"""
    curves: tuple[Curve, ...] = ()
    """in the order of the model's layers"""
    tolerance: str | None = None
    """what the limits allow: `1pp` of the deciding metric, or `5%` where that is no share; by taylor `1%` of
    the loss; by gsm the share of all units that goes"""
    limits: dict[Text, Share] = {}
    """coupled group -> largest share of its units that is within the tolerance"""

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, value: Any) -> Any:
        return _rename_accuracy(value)


def read_tolerance(by: By, text: str) -> Tolerance:
    """What limits allow: by ablation a drop of the deciding metric, `1pp`, or `5%` of the whole model's
    figure where that is no share; by taylor a share of the loss, by gsm one of all units. Raises
    ValueError."""
    match by:
        case "ablation":
            return parse_drop(text)
        case "taylor":
            return _read_share("by taylor a tolerance is a share of the loss", text)
        case "gsm":
            return _read_share("by gsm it is the share of all units that goes", text)
        case _:
            assert_never(by)


def _read_share(means: str, text: str) -> Share:
    try:
        return Share.parse(text)
    except ValueError as error:
        raise ValueError(f"{means}; {error}") from None
