"""Options of baseline torch_pruning: what is refused, and how."""

from typing import Any

import pytest

import sparsify
from sparsify.errors import RecipeError


def load(*baselines: Any) -> Any:
    rule = {"layers": "*", "group": "filter", "sparsity": "50%"}
    return sparsify.load_recipe({"version": 1, "title": "t", "rules": [rule], "baselines": list(baselines)})


def test_a_name_alone_means_the_defaults() -> None:
    options = {"kind": "torch_pruning", "seconds": 5}
    named, given = load("random", "torch_pruning").recipe, load(options, "random").recipe
    assert named.baseline_kinds == ("random", "torch_pruning")
    assert (named.peer_baseline.pruner, named.peer_baseline.seconds) == ("MetaPruner", 600)
    assert str(named.peer_baseline.memory) == "8GiB"
    assert given.baseline_kinds == ("torch_pruning", "random") and given.peer_baseline.seconds == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"pruner": "Meta"},
            "baselines.0.pruner: torch-pruning has no pruner 'Meta'; known: MetaPruner, BasePruner, "
            "MagnitudePruner, GroupNormPruner, BNScalePruner, GrowingRegPruner, or package.module:Class",
        ),
        (
            {"importance": "HessianImportance"},
            "baselines.0.importance: HessianImportance keeps the gradients of the last example alone: its "
            "dictionary has parameters as keys and is asked for names; use 'kind: fisher', which looks at "
            "every example",
        ),
        (
            {"args": {"model": 1}},
            "baselines.0.args.model: 'model' is no choice of a pruner here; known: global_pruning, "
            "isomorphic, max_pruning_ratio, round_to",
        ),
        (
            {"args": {"isomorphic": True}},
            "baselines.0.args.isomorphic: 'isomorphic' ranks over several layers, and without "
            "'global_pruning: true' torch-pruning applies the ranks of all to each; add it, or leave "
            "'isomorphic' out",
        ),
        ({"second": 3}, "baselines.0.second: unknown key; did you mean 'seconds'?"),
        (
            {"batches": 3},
            "baselines.0.batches: MagnitudeImportance looks at the weights alone; leave 'batches' out",
        ),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load({"kind": "torch_pruning", **options})
    assert str(caught.value) == f"<recipe>: {said}"


def test_it_stands_there_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load("torch_pruning", {"kind": "torch_pruning"})
    assert str(caught.value) == "<recipe>: baselines: 'torch_pruning' stands there twice; leave one out"


def test_a_baseline_has_widths_to_narrow() -> None:
    rule = {"layers": "*", "group": "depth", "keep": {"at_least": 1}}
    recipe = {"version": 1, "title": "t", "rules": [rule], "baselines": ["torch_pruning"]}
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe({**recipe, "budget": {"macs": "50%"}})
    assert str(caught.value) == (
        "<recipe>: baselines: 'torch_pruning' narrows layers, and group 'depth' has no widths; leave it out"
    )
