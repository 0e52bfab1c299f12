"""How one of our coupled groups compares with what another package couples. Imports no torch."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GroupComparison:
    """One coupled group beside that of torch-pruning."""

    group: str
    width: int
    differences: tuple[str, ...] = ()
    """in words; none where both couple the same channels of the same layers"""
    protected: str | None = None
    """why this package lets no unit of it leave; None if units may"""


@dataclass(frozen=True)
class CrossCheck:
    """All coupled groups of a model beside those of torch-pruning."""

    groups: tuple[GroupComparison, ...] = ()
    failure: str = ""
    """`raised: ...` or `timed out ...`, where it has no groups at all"""

    def to_json(self) -> dict[str, Any]:
        """A mapping that `json.dumps` takes."""
        return asdict(self)
