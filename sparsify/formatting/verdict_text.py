"""Verdicts of the equality check and folded constants in words."""

from collections.abc import Iterable

from sparsify.formatting.numbers import count_noun, format_share, format_tiny
from sparsify_schemas.cuts import Fold
from sparsify_schemas.report import Verdict


def verdict_words(verdict: Verdict) -> str:
    """The outcome of the equality check in words."""
    match verdict.outcome:
        case "equal":
            difference = format_tiny(verdict.difference)
            return f"cut verified: equal to the {verdict.reference} (difference {difference})"
        case "statistics change":
            return (
                f"cut verified against the {verdict.reference} with renormalised statistics; "
                "outputs differ from the dense model until fine-tuned"
            )
        case "nothing cut":
            return "nothing was cut"
        case "wrong":
            difference = format_tiny(verdict.difference)
            return f"cut is wrong: it differs from the masked model by {difference} of the largest output"


def fold_notes(folds: Iterable[Fold]) -> Iterable[str]:
    """Notes on the constant outputs of removed units.

    Which biases they were folded into, and what was lost.
    """
    every = list(folds)
    exact = [op for op in every if op.exact]
    inexact = sorted((op for op in every if not op.exact), key=lambda op: -op.loss)
    if exact:
        layers = count_noun(len(exact), "layer")
        yield f"removed units had constant outputs, which were folded exactly into the biases of {layers}"
    for op in inexact[:LOSSES]:
        inputs = count_noun(op.channels, "constant input")
        size = f"up to {format_share(op.loss)} of its largest output"
        if op.into == "nothing":
            yield f"'{op.module}' lost {inputs} that could not be folded anywhere: {size}"
        else:
            yield f"'{op.module}' lost {inputs}; their mean was folded into a bias, {size} is lost beyond it"
    more = len(inexact) - LOSSES
    if more > 0:
        yield f"{count_noun(more, 'more layer')} lost smaller constant inputs; the cut log lists all"


LOSSES = 3
"""Layers with lost constants that the notes name."""
LABELS = {"macs": "MACs", "params": "parameters", "bytes": "bytes", "peak_memory": "peak memory"}
