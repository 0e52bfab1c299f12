"""Outputs of a file against those of the model that it was made of."""

from pathlib import Path

import pytest
import torch

from sparsify.errors import VerificationError
from sparsify.exporters.compare import compare_outputs

ONES = torch.ones(2, 3)
WANTED = {"batch 2": [ONES, ONES]}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_output_that_is_no_number_is_a_difference_wherever_it_stands(place: int, wrong: float) -> None:
    found = [ONES.clone(), ONES.clone()]
    found[place].fill_(wrong)
    with pytest.raises(VerificationError, match=r"m\.onnx was not written: at batch 2"):
        compare_outputs(Path("m.onnx"), "onnxruntime", lambda: lambda _: found, {"batch 2": ()}, WANTED, 1e-5)


def test_equal_outputs_differ_by_nothing() -> None:
    found = [ONES.clone(), ONES.clone()]
    made = compare_outputs(
        Path("m.onnx"), "onnxruntime", lambda: lambda _: found, {"batch 2": ()}, WANTED, 1e-5
    )
    assert made == 0
