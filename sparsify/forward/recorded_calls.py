"""How a model was called, without the numbers: what a plan keeps of its example inputs. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RecordedTensor:
    """A tensor that a call took, as it is drawn anew; `kind` and what `low` and `high` mean as in `redrawing.Draw`."""

    shape: tuple[int, ...]
    dtype: str
    """as torch names it"""
    kind: str = "normal"
    low: float = 0.0
    high: float = 1.0
    batch: int | None = 0
    """the dimension that counts examples; None where it has none"""


@dataclass(frozen=True)
class Argument:
    """What a call took: a tensor, a plain value, or a container of them."""

    name: str | None
    """keyword or key; None by position"""
    form: str
    """tensor, value, list, tuple, mapping; object for what cannot be made anew from its description"""
    tensor: RecordedTensor | None = None
    value: bool | int | float | str | None = None
    items: tuple["Argument", ...] = ()


@dataclass(frozen=True)
class RecordedCall:
    """One call of a model."""

    method: str
    arguments: tuple[Argument, ...]
    fixed: bool = False
    """whether it takes no other number of examples"""
