"""What eight dead units leave behind, one row a form of consumer: the table of docs/explanations/proof.md.

python tests/benchmarks/constants.py
"""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "graph" / "surgery"))

import test_fold_constants as forms
import torch

from sparsify_schemas.cuts import AddBias


def row(name: str, built: forms.Built) -> str:
    """One line of the table."""
    model, inputs, layer = built
    result = forms.cut(model, inputs, layer)
    difference = forms.difference(model, result, inputs)
    folds = forms.folds(result)
    loss = max((fold.loss for fold in folds), default=0.0)
    into = {fold.into.replace("_", " ") for fold in folds}
    if any(isinstance(op, AddBias) for op in result.cuts.operations):
        into = {"a created bias" if place == "bias" else place for place in into}
    told = f"up to {100 * loss:.1f} % of the consumer's largest output" if loss else ""
    return (
        f"| {name} | {', '.join(sorted(into))} | {result.verdicts[0].reference} | {difference:.0e} | {told} |"
    )


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(
        "| consumer | the constants went into | compared with | difference to the dense model | "
        "told as lost |"
    )
    print("|---|---|---|---|---|")
    for name, make in forms.EXACT.items():
        print(row(name, forms.build(make)))
    for name, (make, _) in forms.LOSSY.items():
        print(row(name, forms.build(make)))


if __name__ == "__main__":
    main()
