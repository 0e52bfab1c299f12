"""The profile of a network: what each layer bears to lose. `sparsify sensitivity` writes it, a recipe's `keep.limits` reads it."""

from typing import Annotated, Literal

from pydantic import Field

from sparsify_schemas.base import Positive, Spec, Text, Whole
from sparsify_schemas.units import Share

By = Literal["ablation", "taylor", "gsm"]
Part = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Point(Spec):
    """One layer with some of its units gone and all else as it was."""

    share: Part
    """share asked for: of the layer's own units; by gsm of those of all layers together"""
    removed: Whole
    """units of the layer that it comes to"""
    loss: float | None = None
    """mean cross-entropy without them: measured, or by taylor predicted; null by gsm"""
    accuracy: float | None = None
    """share classified rightly without them, as measured; null where nothing is measured"""


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
    """ablation: units are removed and the rest is validated; taylor: the first-order change of the loss; gsm: what global sparse momentum would leave out"""
    digest: Text
    """of what it depends on: model, data, layers, criteria, seed, number of examples"""
    examples: Positive
    """validation examples"""
    loss: float
    """of the whole model on them"""
    accuracy: float
    """of the whole model on them"""
    curves: tuple[Curve, ...] = ()
    """in the order of the model's layers"""
    tolerance: str | None = None
    """what the limits allow: `1%` of validated accuracy (points), by taylor of the loss; by gsm the share of all units that goes"""
    limits: dict[Text, Share] = {}
    """coupled group -> largest share of its units that is within the tolerance"""
