"""Recipe against model: the exact text of every complaint."""

from pathlib import Path

import pytest

from sparsify.errors import RecipeError
from sparsify.graph.model_map import Coupled, Layer, ModelMap, Slice, Span, Tensor
from sparsify.pruning.planning.compile import compile_plan
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import load

HEAD = "version: 1\ntitle: t\n"


def residual() -> ModelMap:
    """conv1 and conv3 join in a sum (coupled group conv1), conv2 between them; fc is the output."""
    span8, span4, span2 = (Span(0, 0, 8),), (Span(0, 0, 4),), (Span(0, 0, 2),)
    tensors = [
        Tensor("conv1.weight", (8, 3, 3, 3), 4, True),
        Tensor("conv2.weight", (4, 8, 3, 3), 4, True),
        Tensor("conv3.weight", (8, 4, 3, 3), 4, True),
        Tensor("fc.weight", (2, 8), 4, True),
    ]
    layers = [
        Layer(
            t.name.removesuffix(".weight"),
            "Linear" if t.name == "fc.weight" else "Conv2d",
            t.shape,
            t.numel * 10,
            t.shape[1],
            t.shape[0],
        )
        for t in tensors
    ]
    coupled = (
        Coupled(
            "conv1",
            8,
            (
                Slice("conv1.weight", 0, "out", span8),
                Slice("conv2.weight", 1, "in", span8),
                Slice("conv3.weight", 0, "out", span8),
                Slice("fc.weight", 1, "in", span8),
            ),
        ),
        Coupled("conv2", 4, (Slice("conv2.weight", 0, "out", span4), Slice("conv3.weight", 1, "in", span4))),
        Coupled("fc", 2, (Slice("fc.weight", 0, "out", span2),), protected="it feeds the network's output"),
    )
    return ModelMap(tuple(layers), tuple(tensors), coupled, sum(layer.macs for layer in layers))


def compiled(tmp_path: Path, text: str, strict: bool = False) -> Plan:
    path = tmp_path / "recipe.yaml"
    path.write_text(HEAD + text)
    loaded = load(path)
    return compile_plan(loaded.recipe, residual(), positions=loaded.positions, strict=strict)


def complaints(tmp_path: Path, text: str, strict: bool = False) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        compiled(tmp_path, text, strict)
    return [str(p).replace(str(tmp_path) + "/", "") for p in caught.value.problems]


GOLDEN = {
    "matches nothing": (
        "rules:\n  - {layers: covn1, group: filter}\n",
        ["recipe.yaml:4:14: rules.0.layers: 'covn1' matches no layer of the model; did you mean 'conv1'?"],
    ),
    "matches nothing like it": (
        "rules:\n  - {layers: 'encoder.*', group: filter}\n",
        [
            (
                "recipe.yaml:4:14: rules.0.layers: 'encoder.*' matches no layer of the model; "
                "the layers are conv1, conv2, conv3, fc; their classes are Conv2d, Linear"
            )
        ],
    ),
    "a glob matches nothing": (
        "rules:\n  - {layers: 'covn*', group: filter}\n",
        ["recipe.yaml:4:14: rules.0.layers: 'covn*' matches no layer of the model; did you mean 'conv*'?"],
    ),
    "more than keep allows": (
        "rules:\n  - {layers: conv1, group: filter, sparsity: 95%, keep: {at_least: 2, multiple_of: 4}}\n",
        [
            (
                "recipe.yaml:4:46: rules.0.sparsity: 95% cannot be reached: "
                "with keep.at_least 2 and keep.multiple_of 4 at most 50% of the groups can go; "
                "lower it, or loosen 'keep'"
            )
        ],
    ),
    "one number for different widths": (
        "rules:\n  - {layers: 'conv*', group: filter, keep: {uniform: true}}\n",
        [
            (
                "recipe.yaml:4:54: rules.0.keep.uniform: the layers of the rule have different numbers "
                "of groups: 'conv2' has 4, 'conv1' has 8; give each width a rule of its own"
            )
        ],
    ),
    "more than can go": (
        "rules:\n  - {layers: 'conv*', group: filter, sparsity: 100%}\n",
        [
            (
                "recipe.yaml:4:48: rules.0.sparsity: 100% cannot be reached: "
                "as one group stays in every layer, at most 83.3% of the groups can go; lower it"
            )
        ],
    ),
    "a share of what is protected": (
        "rules:\n  - {layers: fc, group: neuron, sparsity: 50%}\n",
        [
            (
                "recipe.yaml:4:43: rules.0.sparsity: 50% cannot be reached: 'fc' keeps its width: "
                "it feeds the network's output; select other layers, or leave 'sparsity' out"
            )
        ],
    ),
    "one pattern of several matches nothing": (
        "rules:\n  - layers: [conv1, conv9]\n    group: filter\n",
        ["recipe.yaml:4:13: rules.0.layers: 'conv9' matches no layer of the model; did you mean 'conv3'?"],
    ),
    "wrong kind of layer": (
        "rules:\n  - {layers: fc, group: filter}\n",
        [
            (
                "recipe.yaml:4:14: rules.0.layers: group 'filter' acts on convolutions, "
                "but 'fc' matches only fc (Linear); use group 'neuron'"
            )
        ],
    ),
    "neurons of convolutions": (
        "rules:\n  - {layers: 'conv*', group: neuron}\n",
        [
            (
                "recipe.yaml:4:14: rules.0.layers: group 'neuron' acts on Linear layers and "
                "embeddings, but 'conv*' matches only conv1 (Conv2d), conv2 (Conv2d), conv3 (Conv2d); "
                "select other layers"
            )
        ],
    ),
    "two rules on one layer": (
        "rules:\n  - {layers: 'conv*', group: filter}\n  - {layers: conv2, group: filter}\n",
        [
            (
                "recipe.yaml:5:14: rules.1.layers: layer 'conv2' already has group 'filter' by "
                "rules.0; narrow one of the two selectors, or say 'override: true' in the later rule"
            )
        ],
    ),
    "two rules on one coupled group": (
        "rules:\n  - {layers: conv1, group: filter}\n  - {layers: conv3, group: filter}\n",
        [
            "recipe.yaml:5:14: rules.1.layers: 'conv3' and 'conv1' are pruned together "
            "(coupled group 'conv1'), and rules.0 already covers that group; "
            "narrow one of the two selectors, or say 'override: true' in the later rule"
        ],
    ),
    "a channel is another layer's filter": (
        "rules:\n  - {layers: conv2, group: filter}\n  - {layers: conv3, group: channel}\n",
        [
            "recipe.yaml:5:14: rules.1.layers: 'conv3' and 'conv2' are pruned together "
            "(coupled group 'conv2'), and rules.0 already covers that group; "
            "narrow one of the two selectors, or say 'override: true' in the later rule"
        ],
    ),
    "blocks that do not divide": (
        "rules:\n  - {layers: 'conv*', group: 3x5, sparsity: 50%}\n",
        [
            (
                "recipe.yaml:4:14: rules.0.layers: group '3x5' does not divide 'conv1', "
                "which has 27 columns (inputs x kernel positions); choose a pattern that divides it, "
                "or select other layers"
            ),
            (
                "recipe.yaml:4:14: rules.0.layers: group '3x5' does not divide 'conv1', "
                "which has 8 outputs; choose a pattern that divides it, or select other layers"
            ),
            (
                "recipe.yaml:4:14: rules.0.layers: group '3x5' does not divide 'conv2', "
                "which has 4 outputs; choose a pattern that divides it, or select other layers"
            ),
            (
                "recipe.yaml:4:14: rules.0.layers: group '3x5' does not divide 'conv2', "
                "which has 72 columns (inputs x kernel positions); choose a pattern that divides it, "
                "or select other layers"
            ),
            (
                "recipe.yaml:4:14: rules.0.layers: group '3x5' does not divide 'conv3', "
                "which has 36 columns (inputs x kernel positions); choose a pattern that divides it, "
                "or select other layers"
            ),
            (
                "recipe.yaml:4:14: rules.0.layers: group '3x5' does not divide 'conv3', "
                "which has 8 outputs; choose a pattern that divides it, or select other layers"
            ),
        ],
    ),
    "a pattern that does not divide": (
        "rules:\n  - {layers: conv1, group: 2:4}\n",
        [
            (
                "recipe.yaml:4:14: rules.0.layers: group '2:4' does not divide 'conv1', "
                "which has 3 inputs; choose a pattern that divides it, or select other layers"
            )
        ],
    ),
    "a pattern over a width that another rule narrows": (
        (
            "rules:\n"
            "  - {layers: conv2, group: filter, keep: {multiple_of: 2}}\n"
            "  - {layers: conv3, group: 2:4}\n"
        ),
        [
            (
                "recipe.yaml:5:14: rules.1.layers: rules.0 may narrow 'conv3' to a width that group "
                "'2:4' does not divide; write 'keep: {multiple_of: 4}' in rules.0"
            )
        ],
    ),
    "two patterns on one layer": (
        "rules:\n  - {layers: conv2, group: 2:4}\n  - {layers: conv2, group: 1:4}\n",
        [
            (
                "recipe.yaml:5:14: rules.1.layers: layer 'conv2' has group '2:4' by rules.0; "
                "group '1:4' cannot be combined with it on the same layer; narrow one of the two selectors"
            )
        ],
    ),
    "shapes under blocks": (
        (
            "rules:\n"
            "  - {layers: conv2, group: 2x2, sparsity: 50%}\n"
            "  - {layers: conv2, group: shape, sparsity: 50%}\n"
        ),
        [
            (
                "recipe.yaml:5:14: rules.1.layers: layer 'conv2' has group '2x2' by rules.0; "
                "group 'shape' cannot be combined with it on the same layer; narrow one of the two selectors"
            )
        ],
    ),
    "taps of a Linear layer": (
        "rules:\n  - {layers: fc, group: tap, sparsity: 50%}\n",
        [
            (
                "recipe.yaml:4:14: rules.0.layers: group 'tap' acts on convolutions, "
                "but 'fc' matches only fc (Linear); select other layers"
            )
        ],
    ),
    "more taps than can go": (
        "rules:\n  - {layers: 'conv*', group: tap, sparsity: 100%, keep: {at_least: 2}}\n",
        [
            (
                "recipe.yaml:4:45: rules.0.sparsity: 100% cannot be reached: "
                "with keep.at_least 2 at most 77.7% of the groups can go; lower it, or loosen 'keep'"
            )
        ],
    ),
    "infeasible parameters, with a demand and limits": (
        (
            "budget: {params: 2%}\n"
            "rules:\n"
            "  - {layers: conv1, group: filter, sparsity: 50%}\n"
            "  - {layers: conv2, group: filter, keep: {limits: {conv2: 25%}}}\n"
        ),
        [
            "recipe.yaml:3:18: budget.params: 2% cannot be reached: "
            "with everything removed that the rules allow, 41.1% remains; raise it to 41.1%, "
            "or loosen 'limits' of 'keep', or leave the amount of rules.0 to the budget in place "
            "of its 'sparsity' (protected: fc)"
        ],
    ),
    "infeasible budget": (
        "budget: {macs: 1%}\nrules:\n  - {layers: conv2, group: filter}\n",
        [
            (
                "recipe.yaml:3:16: budget.macs: 1% cannot be reached: "
                "with everything removed that the rules allow, 46.5% remains; raise it to 46.6%, "
                "or let a rule reach conv1 (protected: fc)"
            )
        ],
    ),
    "infeasible by a floor": (
        "budget: {macs: 20%}\nrules:\n  - {layers: 'conv*', group: filter, keep: {at_least: 4}}\n",
        [
            (
                "recipe.yaml:3:16: budget.macs: 20% cannot be reached: "
                "with everything removed that the rules allow, 50.0% remains; raise it to 50.0%, "
                "or loosen 'at_least 4' of 'keep' (protected: fc)"
            )
        ],
    ),
    "infeasible in absolute numbers": (
        "budget: {bytes: 1kB}\nrules:\n  - {layers: conv2, group: filter}\n",
        [
            (
                "recipe.yaml:3:17: budget.bytes: 1kB cannot be reached: "
                "with everything removed that the rules allow, 46.5% remains; raise it to 46.6%, "
                "or let a rule reach conv1 (protected: fc)"
            )
        ],
    ),
    "all at once": (
        (
            "budget: {macs: 1%}\n"
            "rules:\n"
            "  - {layers: covn1, group: filter}\n"
            "  - {layers: nothing_like_it, protect: true}\n"
        ),
        [
            "recipe.yaml:5:14: rules.0.layers: 'covn1' matches no layer of the model; did you mean 'conv1'?",
            (
                "recipe.yaml:6:14: rules.1.layers: 'nothing_like_it' matches no layer of the model; "
                "the layers are conv1, conv2, conv3, fc; their classes are Conv2d, Linear"
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_complaints(tmp_path: Path, name: str) -> None:
    text, wanted = GOLDEN[name]
    assert complaints(tmp_path, text) == wanted


def test_strict_refuses_what_had_to_be_protected(tmp_path: Path) -> None:
    text = "rules:\n  - {layers: 'conv*', group: filter}\n  - {layers: fc, group: neuron}\n"
    assert compiled(tmp_path, text).notes == ("rules.1: 'fc' keeps its width: it feeds the network's output",)
    assert complaints(tmp_path, text, strict=True) == [
        (
            "recipe.yaml:5:14: rules.1.layers: 'fc' keeps its width: it feeds the network's output; "
            "write 'protect: true' for it, or run without --strict"
        )
    ]


def test_override_takes_over(tmp_path: Path) -> None:
    plan = compiled(
        tmp_path,
        (
            "rules:\n"
            "  - {layers: 'conv*', group: filter}\n"
            "  - {layers: conv2, group: filter, override: true, sparsity: 50%}\n"
        ),
    )
    assert [(a.layers, a.coupled) for a in plan.assignments] == [
        (("conv1", "conv3"), ("conv1",)),
        (("conv2",), ("conv2",)),
    ]


def test_what_is_taken_over_is_left_alone_by_the_earlier_rule(tmp_path: Path) -> None:
    """conv3 is pruned together with conv1, which the later rule takes: the earlier rule's penalty must not
    act on it."""
    penalty = "penalty: {kind: l1, strength: 1e-3}"
    plan = compiled(
        tmp_path,
        (
            "rules:\n"
            f"  - {{layers: conv3, group: filter, {penalty}}}\n"
            f"  - {{layers: conv1, group: filter, override: true}}\n"
        ),
    )
    assert [(a.coupled, a.tensors) for a in plan.assignments] == [((), ()), (("conv1",), ("conv1.weight",))]


def test_channels_of_a_depthwise_convolution_are_its_filters() -> None:
    span = (Span(0, 0, 8),)
    tensors = (
        Tensor("a.weight", (8, 3, 1, 1), 4, True),
        Tensor("b.weight", (8, 1, 3, 3), 4, True),
        Tensor("c.weight", (2, 8, 1, 1), 4, True),
    )
    layers = tuple(conv(t, inputs) for t, inputs in zip(tensors, (3, 8, 8), strict=True))
    coupled = (
        Coupled(
            "a",
            8,
            (
                Slice("a.weight", 0, "out", span),
                Slice("b.weight", 0, "out", span),
                Slice("c.weight", 1, "in", span),
            ),
        ),
    )
    map = ModelMap(layers, tensors, coupled, 3)
    rules = [{"layers": "b", "group": "channel"}, {"layers": "a", "group": "channel"}]
    plan = compile_plan(load({"version": 1, "title": "t", "rules": rules}).recipe, map)
    assert plan.assignments[0].coupled == ("a",)
    assert plan.notes == ("rules.1: 'a' keeps its width: nothing that could be narrowed feeds it",)


def conv(t: Tensor, inputs: int) -> Layer:
    return Layer(t.name.removesuffix(".weight"), "Conv2d", t.shape, 1, inputs, t.shape[0])


def test_protect_keeps_the_whole_coupled_group(tmp_path: Path) -> None:
    plan = compiled(
        tmp_path, "rules:\n  - {layers: 'conv*', group: filter}\n  - {layers: conv3, protect: true}\n"
    )
    assert plan.assignments[0].coupled == ("conv2",)
    assert plan.map.by_name["conv1"].protected == "rules.1 protects 'conv3'"
    assert plan.notes == ("rules.0: 'conv1' keeps its width: rules.1 protects 'conv3'",)


def test_digest_does_not_depend_on_key_order(tmp_path: Path) -> None:
    one = compiled(
        tmp_path, "seed: 3\nbudget: {params: 80%, macs: 90%}\nrules:\n  - {layers: conv2, group: filter}\n"
    )
    two = compiled(
        tmp_path,
        "rules:\n  - {group: out_channel, layers: [conv2]}\nbudget: {macs: 90%, params: 80%}\nseed: 3\n",
    )
    other = compiled(
        tmp_path,
        "rules:\n  - {group: out_channel, layers: [conv2]}\nbudget: {macs: 90%, params: 80%}\nseed: 4\n",
    )
    assert one.digest == two.digest != other.digest


def test_shapes_act_on_convolutions_without_groups() -> None:
    tensors = (Tensor("a.weight", (8, 4, 3, 3), 4, True), Tensor("b.weight", (8, 2, 3, 3), 4, True))
    layers = (conv(tensors[0], 4), conv(tensors[1], 8))
    map = ModelMap(layers, tensors, (), 2)
    plan = compile_plan(
        load(
            {"version": 1, "title": "t", "rules": [{"layers": "*", "group": "shape", "sparsity": "50%"}]}
        ).recipe,
        map,
    )
    assert plan.assignments[0].tensors == ("a.weight",)
    with pytest.raises(
        RecipeError,
        match="group 'shape' acts on convolutions without groups and Linear layers, but 'b' matches only b",
    ):
        compile_plan(
            load(
                {"version": 1, "title": "t", "rules": [{"layers": "b", "group": "shape", "sparsity": "50%"}]}
            ).recipe,
            map,
        )


def test_rules_inside_one_tensor_that_do_not_conflict(tmp_path: Path) -> None:
    plan = compiled(
        tmp_path,
        (
            "rules:\n"
            "  - {layers: conv2, group: shape, sparsity: 50%}\n"
            "  - {layers: conv2, group: tap, sparsity: 20%}\n"
            "  - {layers: conv2, group: weight, sparsity: 90%}\n"
            "  - {layers: conv3, group: 2:4}\n"
            "  - {layers: conv3, group: 2x4, sparsity: 50%}\n"
            "  - {layers: conv1, group: filter, keep: {multiple_of: 2}}\n"
        ),
    )
    assert [a.tensors for a in plan.assignments[:5]] == [("conv2.weight",)] * 3 + [("conv3.weight",)] * 2
    assert [a.coupled for a in plan.assignments] == [()] * 5 + [("conv1",)]
