"""What is refused before the first epoch."""

from pathlib import Path

import pytest
import torch
from torch import nn

import sparsify
from sparsify import recipe
from sparsify.data.examples import Datasets, Examples
from sparsify.errors import RecipeError
from sparsify.objective.objective import CLASSIFICATION
from sparsify.runs.preflight import check_stages


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


def test_statistics_cannot_be_taken_anew_in_a_model_that_keeps_none(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\ntitle: t\nmodel: {build: sparsify.models.digits_cnn}\ndata: {source: digits}\n"
        "rules:\n- {layers: Conv2d, group: filter, sparsity: 50%}\n"
        "stages: [{kind: cut}, {kind: repair, method: batch_norm}]\n",
        encoding="utf-8",
    )
    loaded, nothing = recipe.load(tmp_path / "recipe.yaml"), Examples(torch.rand(0, 2), torch.zeros(0))
    data = Datasets(nothing, nothing, nothing, 0)
    check_stages(loaded, nn.BatchNorm1d(2), data, CLASSIFICATION)
    with pytest.raises(RecipeError) as caught:
        check_stages(loaded, nn.BatchNorm1d(2, track_running_stats=False), data, CLASSIFICATION)
    assert str(caught.value).endswith(
        "recipe.yaml:7:46: stages.1.method: 'batch_norm' takes running statistics anew, and the model has no "
        "batch normalisation that keeps them; take 'least_squares'"
    )
