"""Spans: compressing which index belongs to which unit, and reading it back."""

import numpy as np
import pytest

from sparsify.graph.coupled_groups import _locate_units, compress_spans
from sparsify.graph.model_map import Span
from sparsify.graph.surgery.operations import indices_of_units


@pytest.mark.parametrize(
    ("classes", "units", "wanted"),
    [
        ([5, 6, 7], [5, 6, 7], (Span(0, 0, 3),)),
        ([5, 5, 6, 6, 7, 7], [5, 6, 7], (Span(0, 0, 3, 2),)),
        ([1, 1, 5, 6], [5, 6], (Span(2, 0, 2),)),
        ([5, 6, 5, 6], [5, 6], (Span(0, 0, 2), Span(2, 0, 2))),
        ([5, 5, 6], [5, 6], (Span(0, 0, 1, 2), Span(2, 1, 1))),
        ([6, 5], [5, 6], (Span(0, 1, 1), Span(1, 0, 1))),
        ([5, 9, 6], [5, 6], (Span(0, 0, 1), Span(2, 1, 1))),
        ([1, 2], [5], ()),
    ],
)
def test_examples(classes: list[int], units: list[int], wanted: tuple[Span, ...]) -> None:
    assert compress_spans(*_locate_units(np.array(classes), np.array(units))) == wanted


def test_reading_back_gives_what_was_compressed() -> None:
    generator = np.random.default_rng(0)
    for _ in range(500):
        classes = np.repeat(generator.integers(0, 8, generator.integers(1, 30)), generator.integers(1, 4))
        units = np.unique(generator.integers(0, 8, 5))
        leaves = np.flatnonzero(generator.random(len(units)) < 0.5)
        found = indices_of_units(compress_spans(*_locate_units(classes, units)), leaves)
        assert found.tolist() == np.flatnonzero(np.isin(classes, units[leaves])).tolist()
