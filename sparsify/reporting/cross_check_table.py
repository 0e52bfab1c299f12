"""Our coupled groups beside those of torch-pruning, as a table."""

from sparsify.formatting.numbers import count_noun
from sparsify.formatting.table import Table, make_columns
from sparsify.peers.group_comparison import CrossCheck, GroupComparison

TITLE = "Coupled groups beside torch-pruning's"


def list_parts(found: CrossCheck) -> tuple[str | Table, ...]:
    """A table with a row for each group that differs, and what is the same counted; that alone where none
    does."""
    differing = [comparison for comparison in found.groups if comparison.differences]
    note = _summarize(found, len(differing))
    if not differing:
        return (note,)
    rows = tuple(map(_describe_group, differing))
    return (Table(TITLE, make_columns("coupled group", ">units", "torch-pruning"), rows, (note,)),)


def _describe_group(comparison: GroupComparison) -> tuple[str, ...]:
    said = "; ".join(comparison.differences)
    if comparison.protected is not None:
        said = f"{said} (protected here: {comparison.protected})"
    return comparison.group, str(comparison.width), said


def _summarize(found: CrossCheck, differing: int) -> str:
    if found.failure:
        return f"torch-pruning has no groups of this model: {found.failure}."
    same = len(found.groups) - differing
    groups = count_noun(len(found.groups), "coupled group")
    return f"{same} of {groups} are the same in torch-pruning's dependency graph."
