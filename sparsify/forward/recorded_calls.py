"""How a model was called, without the values: what a plan keeps of its example inputs. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RecordedTensor:
    """A tensor that a call took, and how it is redrawn: `kind`, `low` and `high` as in
    `fresh_inputs.Draw`."""

    shape: tuple[int, ...]
    dtype: str
    """as torch names it"""
    kind: str = "normal"
    low: float = 0.0
    high: float = 1.0
    batch: int | None = 0
    """the dimension that counts examples; None if it has none"""


@dataclass(frozen=True)
class Argument:
    """An argument of a call: a tensor, a plain value, or a container of them."""

    name: str | None
    """keyword or key; None for a positional argument"""
    form: str
    """tensor, value, list, tuple, mapping; object for a value that cannot be rebuilt from its description"""
    tensor: RecordedTensor | None = None
    value: bool | int | float | str | None = None
    items: tuple["Argument", ...] = ()


@dataclass(frozen=True)
class RecordedCall:
    """One call of a model."""

    method: str
    arguments: tuple[Argument, ...]
    fixed: bool = False
    """whether it only accepts this number of examples"""
