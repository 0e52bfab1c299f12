"""What is refused before the first epoch."""

from pathlib import Path

import pytest

import sparsify
from sparsify.errors import RecipeError


def test_apply_refuses_a_criterion_that_needs_data_where_the_recipe_has_none(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\ntitle: t\nmodel: {build: sparsify.models.digits_cnn}\ninputs: [{shape: [2, 1, 8, 8]}]\n"
        "rules:\n- {layers: Conv2d, group: filter, sparsity: 50%}\n"
        "- {layers: Linear, group: neuron, sparsity: 50%, criterion: {kind: wanda}}\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as caught:
        sparsify.apply(tmp_path / "recipe.yaml", from_scratch=True, out=tmp_path / "runs")
    assert str(caught.value).endswith(
        "recipe.yaml:7:61: rules.1.criterion: criterion 'wanda' needs 'data': it looks at training batches; "
        "add 'data' to the recipe, or pass batches to sparsify.cut in a loop of your own"
    )
    assert not (tmp_path / "runs").exists()
