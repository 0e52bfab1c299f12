"""Group depth: residual blocks and branches found, chosen, removed, proven, replayed."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

import sparsify
from sparsify.cost.cost_model import Costs
from sparsify.cost.measure import count_macs
from sparsify.errors import ModelError, RecipeError, RunError
from sparsify.forward import call_model
from sparsify.graph import build_map
from sparsify.graph.dead_units import find_dead_units
from sparsify.graph.group_layouts import coupled_layout
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.verify import trial_cuts
from sparsify.models import cifar_resnet20
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.cuts import Bypass, Cuts, Silence

IMAGE = (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)
WORDS = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),)


class Mixed(nn.Module):
    """Attention that returns a pair, its weights among it, and takes its input by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, hidden: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(hidden).chunk(3, -1)
        weights = (q @ k.transpose(1, 2) * scale).softmax(-1)
        return self.out(weights @ v), weights


class Block(nn.Module):
    """A transformer block; `post` normalises behind the sum, so that it is no identity with its branches at
    zero."""

    def __init__(self, post: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2, self.post, self.number = nn.LayerNorm(8), nn.LayerNorm(8), post, 7
        self.mixed = Mixed()
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        if self.post:
            x = self.norm1(x + self.mixed(hidden=x)[0])
            return self.norm2(x + self.mlp(x)), None
        x = x + self.mixed(hidden=self.norm1(x))[0]
        return x + self.mlp(self.norm2(x)), None


class Words(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(8, 8), nn.ModuleList(blocks), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            assert block.number == 7, "a model may ask its blocks for plain values"
            x = block(x)[0]
        return self.last(x.mean(1))


class Around(nn.Module):
    """x + conv(x), with or without something done to the sum or to a value inside."""

    def __init__(self, run: Callable[["Around", Tensor], Tensor]) -> None:
        super().__init__()
        self.run, self.a, self.b, self.c = (
            run,
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.gain, self.fc = nn.Parameter(torch.rand(4, 1, 1)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.run(self, self.a(x)).mean((2, 3)))


def resnet() -> nn.Module:
    torch.manual_seed(0)
    model = cifar_resnet20()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def words(post: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Words(*(Block(post) for _ in range(4)))


def planned(model: nn.Module, inputs: Any, *rules: dict[str, Any], **more: Any) -> Plan:
    return sparsify.make_plan(
        {
            "version": 1,
            "title": "t",
            "rules": [r if r.get("protect") else {"group": "depth", **r} for r in rules],
            **more,
        },
        model,
        inputs,
    )


def found(model: nn.Module, inputs: Any) -> dict[str, str | None]:
    """Block or branch -> why it must stay."""
    map = trial_cuts.add_branches(model, build_map.build_map(model, inputs, {}), inputs, {})
    return {b.name: b.group.protected for b in map.branches}


def proven(model: nn.Module, inputs: Any, *rules: dict[str, Any], **more: Any) -> tuple[Plan, Result]:
    """Cut, and everything that must hold of any cut by depth."""
    plan = planned(model, inputs, *rules, **more)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    outputs = call_model.float_tensors(call_model.call_model(model.train(), inputs))
    torch.stack([one.sum() for one in outputs]).sum().backward()
    optimizer.step()
    result = sparsify.cut(plan, model, optimizer=optimizer, inputs=inputs)
    assert result.verdicts[0].difference <= 1e-9 and result.verdicts[0].control > 1e-6
    for batch in (1, 4):
        assert reference.difference(result, model, reference.fresh(inputs, batch, seed=3)) <= 1e-6
    left = list(result.model.parameters())
    assert (
        {id(p) for g in optimizer.param_groups for p in g["params"]}
        == {id(p) for p in left}
        == {id(p) for p in optimizer.state}
    )
    predicted = Costs(plan.map).of({w.group: range(w.kept, w.width) for w in result.cuts.widths})
    assert sum(p.numel() for p in left) == predicted["params"] < sum(p.numel() for p in model.parameters())
    assert count_macs(result.model, inputs)[0] == predicted["macs"] < count_macs(model, inputs)[0]
    again = replay_cuts(model, Cuts.model_validate_json(result.cuts.model_dump_json()))
    again.load_state_dict(result.model.state_dict(), strict=True)
    pairs = zip(
        call_model.float_tensors(call_model.call_model(again.eval(), inputs)),
        call_model.float_tensors(call_model.call_model(result.model.eval(), inputs)),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    return plan, result


def gone(result: Result) -> list[str]:
    return [op.module for op in result.cuts.operations if isinstance(op, Bypass | Silence)]


def test_blocks_of_a_resnet_are_found_and_those_with_a_shortcut_of_another_shape_stay() -> None:
    other = "its output has another shape than its input"
    free = dict.fromkeys(["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"])
    assert found(resnet(), IMAGE) == {**free, "layer2.0": other, "layer3.0": other}


@pytest.mark.nightly
def test_half_of_the_blocks_of_a_resnet() -> None:
    model = resnet()
    plan, result = proven(model, IMAGE, {"layers": "layer*.*", "sparsity": "50%"})
    sizes = {
        n: float(sum(p.detach().square().sum() for p in model.get_submodule(n).parameters()))
        for n in plan.assignments[0].coupled
    }
    assert gone(result) == sorted(sorted(sizes, key=lambda n: sizes[n])[:4]) and len(sizes) == 7
    x = torch.randn(4, 3, 32, 32)
    by_hand = resnet()
    by_hand.load_state_dict(model.state_dict())
    for name in gone(result):
        stage, _, number = name.partition(".")
        by_hand.get_submodule(stage)[int(number)] = nn.Identity()  # type: ignore[operator]
    assert torch.equal(by_hand.eval()(x), result.model.eval()(x))
    assert "rules.0: 'layer2.0' stays: its output has another shape than its input" in plan.notes


@pytest.mark.parametrize("post", [False, True])
def test_blocks_of_a_transformer(post: bool) -> None:
    model = words(post)
    names = ["blocks.0", "blocks.0.mixed", "blocks.0.mlp"]
    assert [n for n in found(model, WORDS) if n.startswith("blocks.0")] == names
    _, result = proven(model, WORDS, {"layers": "blocks.*", "sparsity": "50%"})
    kinds = {op.op for op in result.cuts.operations if isinstance(op, Bypass | Silence)}
    assert kinds == ({"silence"} if post else {"bypass"})
    assert (
        sum(w.kept for w in result.cuts.widths)
        == 2
        == sum("mlp.0.weight" in n for n in result.model.state_dict())
    )


@pytest.mark.parametrize("post", [False, True])
def test_single_branches_of_a_transformer(post: bool) -> None:
    _, result = proven(words(post), WORDS, {"layers": "Mixed", "sparsity": "75%"})
    silenced = [op for op in result.cuts.operations if isinstance(op, Silence)]
    assert len(silenced) == 3 and all(op.returns == (True, False) for op in silenced)
    assert (
        sum("qkv.weight" in n for n in result.model.state_dict()) == 1
        and sum("mlp.0.weight" in n for n in result.model.state_dict()) == 4
    )


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda m, x: x + m.c(m.b(x).relu()), {"b": None}),
        (lambda m, x: m.c(x + m.b(x)), {"b": None}),
        (lambda m, x: (x + m.b(x)) * m.c(x).sigmoid(), {"b": None}),
        (lambda m, x: (x + (y := m.b(x))) + m.c(y), {}),  # the branch is used once more
        (lambda m, x: m.b(x) + m.c(x), {}),  # two branches and no shortcut
        (lambda m, x: x + m.gain * m.b(x), {}),  # the gain would stay
        (lambda m, x: x + 0.5 * x**3, {}),  # no parameters
        (lambda m, x: x + m.b(m.b(x)), {}),  # one layer, twice
        (lambda m, x: x + m.b(x).sigmoid(), {"b": "a trial cut failed: the cut model differs"}),
    ],
)
def test_what_is_a_branch(run: Callable[[Around, Tensor], Tensor], expected: dict[str, str | None]) -> None:
    torch.manual_seed(0)
    reasons = found(Around(run), IMAGE)
    assert {
        name.removesuffix("#branch"): why and why.partition(" from ")[0] for name, why in reasons.items()
    } == expected


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_layer_of_torch_that_lost_a_part_leaves_its_fused_path(norm_first: bool) -> None:
    """Without gradients a TransformerEncoderLayer reads the weights of all its parts at once."""
    torch.manual_seed(0)
    layers = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first),
        2,
        enable_nested_tensor=False,
    )
    model, x = nn.Sequential(nn.Linear(4, 8), layers, nn.Linear(8, 3)), torch.randn(2, 5, 4)
    rules = [{"layers": "1.layers.1.linear1", "group": "depth", "sparsity": "100%"}]
    result = sparsify.cut(
        sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (x,)), model
    )
    thin = result.model.eval()
    expected = thin(x)
    with torch.no_grad():
        torch.testing.assert_close(thin(x), expected)
    assert [w.keep for w in result.cuts.widths] == [()]


def test_a_trial_tells_which_branches_a_model_cannot_spare() -> None:
    class Peeking(Words):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.blocks[1].norm1.weight.mean()

    torch.manual_seed(0)
    reasons = found(Peeking(*(Block() for _ in range(3))), WORDS)
    assert reasons["blocks.0"] is None and reasons["blocks.2"] is None
    assert reasons["blocks.1"] == (
        "a trial cut failed: the cut model does not run: AttributeError: "
        "'Bypassed' object has no attribute 'norm1'"
    )


@pytest.mark.nightly
def test_filters_and_blocks_in_one_recipe() -> None:
    rules = (
        {"layers": "layer*.*", "sparsity": "50%"},
        {"layers": "re:.*conv1", "group": "filter", "sparsity": "50%"},
    )
    _, result = proven(resnet(), IMAGE, *rules)
    widths = {w.group: w.kept for w in result.cuts.widths}
    assert widths["layer1.0"] == 0 == widths["layer1.0.conv1"], "a group inside what left is gone with it"
    assert 0 < widths["layer3.1.conv1"] < 64 and 0 < widths["layer3.2.conv1"] < 64
    narrowed = {op.tensor for op in result.cuts.operations if op.op == "narrow"}
    assert not [n for n in narrowed if n.startswith("layer1.")], "what left is not narrowed"
    assert result.verdicts[0].outcome == "equal"


def test_widths_under_a_normalisation_and_blocks_in_one_recipe() -> None:
    rules = (
        {"layers": "blocks.*", "sparsity": "50%"},
        {"layers": "first", "group": "neuron", "sparsity": "25%"},
    )
    _, result = proven(words(post=True), WORDS, *rules)
    assert result.verdicts[0].outcome == "statistics change"


def test_single_weights_and_blocks_in_one_recipe() -> None:
    model = resnet()
    plan = planned(
        model,
        IMAGE,
        {"layers": "layer1.*", "sparsity": "100%"},
        {"layers": "layer1.*", "group": "weight", "sparsity": "50%"},
    )
    result = sparsify.cut(plan, model, inputs=IMAGE)
    assert gone(result) == ["layer1.0", "layer1.1", "layer1.2"] and all(
        op.op == "bypass" for op in result.cuts.operations
    )


def test_a_budget_takes_blocks_and_no_more_than_it_must() -> None:
    _, result = proven(resnet(), IMAGE, {"layers": "BasicBlock"}, budget={"macs": "70%"})
    assert count_macs(result.model, IMAGE)[0] <= 0.7 * count_macs(resnet(), IMAGE)[0]
    assert len(gone(result)) == 3


@pytest.mark.nightly
def test_at_least_counts_blocks_over_the_rule() -> None:
    _, result = proven(
        resnet(), IMAGE, {"layers": "BasicBlock", "keep": {"at_least": 5}}, budget={"params": "70%"}
    )
    # the two cheapest would not do: those that cost more leave in their place
    assert len(gone(result)) == 2 and sum(p.numel() for p in result.model.parameters()) <= 0.7 * 269_722
    with pytest.raises(
        RecipeError,
        match=(
            r"budget\.macs: 40% cannot be reached: with everything removed that the "
            r"rules allow, 76.7% remains"
        ),
    ):
        planned(resnet(), IMAGE, {"layers": "BasicBlock", "keep": {"at_least": 5}}, budget={"macs": "40%"})


def test_dead_blocks_go_by_themselves_and_a_bias_keeps_one_alive() -> None:
    model = resnet()
    with torch.no_grad():
        for name in ("layer1.1", "layer3.2"):
            for parameter in model.get_submodule(name).parameters():
                parameter.zero_()
        model.get_parameter("layer3.2.bn2.bias")[0] = 1e-3
    plan = planned(model, IMAGE, {"layers": "BasicBlock"})
    assert gone(sparsify.cut(plan, model, inputs=IMAGE)) == ["layer1.1"]
    flags = find_dead_units(plan.map, plan.assignments[0].coupled, dict(model.named_parameters()))
    assert [name for name, flag in flags.items() if flag.any()] == ["layer1.1"]


@pytest.mark.parametrize("solver", ["proximal", "subgradient"])
def test_group_lasso_over_a_whole_block(solver: str) -> None:
    """R = strength * sqrt(|g|) * ||all parameters of the block||_2, arXiv:1608.03665, equation 3."""
    model = resnet().double()
    block = list(model.get_submodule("layer3.1").parameters())
    flat = torch.cat([p.detach().flatten() for p in block])
    penalty = {
        "kind": "group_lasso",
        "strength": 0.01,
        "solver": solver,
        **({"every": 1} if solver == "proximal" else {}),
    }
    plan = planned(model, (IMAGE[0].double(),), {"layers": "layer3.1", "penalty": penalty})
    with sparsify.attach(plan, model, torch.optim.SGD(model.parameters(), lr=0.1)):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        before = model.get_parameter("layer3.2.conv1.weight").clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sparsify.attach(plan, model, optimizer):
        optimizer.step()
    wanted = flat * (1 - 0.1 * 0.01 * len(flat) ** 0.5 / flat.norm())
    torch.testing.assert_close(
        torch.cat([p.detach().flatten() for p in block]), wanted, rtol=1e-12, atol=1e-12
    )
    assert torch.equal(model.get_parameter("layer3.2.conv1.weight"), before)


def test_magnitude_scores_a_block_by_all_of_its_parameters() -> None:
    model = resnet()
    plan = planned(model, IMAGE, {"layers": "BasicBlock"})
    layout = coupled_layout(plan.map, ["layer1.0", "layer2.1"], dict(model.named_parameters()))
    sums = layout.reduce(lambda name: model.get_parameter(name).detach().square())
    wanted = [
        sum(float(p.detach().square().sum()) for p in model.get_submodule(n).parameters())
        for n in ("layer1.0", "layer2.1")
    ]
    assert sums[:-1].tolist() == pytest.approx(wanted, rel=1e-5)


def test_scores_by_the_mean_compare_blocks_with_each_other() -> None:
    model = resnet()
    with torch.no_grad():
        for p in model.get_submodule("layer3.2").parameters():
            p.mul_(1e-3)
    plan = planned(
        model,
        IMAGE,
        {"layers": "BasicBlock", "sparsity": "14%", "criterion": {"kind": "magnitude", "normalize": "mean"}},
    )
    assert gone(sparsify.cut(plan, model, inputs=IMAGE)) == ["layer3.2"]


def test_a_protected_layer_keeps_its_block() -> None:
    model = resnet()
    plan = planned(
        model,
        IMAGE,
        {"layers": "BasicBlock", "sparsity": "100%"},
        {"layers": "layer1.1.conv1", "protect": True},
    )
    assert "layer1.1" not in gone(sparsify.cut(plan, model, inputs=IMAGE))
    assert "rules.0: 'layer1.1' stays: rules.1 protects 'layer1.1.conv1'" in plan.notes
    plan = planned(
        words(), WORDS, {"layers": "Block", "sparsity": "100%"}, {"layers": "blocks.2.mlp", "protect": True}
    )
    assert "rules.0: 'blocks.2' stays: rules.1 protects 'blocks.2.mlp'" in plan.notes
    plan = planned(
        words(), WORDS, {"layers": "Block", "sparsity": "100%"}, {"layers": "blocks.2", "protect": True}
    )
    assert dict(plan.preview) == {"blocks.0": 0, "blocks.1": 0, "blocks.3": 0}


ERRORS = {
    "matches nothing": (
        [{"layers": "bn1"}],
        (
            "rules.0.layers: 'bn1' matches no residual block or branch of the model; "
            "those that can leave are layer1.0, layer1.1, layer1.2, layer2.1, "
            "layer2.2, layer3.1, layer3.2; their classes are BasicBlock"
        ),
    ),
    "cannot leave": (
        [{"layers": "layer2.0", "sparsity": "50%"}],
        (
            "rules.0.sparsity: 50% cannot be reached: 'layer2.0' stays: its output "
            "has another shape than its input; select other layers, or leave "
            "'sparsity' out"
        ),
    ),
    "two rules": (
        [{"layers": "layer1.*"}, {"layers": "layer*.1"}],
        (
            "rules.1.layers: layer 'layer1.1' already has group 'depth' by rules.0; "
            "narrow one of the two selectors, or say 'override: true' in the later "
            "rule"
        ),
    ),
    "too much": (
        [{"layers": "BasicBlock", "keep": {"at_least": 5}, "sparsity": "80%"}],
        (
            "rules.0.sparsity: 80% cannot be reached: with keep.at_least 5 at most "
            "28.5% of the groups can go; lower it, or loosen 'keep'"
        ),
    ),
    "a multiple": (
        [{"layers": "BasicBlock", "keep": {"multiple_of": 2}}],
        (
            "rules.0.keep: 'multiple_of' cannot act on group 'depth', which has no "
            "widths; leave it out, or say how many stay with 'at_least'"
        ),
    ),
    "uniform": (
        [{"layers": "BasicBlock", "keep": {"uniform": True}}],
        "rules.0.keep: 'uniform' cannot act on group 'depth', which has no widths; leave it out",
    ),
    "scope": (
        [{"layers": "BasicBlock", "penalty": {"kind": "group_lasso", "strength": 0.1, "scope": "layer"}}],
        "rules.0: scope 'layer' cannot act on group 'depth', which spans several tensors; leave out 'scope'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_complaints(name: str) -> None:
    rules, message = ERRORS[name]
    with pytest.raises(RecipeError) as caught:
        planned(resnet(), IMAGE, *rules)
    assert str(caught.value).partition(": ")[2] == message


def test_two_rules_that_reach_a_block_and_a_branch_of_it() -> None:
    rules = [{"layers": "blocks.1"}, {"layers": "Mixed"}]
    with pytest.raises(RecipeError) as caught:
        planned(words(), WORDS, *rules)
    assert str(caught.value).splitlines()[0].partition(": ")[2] == (
        "rules.1.layers: 'blocks.1.mixed' and 'blocks.1' are pruned together "
        "(coupled group 'blocks.1'), and rules.0 already covers that group; "
        "narrow one of the two selectors, or say 'override: true' in the later rule"
    )
    plan = planned(words(), WORDS, rules[0], {**rules[1], "override": True})
    assert [a.coupled for a in plan.assignments] == [(), tuple(f"blocks.{i}.mixed" for i in range(4))]


def test_a_model_without_blocks_and_one_without_weights() -> None:
    chain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(
        RecipeError,
        match=(
            "'\\*' matches no residual block or branch of the model; none of its "
            "branches can leave; use another group"
        ),
    ):
        planned(chain, (torch.randn(2, 4),), {"layers": "*"})
    with pytest.raises(
        ModelError,
        match=(
            r"^group 'depth' needs a model with weights: a trial cut decides whether a "
            r"residual block can be removed$"
        ),
    ):
        planned(resnet().to("meta"), (IMAGE[0].to("meta"),), {"layers": "*"})


@pytest.mark.parametrize("kind", [Bypass, Silence])
def test_a_log_that_names_another_model_is_refused(kind: type[Bypass | Silence]) -> None:
    log = Cuts(plan="p", operations=(kind(module="layer9.1"),))
    with pytest.raises(RunError) as caught:
        replay_cuts(resnet(), log)
    assert str(caught.value) == (
        "the cut log removes a module 'layer9.1' that this model does not have; "
        "was it built by the same recipe?"
    )


@pytest.mark.parametrize("returns", [[True, True], [False]])
def test_a_log_returns_one_tensor(returns: list[bool]) -> None:
    with pytest.raises(ValueError, match="exactly one place of a returned tuple holds the tensor"):
        Bypass.model_validate({"module": "a", "returns": returns})


def test_without_a_rule_for_depth_no_branch_is_looked_for() -> None:
    plan = planned(resnet(), IMAGE, {"layers": "conv1", "group": "filter"})
    assert plan.map.branches == ()


def test_the_plan_says_what_goes() -> None:
    text = sparsify.describe(planned(resnet(), IMAGE, {"layers": "layer3.*", "sparsity": "50%"}))
    assert "rules.0: residual branches of layer3.*" in text and "1 of 7 residual blocks" not in text
    rows = [line.split() for line in text.splitlines() if line.startswith("layer3.")]
    assert sorted(rows[i].pop() for i in range(2)) == ["kept", "removed"]
    assert rows == [
        [name, "BasicBlock", "11.6", "%", "27.4", "%", "its", "input"] for name in ("layer3.1", "layer3.2")
    ]
    assert "2 of 7 residual blocks" in text


def networks() -> Mapping[str, tuple[Callable[[], nn.Module], Any, str, int]]:
    """Name -> (build, inputs, what the rule says, how many blocks or branches it reaches)."""
    small: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    ids = {"input_ids": torch.randint(2, 50, (2, 6), generator=torch.Generator().manual_seed(1))}
    image = (torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),)

    def tv(name: str, **more: Any) -> Callable[[], nn.Module]:
        return lambda: getattr(pytest.importorskip("torchvision").models, name)(**more)

    def timm(name: str, **more: Any) -> Callable[[], nn.Module]:
        return lambda: pytest.importorskip("timm").create_model(
            name, img_size=64, embed_dim=48, depth=4, num_classes=5, **more
        )

    def hf(model: str, config: str, **more: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            tf = pytest.importorskip("transformers")
            made: nn.Module = getattr(tf, model)(getattr(tf, config)(**more))
            return made

        return build

    def narrow_convnext() -> nn.Module:
        parts = pytest.importorskip("torchvision").models.convnext
        model: nn.Module = parts.ConvNeXt(
            [parts.CNBlockConfig(16, 32, 2), parts.CNBlockConfig(32, None, 4)], num_classes=5
        )
        return model

    plain = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "use_cache": False}
    encoder = {
        "image_size": 64,
        "patch_size": 16,
        "num_layers": 4,
        "num_heads": 2,
        "hidden_dim": 24,
        "mlp_dim": 48,
        "num_classes": 5,
    }
    layer: dict[str, Any] = {"d_model": 24, "nhead": 2, "dim_feedforward": 32, "batch_first": True}
    words_ = (torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0)),)
    return {
        "torch post-norm": (
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), 4),
            words_,
            "TransformerEncoderLayer",
            4,
        ),
        "torchvision resnet18": (tv("resnet18"), image, "BasicBlock", 5),
        "torchvision mobilenet_v2": (tv("mobilenet_v2"), image, "InvertedResidual", 10),
        "torchvision convnext": (narrow_convnext, image, "CNBlock", 6),
        "torchvision convnext_tiny": (tv("convnext_tiny"), image, "CNBlock", 18),
        "torchvision vit": (tv("VisionTransformer", **encoder), image, "EncoderBlock", 4),
        "torchvision vit attention": (tv("VisionTransformer", **encoder), image, "*.self_attention", 4),
        "timm vit": (timm("vit_tiny_patch16_224"), image, "blocks.*", 4),
        "timm deit": (timm("deit_tiny_patch16_224"), image, "*.attn", 4),
        "bert": (hf("BertModel", "BertConfig", **small), ids, "BertLayer", 4),
        "bert attention": (hf("BertModel", "BertConfig", **small), ids, "BertAttention", 4),
        "gpt2": (
            hf("GPT2LMHeadModel", "GPT2Config", vocab_size=50, n_embd=24, n_layer=4, n_head=2, **plain),
            ids,
            "*.h.*",
            4,
        ),
        "gpt2 attention": (
            hf("GPT2LMHeadModel", "GPT2Config", vocab_size=50, n_embd=24, n_layer=4, n_head=2, **plain),
            ids,
            "GPT2Attention",
            4,
        ),
        "llama": (hf("LlamaForCausalLM", "LlamaConfig", **small, **plain), ids, "model.layers.*", 4),
    }


LARGE = dict.fromkeys(("torchvision convnext_tiny", "torchvision mobilenet_v2"), pytest.mark.nightly)


@pytest.mark.parametrize("name", [pytest.param(name, marks=LARGE.get(name, ())) for name in networks()])
@pytest.mark.filterwarnings("ignore")
def test_networks_of_libraries(name: str) -> None:
    torch.manual_seed(0)
    build, inputs, layers, count = networks()[name]
    model = build()
    with torch.no_grad():
        for n, p in model.named_parameters():  # heads at zero and layer scales of 1e-6 would hide the cut
            if "head" in n or "layer_scale" in n:
                p.normal_()
    plan, result = proven(
        model, inputs, {"layers": layers, "sparsity": "50%", "criterion": {"kind": "random"}}
    )
    assert len(plan.assignments[0].coupled) == count
    assert sum(not w.kept for w in result.cuts.widths) == round(count / 2)
