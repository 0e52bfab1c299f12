"""What the consumers of removed constants lose: the shift of each bias or running mean."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

SAME_CONSTANT = 1e-9
"""largest difference between two derivations of a constant, relative to its largest value"""


TargetKind = Literal["bias", "running_mean", "nothing"]


@dataclass(frozen=True)
class ShiftTarget:
    """The bias or running mean that can absorb a shift of a consumer's outputs."""

    into: TargetKind
    tensor: str
    """name of the bias or running mean; for a bias to be created, the name that it will get"""
    index: Tensor
    """for every output of the product, the index of its element in the flattened tensor"""
    module: str = ""
    """layer in which a bias is to be created"""
    rows_of: str = ""
    """packed weight with one row for each element of the created bias, if several products share that bias"""


@dataclass(frozen=True)
class Shift:
    """What one target absorbs of the constants that a consumer loses."""

    module: str
    """the consumer"""
    target: ShiftTarget | None
    channels: int
    """number of constant inputs that the consumer loses"""
    values: Tensor
    """the value that each output of the dense consumer loses, flattened"""
    masked: Tensor
    """the part of `values` from units that are zero in the masked model; the other units are unchanged
    there"""
    kept: Tensor
    """whether each output stays"""
    loss: float
    """largest deviation of the lost values from `values`, relative to the consumer's largest output"""
    exact: bool

    @property
    def sign(self) -> float:
        """Sign of the shift in the target: a running mean is subtracted."""
        return -1.0 if self.target is not None and self.target.into == "running_mean" else 1.0


@dataclass(frozen=True)
class Constants:
    """What a cut removes that is constant."""

    shifts: tuple[Shift, ...] = ()
    harmless: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """coupled group -> removed units whose constants `shifts` restore exactly: removing them changes
    nothing"""
    accounted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """coupled group -> removed units whose constants `shifts` account for"""


def constants_match(one: Constants, other: Constants) -> bool:
    """Whether two derivations give each target the same values, up to rounding."""
    ours, theirs = _values_by_element(one), _values_by_element(other)
    return ours.keys() == theirs.keys() and all(
        _values_match(values, theirs[key]) for key, values in ours.items()
    )


def _values_by_element(constants: Constants) -> dict[tuple[str, int], Tensor]:
    placed = [(shift.target, shift.values) for shift in constants.shifts if shift.target is not None]
    return {(target.tensor, int(target.index[0])): values for target, values in placed}


def _values_match(one: Tensor, other: Tensor) -> bool:
    largest = max(float(one.abs().max()), float(other.abs().max()))
    return one.shape == other.shape and float((one - other).abs().max()) <= SAME_CONSTANT * largest
