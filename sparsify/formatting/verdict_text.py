"""Verdicts and folded constants in words."""

from collections.abc import Iterable

from sparsify.formatting.numbers import plural, share, tiny
from sparsify_schemas.cuts import Fold
from sparsify_schemas.report import Verdict


def verdict_words(verdict: Verdict) -> str:
    """What the equality check found, in words."""
    match verdict.outcome:
        case "equal":
            return f"cut verified: equal to the {verdict.reference} (difference {tiny(verdict.difference)})"
        case "statistics change":
            return "cut verified in shape only: it changes what a normalisation averages over"
        case "nothing cut":
            return "nothing was cut"


def fold_notes(folds: Iterable[Fold]) -> Iterable[str]:
    """What became of the constants that removed units emitted: where they went, and what of them is lost and how large."""
    own = list(folds)
    exact = [op for op in own if op.exact]
    if exact:
        yield f"removed units emitted constants, which went exactly into the biases of {plural(len(exact), 'layer')}"
    for op in sorted((op for op in own if not op.exact), key=lambda op: -op.loss)[:LOSSES]:
        inputs = plural(op.channels, "constant input")
        size = f"{share(op.loss)} of its largest output"
        if op.into == "nothing":
            yield f"'{op.module}' lost {inputs} that nothing could take: up to {size}"
        else:
            yield f"'{op.module}' lost {inputs}, of which the mean went into a bias: beside it up to {size} is lost"
    more = sum(not op.exact for op in own) - LOSSES
    if more > 0:
        yield f"{plural(more, 'further layer')} lost less of their constant inputs; the cut log has them all"


LOSSES = 3
"""how many layers that lost constants are named in the notes"""


LABELS = {"macs": "MACs", "params": "parameters", "bytes": "bytes", "peak_memory": "peak memory"}
