"""torch-pruning's history, read and written: torch-pruning itself is the reference."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.graph import build_map
from sparsify.graph.adoption.pruning_history import Entry, parse_history, read_history, write_history

INPUTS = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Network(nn.Module):
    """A stem, a residual block, a depthwise and a transposed convolution, and a flattened classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 10, 3, padding=1)
        self.outer = nn.Conv2d(10, 12, 3, padding=1)
        self.wise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.down = nn.Conv2d(12, 6, 2, stride=2)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.head = nn.Linear(5 * 8 * 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x)).relu()
        y = y + self.outer(self.inner(y).relu())
        return self.head(self.up(self.down(self.wise(y)).relu()).relu().flatten(1))


def make_network() -> Network:
    torch.manual_seed(1)
    model = Network().eval()
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    nn.init.normal_(model.norm.running_mean)
    return model


MODEL = make_network()
MAP = build_map.build_map(MODEL, INPUTS, {})


def read(*entries: tuple[str, bool, list[int]]) -> dict[str, list[int]]:
    return read_history(MODEL, MAP, parse_history([list(entry) for entry in entries], "history.json"))


def test_indices_count_what_is_left() -> None:
    """Index 0 of the second entry is what index 1 was before the first removed index 0."""
    assert read(("inner", True, [0, 3]), ("inner", True, [0, 1]))["inner"] == [4, 5, 6, 7, 8, 9]
    assert read(("outer", False, [9]), ("inner", True, [8]))["inner"] == list(range(8))


@pytest.mark.parametrize("entry", [("stem", True), ("outer", True), ("wise", True), ("down", False)])
def test_one_group_by_any_of_its_layers(entry: tuple[str, bool]) -> None:
    (kept,) = read((*entry, [2, 11])).values()
    assert kept == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]


def test_inputs_behind_a_flatten_leave_by_whole_maps() -> None:
    assert read(("head", False, list(range(64, 128))))["up"] == [0, 2, 3, 4]
    assert read(("up", True, [1]))["up"] == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            [("nothing", True, [0])],
            "entry 0 of the pruning history names 'nothing', which the dense model does not have",
        ),
        (
            [("inner", True, [1]), ("inner", True, [9])],
            "entry 1 of the pruning history removes index 9 of 'inner', which has 9 outputs by then",
        ),
        (
            [("inner", True, list(range(10)))],
            "entry 0 of the pruning history removes all of 'inner'; torch-pruning 1.6.1 writes such an entry "
            "after group.prune(idxs=...), and cannot read it again itself: remove the entry",
        ),
        (
            [("head", True, [1])],
            "entry 0 of the pruning history removes a part of 'head', and it feeds the network's output",
        ),
        (
            [("head", False, [64, 65])],
            "entry 0 of the pruning history removes 2 of the 64 places in 'head' that unit 1 of 'up' "
            "holds, and a unit leaves as a whole: an attention head, a group of a GroupNorm or what is "
            "coupled with one output",
        ),
        (
            [("stem", False, [1])],
            "entry 0 of the pruning history removes 1 of 'stem', and no unit of the model holds a part of it",
        ),
    ],
)
def test_what_cannot_be_is_named(entries: list[Any], said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)) as caught:
        read(*entries)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"stem": [1]},
            "h.json: a pruning history is a list of [layer, whether outputs leave, indices], as "
            "pruner.pruning_history() returns it; found a dict",
        ),
        (
            [["stem", True]],
            "h.json: entry 0 of the pruning history is not [layer, true or false, indices]",
        ),
        (
            [["stem", True, [float("inf")]]],
            "h.json: entry 0 of the pruning history is not [layer, true or false, indices]",
        ),
        (
            [["stem", True, "12"]],
            "h.json: entry 0 of the pruning history is not [layer, true or false, indices]",
        ),
        (
            [["stem", True, [True, False]]],
            "h.json: entry 0 of the pruning history is not [layer, true or false, indices]",
        ),
        (
            [["stem", True, [1]], ["stem", "out", [1]]],
            "h.json: entry 1 of the pruning history is not [layer, true or false, indices]",
        ),
    ],
)
def test_what_is_no_history(found: Any, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_history(found, "h.json")
    assert str(caught.value) == said


def cut_by_recipe(group: str = "filter", **changes: Any) -> sparsify.pruning.cut.Result:  # type: ignore[name-defined]
    recipe = {
        "version": 1,
        "title": "history",
        "rules": [{"layers": "*", "group": group, "sparsity": "40%", "criterion": {"kind": "random"}}],
        **changes,
    }
    return sparsify.cut(sparsify.make_plan(recipe, MODEL, INPUTS), MODEL, inputs=INPUTS)


def test_torch_pruning_repeats_what_is_written() -> None:
    tp = pytest.importorskip("torch_pruning")
    result = cut_by_recipe()
    history = write_history(MODEL, (result.cuts,))
    assert len(history) == 4
    again = make_network()
    graph = tp.DependencyGraph().build_dependency(again, INPUTS)
    graph.load_pruning_history([[entry.layer, entry.outputs, list(entry.indices)] for entry in history])
    wanted = result.model.state_dict()
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in wanted.items()
    }
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.state_dict().items())


def test_what_is_written_is_read_again() -> None:
    result = cut_by_recipe()
    found = read_history(MODEL, MAP, write_history(MODEL, (result.cuts,)))
    kept = {
        w.group: [i for a, b in w.keep for i in range(a, b)] for w in result.cuts.widths if w.kept < w.width
    }
    assert found == kept


def test_a_history_of_torch_pruning_gives_its_network() -> None:
    tp = pytest.importorskip("torch_pruning")
    cut = make_network()
    pruner = tp.pruner.MetaPruner(
        cut,
        INPUTS,
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=0.4,
        iterative_steps=2,
        ignored_layers=[cut.head],
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    pruner.step()
    keep = read_history(MODEL, MAP, parse_history(pruner.pruning_history(), "h"))
    assert {len(kept) for kept in keep.values()} == {7, 6, 3}
    widths = {name: cut.get_submodule(name).weight.shape[int(name == "up")] for name in keep}
    assert widths == {name: len(kept) for name, kept in keep.items()}
    stem = next(kept for name, kept in keep.items() if name in ("stem", "outer"))
    assert torch.equal(cut.stem.weight, MODEL.stem.weight[stem])


def test_what_a_history_cannot_say() -> None:
    result = cut_by_recipe("depth", rules=[{"layers": "*", "group": "depth", "sparsity": "100%"}])
    with pytest.raises(ModelError) as caught:
        write_history(MODEL, (result.cuts,))
    assert str(caught.value) == (
        "torch-pruning's history knows widths alone, and 'inner' changed otherwise (bypass); export another "
        "format"
    )


def test_entries_are_plain_lists_in_json() -> None:
    assert list(Entry("a", True, (1, 2))) == ["a", True, (1, 2)]
