"""A plan as text: the golden page, and what it must never hide."""

from dataclasses import replace
from pathlib import Path

import pytest

import sparsify
from sparsify.graph.model_map import Coupled, Layer, ModelMap, Slice, Span, Tensor
from sparsify.pruning.planning.plan import Assignment, Floor, Plan
from sparsify.reporting.plan_tables import compute_costs, list_tables, summarize
from sparsify_schemas.recipe import Recipe

GOLDEN = Path(__file__).parents[2] / "golden"


def out(tensor: str, width: int) -> Slice:
    return Slice(tensor, 0, "out", (Span(0, 0, width),))


def into(tensor: str, width: int, repeat: int = 1) -> Slice:
    return Slice(tensor, 1, "in", (Span(0, 0, width, repeat),))


def small_map() -> ModelMap:
    """conv1 and layer1.conv2 are joined by a residual sum; the head sees 4 x 4 maps, flattened."""
    shapes = {
        "conv1.weight": (16, 3, 3, 3),
        "bn1.weight": (16,),
        "layer1.conv1.weight": (16, 16, 3, 3),
        "layer1.conv2.weight": (16, 16, 3, 3),
        "fc1.weight": (64, 256),
        "fc2.weight": (10, 64),
    }
    macs = {"conv1": 442_368, "layer1.conv1": 2_359_296, "layer1.conv2": 2_359_296, "fc1": 16_384, "fc2": 640}
    kinds = {"bn1": "BatchNorm2d", "fc1": "Linear", "fc2": "Linear"}
    layers = tuple(
        Layer(
            n.removesuffix(".weight"),
            kinds.get(n.removesuffix(".weight"), "Conv2d"),
            s,
            macs.get(n.removesuffix(".weight"), 0),
            s[-1],
            s[0],
        )
        for n, s in shapes.items()
    )
    coupled = (
        Coupled(
            "conv1",
            16,
            (
                out("conv1.weight", 16),
                out("bn1.weight", 16),
                out("layer1.conv2.weight", 16),
                into("layer1.conv1.weight", 16),
                into("fc1.weight", 16, 16),
            ),
        ),
        Coupled("layer1.conv1", 16, (out("layer1.conv1.weight", 16), into("layer1.conv2.weight", 16))),
        Coupled("fc1", 64, (out("fc1.weight", 64), into("fc2.weight", 64))),
        Coupled("fc2", 10, (out("fc2.weight", 10),), protected="its units are outputs of the model"),
    )
    return ModelMap(
        layers, tuple(Tensor(n, s, 4, True) for n, s in shapes.items()), coupled, sum(macs.values())
    )


def small_plan() -> Plan:
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "title": "A small residual net",
            "data": {"source": "digits"},
            "budget": {"macs": "40%"},
            "rules": [
                {
                    "layers": ["conv1", "layer1.*"],
                    "group": "filter",
                    "penalty": {
                        "kind": "group_lasso",
                        "strength": {"kind": "linear", "from": 0, "to": 1e-3, "end": "10ep"},
                    },
                    "keep": {"at_least": 2, "multiple_of": 4},
                },
                {"layers": "fc1", "group": "weight", "sparsity": "50%"},
                {"layers": "fc2", "protect": True},
            ],
            "stages": [
                {
                    "kind": "train",
                    "name": "learn",
                    "epochs": 30,
                    "optimizer": {"kind": "sgd", "lr": 0.01, "momentum": 0.9},
                },
                {"kind": "cut"},
                {
                    "kind": "train",
                    "name": "finetune",
                    "epochs": 5,
                    "penalties": False,
                    "optimizer": {"kind": "sgd", "lr": 0.001},
                },
            ],
        }
    )
    assignments = (
        Assignment(0, ("conv1", "layer1.conv1", "layer1.conv2"), ("conv1", "layer1.conv1"), multiple=4),
        Assignment(1, ("fc1",), (), ("fc1.weight",)),
    )
    floors = (Floor("macs", 5_177_984.0, 2_071_193.6, 90_112.0),)
    notes = (
        "rules.1: weights are set to zero and stay in the tensors; this brings no speed and no smaller file",
    )
    return Plan(recipe, small_map(), assignments, floors, notes, (("conv1", 12), ("layer1.conv1", 4)))


def test_the_page_is_the_golden_one() -> None:
    text = f"{sparsify.describe(small_plan())}\n".replace(small_plan().digest, "0123456789abcdef")
    assert text == (GOLDEN / "small.plan.txt").read_text()


@pytest.mark.parametrize(
    ("limit", "shown"), [("50%", "86.2 KiB"), ("64KiB", "86.2 KiB"), ("60kB", "88.3 kB")]
)
def test_bytes_are_shown_in_the_units_of_the_budget(limit: str, shown: str) -> None:
    plan = small_plan()
    recipe = Recipe.model_validate(
        {**plan.recipe.model_dump(by_alias=True, exclude_unset=True), "budget": {"bytes": limit}}
    )
    model = next(t for t in list_tables(replace(plan, recipe=recipe)) if t.title == "Model")
    assert model.rows[2][:2] == ("bytes", shown)


def test_random_weights_are_called_random() -> None:
    plan = replace(small_plan(), random=True)
    assert sparsify.describe(plan).count("ut by the current weights (which are random)") == 2
    assert plan.digest == small_plan().digest


def test_costs_shrink_with_the_widths_kept() -> None:
    now = compute_costs(small_plan())
    conv1, block, head = 12 / 16, 4 / 16, 16_384 * 12 / 16 + 640
    assert now["macs"] == pytest.approx(442_368 * conv1 + 2 * 2_359_296 * block * conv1 + head)
    assert compute_costs(replace(small_plan(), preview=()))["macs"] == small_map().macs


def test_without_a_preview_nothing_is_claimed_of_the_cut() -> None:
    plan = replace(small_plan(), preview=())
    assert "would leave" not in summarize(plan)
    model = next(t for t in list_tables(plan) if t.title == "Model")
    assert {row[2] for row in model.rows} == {"-"}


def test_every_protected_group_is_named_with_its_reason() -> None:
    protected = next(t for t in list_tables(small_plan()) if t.title == "Protected")
    assert protected.rows == (("fc2 (10)", "its units are outputs of the model"),)
    assert protected.notes == ("No rule reaches the width of fc1.",)


def test_a_model_with_many_layers_stays_readable() -> None:
    plan = small_plan()
    many = tuple(
        Coupled(f"extra{i}", 8, (out("bn1.weight", 8),), protected="beyond what can be followed")
        for i in range(40)
    )
    plan = replace(plan, map=replace(plan.map, coupled=plan.map.coupled + many))
    assert "and 36 more" in sparsify.describe(plan)
    assert max(map(len, sparsify.describe(plan).splitlines())) <= 130


@pytest.mark.parametrize(
    ("rule", "title", "row", "deeds"),
    [
        (
            {"group": "tap", "penalty": {"kind": "group_lasso", "strength": 1e-3}},
            "rules.0: taps of layer1.conv1",
            ("layer1.conv1.weight", "16 x 16 x 3 x 3", "2.30 k", "9"),
            (
                "Penalty group_lasso 0.001, pruned by lowest magnitude, groups that are "
                "already zero are removed."
            ),
        ),
        (
            {"group": "shape", "sparsity": "50%", "keep": {"at_least": 4}},
            "rules.0: shapes of layer1.conv1",
            ("layer1.conv1.weight", "16 x 16 x 3 x 3", "2.30 k", "144"),
            "No penalty, pruned by lowest magnitude, 50 % removed, at least 4 kept.",
        ),
        (
            {"group": "4x1", "sparsity": "50%"},
            "rules.0: 4x1 blocks of layer1.conv1",
            ("layer1.conv1.weight", "16 x 16 x 3 x 3", "2.30 k", "576"),
            "No penalty, pruned by lowest magnitude, 50 % removed.",
        ),
        (
            {"group": "2:4"},
            "rules.0: 2:4 patterns of layer1.conv1",
            ("layer1.conv1.weight", "16 x 16 x 3 x 3", "2.30 k"),
            "No penalty, pruned by lowest magnitude, 2 of every 4 weights along the inputs are kept.",
        ),
    ],
)
def test_groups_inside_a_tensor(
    rule: dict[str, object], title: str, row: tuple[str, ...], deeds: str
) -> None:
    recipe = Recipe.model_validate(
        {"version": 1, "title": "t", "rules": [{"layers": "layer1.conv1", **rule}]}
    )
    plan = replace(
        small_plan(),
        recipe=recipe,
        assignments=(Assignment(0, ("layer1.conv1",), (), ("layer1.conv1.weight",)),),
    )
    table = list_tables(plan)[0]
    assert (table.title, table.rows, table.notes) == (title, (row,), (deeds,))
