"""Whether the log of a cut explains why a number has changed, so that a damaged log sets no other."""

from sparsify.graph.surgery.module_integers import Number
from sparsify.graph.surgery.width_names import is_head_count
from sparsify_schemas.cuts import Cuts, Narrow, SetAttribute


def _count_kept(op: Narrow) -> int:
    return sum(end - start for start, end in op.keep)


def is_explained(cuts: Cuts, name: str, old: Number, new: Number) -> bool:
    """Whether a log explains why a number of this name changed.

    It does if it narrows a dimension so, or sets a layer's number so. Heads are counted as whole heads:
    4 become 2 if 4 * 16 rows become 2 * 16.
    """
    narrowed = [op for op in cuts.operations if isinstance(op, Narrow)]
    lengths = {(op.size, _count_kept(op)) for op in narrowed}
    values = {op.value for op in cuts.operations if isinstance(op, SetAttribute) and "." not in op.attribute}

    def follows(before: int, after: int) -> bool:
        heads = is_head_count(name) and any(size * after == kept * before for size, kept in lengths)
        return before == after or (before, after) in lengths or after in values or heads

    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(map(follows, old, new))
    if isinstance(old, tuple) or isinstance(new, tuple):
        return False
    return follows(old, new)
