"""Targets by a name: one that is not there, or that nothing looks for, is said."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsify.data import Datasets, load_data
from sparsify.data.targets import split_batch
from sparsify.errors import DataError
from sparsify_schemas.data import Data
from sparsify_schemas.task import Task

MODULE = """
import torch
from torch.utils.data import TensorDataset
X, Y = torch.arange(40.0).view(10, 4), torch.arange(10) % 2
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 10
    def __getitem__(self, i): return {"a": X[i], "label": Y[i]}
class Alone(Rows):
    def __getitem__(self, i): return X[i]
class Parts(Rows):
    def __getitem__(self, i):
        return X[i], {"size": float(i), "corners": torch.zeros(1 + i % 2, 4)}
def mappings(): return ({"a": X, "label": Y},) * 2
def rows(): return Rows(), Rows()
def pairs(): return ((X, Y),) * 2
def sets(): return (TensorDataset(X, Y),) * 2
def arrays(): return X, X
def alone(): return Alone(), Alone()
def parts(): return Parts(), Parts()
"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "named_targets.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "named_targets", raising=False)
    monkeypatch.chdir(tmp_path)


def load(name: str, task: Any = None, **spec: Any) -> Datasets:
    given = {"source": f"named_targets:{name}", "validation": "0%", **spec}
    return load_data(Data.model_validate(given), 0, Task.model_validate(task or {}))


PAIRS = "data.target is a key of mappings, and this is"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mappings", "train: has no key 'lable', which data.target names; its keys are a, label"),
        ("rows", "train: an example has no key 'lable', which data.target names; its keys are a, label"),
        ("pairs", f"train: {PAIRS} a pair (inputs, targets); leave it out"),
        ("sets", f"train: {PAIRS} a Dataset of pairs (inputs, targets); leave it out"),
        ("arrays", f"train: {PAIRS} an array without targets; leave it out"),
        ("alone", f"train: {PAIRS} a Dataset of arrays without targets; leave it out"),
    ],
)
def test_a_name_that_leads_nowhere(name: str, message: str) -> None:
    is_dataset = name in ("rows", "sets", "alone")
    for lazy in (False, True) if is_dataset else (False,):
        with pytest.raises(DataError) as caught:
            load(name, target="lable", lazy=lazy)
        assert str(caught.value) == f"named_targets:{name}: {message}"


@pytest.mark.parametrize("name", ["mappings", "rows"])
def test_a_name_that_is_there(name: str) -> None:
    data = load(name, target="label")
    assert data.train.targets.tolist() == [0, 1] * 5 and set(data.train.inputs) == {"a"}


def test_a_batch_without_the_named_target() -> None:
    with pytest.raises(DataError) as caught:
        split_batch({"a": torch.zeros(2), "label": torch.zeros(2)}, "y")
    assert str(caught.value) == "a batch has no key 'y', which data.target names; its keys are a, label"


def test_targets_of_ones_own_are_handed_over_by_name() -> None:
    data = load("parts", {"loss": "some:loss"})
    _, targets = data.train[:2].batch()
    assert targets["size"].tolist() == [0, 1]
    assert [corners.shape for corners in targets["corners"]] == [(1, 4), (2, 4)]


def test_a_batch_may_lack_the_targets_that_a_recipe_names() -> None:
    with pytest.raises(DataError) as caught:
        split_batch({"x": 1, "label": 2}, "class")
    assert str(caught.value) == "a batch has no key 'class', which data.target names; its keys are x, label"
    assert split_batch({"x": 1, "label": 2}, "class", optional=True) == ({"x": 1}, 2)
    assert split_batch({"x": 1, "class": 2}, "class", optional=True) == ({"x": 1}, 2)
