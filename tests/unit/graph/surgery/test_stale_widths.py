"""Integers of modules that state a width: they follow a cut where that is certain, and are listed where it
is not."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.errors import RunError
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.surgery.width_names import Meaning, read_meaning
from sparsify.pruning.cut import Result
from sparsify.reporting.report_file import read_report
from sparsify_schemas.cuts import Cuts, SetAttribute

IMAGE = (torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)),)
ROW = (torch.randn(3, 10, generator=torch.Generator().manual_seed(0)),)


def cut(
    model: nn.Module, inputs: tuple[Tensor, ...], *layers: str, group: str = "neuron", **others: Any
) -> Result:
    torch.manual_seed(0)
    rules = [
        {"layers": name, "group": group, "sparsity": "50%", "criterion": {"kind": "random"}}
        for name in layers
    ]
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "targets": {"here": {"kind": "cpu"}}, "rules": rules}, model, inputs
    )
    result = sparsify.cut(plan, model, **others)
    assert result.verdicts[0].outcome in ("equal", "statistics change")
    return result


def named(result: Result) -> dict[str, Any]:
    """What the log sets on modules that are no layers of torch."""
    found = {}
    for op in result.cuts.operations:
        if isinstance(op, SetAttribute):
            kind = type(result.dense.get_submodule(op.module)).__module__
            if not kind.startswith("torch.") or "." in op.attribute:
                found[f"{op.module}.{op.attribute}" if op.module else op.attribute] = op.value
    return found


class RepBlock(nn.Module):
    """A block of RepVGG: three branches that become one convolution."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = 3
        self.dense = nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=groups, bias=False)
        self.dense_norm = nn.BatchNorm2d(out_channels)
        self.point = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
        self.point_norm = nn.BatchNorm2d(out_channels)
        self.norm = nn.BatchNorm2d(in_channels) if in_channels == out_channels else None
        self.fused: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(x).relu()
        y = self.dense_norm(self.dense(x)) + self.point_norm(self.point(x))
        return (y if self.norm is None else y + self.norm(x)).relu()

    @torch.no_grad()
    def reparameterize(self) -> None:
        fused = nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, padding=1, groups=self.groups
        )
        identity = torch.zeros(self.out_channels, self.in_channels // self.groups, 3, 3)
        for channel in range(self.in_channels if self.norm is not None else 0):
            identity[channel, channel % (self.in_channels // self.groups), 1, 1] = 1
        branches = [
            (self.dense.weight, self.dense_norm),
            (F.pad(self.point.weight, [1] * 4), self.point_norm),
        ]
        kernel, bias = torch.zeros_like(fused.weight), torch.zeros_like(fused.bias)
        for weight, norm in [*branches, *([(identity, self.norm)] if self.norm is not None else [])]:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            kernel += weight * scale.view(-1, 1, 1, 1)
            bias += norm.bias - norm.running_mean * scale
        fused.weight.copy_(kernel)
        fused.bias.copy_(bias)
        self.fused = fused


class RepVgg(nn.Module):
    """Widths 12 and 24; a block of them is depthwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [
            RepBlock(3, 12),
            RepBlock(12, 12),
            RepBlock(12, 12, groups=12),
            RepBlock(12, 24),
            RepBlock(24, 24),
        ]
        self.blocks = nn.Sequential(*blocks)
        self.num_features, self.num_classes, self.kernel = 24, 5, 3
        self.head = nn.Linear(24, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def test_a_block_of_repvgg_is_reparametrised_after_the_cut(tmp_path: Path) -> None:
    model = RepVgg()
    result = cut(model, IMAGE, "blocks.0.dense", "blocks.3.dense", group="filter", follow=[deepcopy(model)])
    run = sparsify.save_run(result, tmp_path / "run", inputs=IMAGE, timing=0.01)
    assert result.notes == ()
    widths = [(b.in_channels, b.out_channels, b.groups) for b in result.model.blocks]
    assert (
        widths == [(3, 6, 1), (6, 6, 1), (6, 6, 6), (6, 12, 1), (12, 12, 1)]
        and result.model.num_features == 12
    )
    for thin in (result.model, result.followers[0], sparsify.load_run(run, build=RepVgg)):
        before = thin.eval()(IMAGE[0])
        for block in thin.blocks:
            block.reparameterize()
            assert block.fused.weight.shape == block.dense.weight.shape
        torch.testing.assert_close(thin(IMAGE[0]), before, rtol=1e-4, atol=1e-5)
    assert [b.out_channels for b in model.blocks] == [12, 12, 12, 24, 24] and model.num_features == 24


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_repvgg_of_timm_is_reparametrised_after_the_cut() -> None:
    import timm
    from timm.utils import reparameterize_model

    torch.manual_seed(0)
    model = timm.create_model("repvgg_a0", num_classes=7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 32, 32)
    result = cut(model, (x,), "*", group="filter")
    thin = result.model
    width = thin.head.fc.in_features
    assert width < 1280 and (thin.num_features, thin.head_hidden_size, thin.head.in_features) == (
        width,
        width,
        width,
    )
    shapes = {}
    for info in thin.feature_info:
        thin.get_submodule(info["module"]).register_forward_hook(
            lambda _m, _a, out, name=info["module"]: shapes.update({name: out.shape[1]})
        )
    before = thin(x)
    assert [info["num_chs"] for info in thin.feature_info] == [
        shapes[info["module"]] for info in thin.feature_info
    ]
    assert thin.feature_info[0]["num_chs"] < 48 and thin.num_classes == 7 and result.notes == ()
    torch.testing.assert_close(reparameterize_model(thin)(x), before, rtol=1e-3, atol=1e-4)


class Mlp(nn.Module):
    """A stream and something hidden, of one width."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.dim, self.hidden_dim, self.in_features, self.out_features = dim, hidden_dim, dim, dim
        self.up, self.down = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    """`given` becomes attributes of it."""

    def __init__(self, width: int = 16, hidden: int = 16, **given: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mlp, self.head = nn.Linear(10, width), Mlp(width, hidden), nn.Linear(width, 4)
        self.__dict__.update(given)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mlp(self.stem(x)))


def test_names_that_say_which_width_they_are_tell_equal_widths_apart() -> None:
    hidden = cut(Net(), ROW, "mlp.up")
    assert named(hidden) == {"mlp.hidden_dim": 8} and hidden.notes == ()
    stream = cut(Net(), ROW, "stem")
    assert named(stream) == {"mlp.dim": 8, "mlp.in_features": 8, "mlp.out_features": 8} and stream.notes == ()
    both = cut(Net(16, 16), ROW, "stem", "mlp.up")
    thin = both.model.mlp
    assert (thin.dim, thin.hidden_dim, thin.up.out_features) == (8, 8, 8)


def test_numbers_that_equal_a_width_by_chance_are_left_alone() -> None:
    chance = {
        "kernel_size": 16,
        "num_classes": 16,
        "image_size": 16,
        "stride": 16,
        "groups": 16,
        "patch_size": (16, 16),
    }
    chance |= {
        "num_layers": 16,
        "max_length": 16,
        "base_width": 16,
        "seed": 16,
        "vocab_size": 16,
        "training_steps": 16,
    }
    chance |= {
        "dims": (0, 1),
        "flag": True,
        "pretrained_cfg": {"num_features": 16},
        "config": {"num_labels": 16, "other": 16},
    }
    result = cut(Net(**deepcopy(chance)), ROW, "stem")
    assert result.notes == () and not {name for name in named(result) if not name.startswith("mlp.")}
    assert {name: vars(result.model)[name] for name in chance} == chance


def test_a_number_that_the_model_computes_with_is_listed() -> None:
    class Scaled(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.dim**-0.5

    model = Net()
    model.mlp = Scaled(16, 16)
    result = cut(model, ROW, "stem")
    assert named(result) == {"mlp.in_features": 8, "mlp.out_features": 8} and result.model.mlp.dim == 16
    assert result.notes == (
        "'mlp.dim' still says 16, and the model computes with it; the layer now has 8 channels",
    )


def test_a_number_that_the_model_needs_as_it_is_stays_without_a_word() -> None:
    """Here it is four times the number of classes: the model does not run with another one."""

    class Checked(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.repeat(1, 4).view(len(y), self.units).cumsum(1)[:, ::5]

    result = cut(Checked(units=16, num_features=16), ROW, "stem")
    assert (result.model.units, result.model.num_features) == (16, 8) and result.notes == ()


def test_numbers_with_several_explanations_are_listed_in_the_notes_and_in_the_report(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = nn.Sequential(Net(16, 8), Net(16, 8)), nn.Linear(4, 4)
            self.first[1].stem = nn.Linear(4, 16)
            self.first[0].width, self.first[1].width = 16, 16
            self.channels, self.foo = 16, 16

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    result = cut(Two(), ROW, "first.0.stem")
    assert named(result)["first.0.width"] == 8 and result.model.first[1].width == 16
    assert result.notes == ("'channels' still says 16; the layers now have 8 and 16 channels",)
    run = sparsify.save_run(result, tmp_path / "run", inputs=ROW, timing=0.01)
    assert [note for note in read_report(run).notes if "still says" in note] == list(result.notes)


def test_notes_of_numbers_alike_are_one_and_names_that_say_nothing_are_listed() -> None:
    class Odd(Mlp):
        def __init__(self) -> None:
            super().__init__(16, 16)
            self.amount = 16

    model = Net(amount=16)
    model.mlp = nn.Sequential(Odd(), Odd(), Odd())
    result = cut(model, ROW, "stem")
    assert (
        result.notes == ("'amount' still says 16; the layer now has 8 channels",)
        and result.model.amount == 16
    )
    alike = cut(model, ROW, "mlp.0.up", "mlp.1.up", "mlp.2.up", "stem")
    assert alike.notes == (
        "'amount' still says 16; the layer now has 8 channels",
        "'mlp.0.amount' still says 16; the layer now has 8 channels (likewise 2 more, up to 'mlp.2.amount')",
    )


@dataclass
class Settings:
    hidden_dim: int
    steps: int = 12


@dataclass(frozen=True)
class Fixed:
    hidden_dim: int


class Shared:
    """A configuration that no copy has of its own."""

    def __init__(self) -> None:
        self.hidden_dim = 12

    def __deepcopy__(self, memo: Any) -> "Shared":
        return self


def test_configurations_and_lists_follow_and_replay(tmp_path: Path) -> None:
    def build() -> Net:
        return Net(
            16,
            12,
            cfg={"model": {"mlp_dim": 12, "widths": [16, 12]}, "num_classes": 12},
            args=SimpleNamespace(hidden_dim=12, seed=12),
            settings=Settings(12),
            dims=[10, 16, 12],
            feature_info=[
                {"num_chs": 16, "module": "stem"},
                {"num_chs": 16, "module": "mlp", "reduction": 16},
            ],
        )

    model = build()
    result = cut(model, ROW, "stem", "mlp.up", follow=[build()])
    run = sparsify.save_run(result, tmp_path / "run", inputs=ROW, timing=0.01)
    for thin in (result.model, result.followers[0], sparsify.load_run(run, build=build)):
        assert thin.cfg == {"model": {"mlp_dim": 6, "widths": [8, 6]}, "num_classes": 12}
        assert thin.args == SimpleNamespace(hidden_dim=6, seed=12) and thin.settings == Settings(6)
        assert thin.dims == [10, 8, 6] and [info["num_chs"] for info in thin.feature_info] == [8, 8]
        assert thin.feature_info[1]["reduction"] == 16
    given = ("cfg", "args", "settings", "dims", "feature_info")
    assert [vars(model)[name] for name in given] == [
        vars(build())[name] for name in given
    ] and result.notes == ()


def test_containers_that_cannot_be_written_are_listed_and_stay() -> None:
    shared = Shared()
    result = cut(Net(16, 12, config=shared), ROW, "mlp.up")
    assert shared.hidden_dim == 12 and result.notes == (
        "'config.hidden_dim' still says 12; the layer now has 6 channels",
    )
    fixed = cut(Net(16, 12, settings=Fixed(12)), ROW, "mlp.up")
    assert fixed.model.settings == Fixed(12)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("cfg.hidden_dim", 5, "sets '.cfg.hidden_dim' to 5, but no operation in it narrows 12 to that"),
        (
            "cfg.hidden_dim",
            10**9,
            "sets '.cfg.hidden_dim' to 1000000000, but no operation in it narrows 12 to that",
        ),
        ("cfg.hidden_dim", [6], "sets '.cfg.hidden_dim' to (6,), but no operation in it narrows 12 to that"),
        ("cfg.seed", 6, "sets '.cfg.seed', which is not a width that a Net holds"),
        ("cfg.none", 6, "sets '.cfg.none', which is not a width that a Net holds"),
        (
            "cfg.__class__.hidden_dim",
            6,
            "sets '.cfg.__class__.hidden_dim', which is not a width that a Net holds",
        ),
        (
            "forward.__globals__.hidden_dim",
            6,
            "sets '.forward.__globals__.hidden_dim', which is not a width that a Net holds",
        ),
        (
            "_modules.mlp.hidden_dim",
            6,
            "sets '._modules.mlp.hidden_dim', which is not a width that a Net holds",
        ),
        ("widths.7.width", 6, "sets '.widths.7.width', which is not a width that a Net holds"),
    ],
)
def test_a_log_that_was_tampered_with_is_refused(attribute: str, value: Any, message: str) -> None:
    model = Net(16, 12, cfg={"hidden_dim": 12, "seed": 12}, widths=[{"width": 12}])
    result = cut(model, ROW, "mlp.up")
    assert named(result) == {"mlp.hidden_dim": 6, "cfg.hidden_dim": 6, "widths.0.width": 6}
    mended = [
        op for op in result.cuts.operations if not (isinstance(op, SetAttribute) and "." in op.attribute)
    ]
    wrong = SetAttribute(module="", attribute=attribute, value=value)
    body = result.cuts.model_copy(update={"operations": (*mended, wrong)}).model_dump_json()
    with pytest.raises(RunError) as caught:
        replay_cuts(model, Cuts.model_validate_json(body))
    assert str(caught.value) == f"the cut log {message}"


@pytest.mark.filterwarnings("ignore")
def test_the_configuration_of_a_model_of_transformers_agrees_with_the_cut_model_or_a_note_says_so() -> None:
    import transformers

    def bert(uniform: bool, layers: str, group: str = "neuron") -> Result:
        torch.manual_seed(0)
        numbers = {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "vocab_size": 48,
        }
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**numbers)).eval()
        rule = {
            "layers": layers,
            "group": group,
            "sparsity": "50%",
            "keep": {"uniform": uniform},
            "criterion": {"kind": "random"},
        }
        inputs = {"input_ids": torch.arange(9)[None].repeat(2, 1)}
        return sparsify.cut(
            sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, inputs), model
        )

    def described(result: Result) -> bool:
        made = type(result.model)(result.model.config)
        return all(
            made.state_dict()[name].shape == tensor.shape
            for name, tensor in result.model.state_dict().items()
        )

    alike = bert(True, "*intermediate.dense")
    assert alike.model.config.intermediate_size == 48 and alike.dense.config.intermediate_size == 96
    assert alike.notes == () and described(alike)
    assert replay_cuts(alike.dense, alike.cuts).config.intermediate_size == 48
    parts = bert(False, "*intermediate.dense")
    first, second = (layer.intermediate.dense.out_features for layer in parts.model.bert.encoder.layer)
    assert first != second and parts.model.config.intermediate_size == 96 and not described(parts)
    low, high = sorted((first, second))
    assert parts.notes == (
        f"'config.intermediate_size' still says 96; the layers now have {low} and {high} channels",
        "'config' does not describe the cut model: "
        "it builds 'bert.encoder.layer.0.intermediate.dense.weight' as (96, 48), "
        f"which is ({first}, 48) now; the export to huggingface looks for a configuration that does, "
        "or writes a modelling file",
    )
    stream = bert(True, "*pooler.dense")  # couples nothing but the head
    assert stream.model.config.hidden_size == 48 and stream.model.config.vocab_size == 48


def test_what_names_say() -> None:
    said = {
        Meaning.INPUT: "in_channels in_features in_chans input_size dim_in",
        Meaning.OUTPUT: (
            "out_channels out_features outDim dim_out lastconv_output_channels _stage_out_channels"
        ),
        Meaning.INNER: (
            "hidden_dim mlp_dim intermediate_size inner_dim d_ff dim_feedforward mid_channels hidden n_inner"
        ),
        Meaning.WIDTH: (
            "num_features embed_dim hidden_size d_model channels width dim planes inplanes head_hidden_size "
            "n_embd num_chs last_channel num_channels dims"
        ),
        Meaning.AS_BELOW: (
            "groups num_groups num_heads n_head num_attention_heads num_key_value_heads head_dim dim_head"
        ),
        Meaning.NEVER: (
            "kernel_size stride num_classes image_size base_width width_per_group num_layers vocab_size "
            "patch_size seq_length num_embeddings width_mult max_position_embeddings num_hidden_layers "
            "pool_size num_feature_levels"
        ),
        Meaning.UNKNOWN: "amount foo n",
    }
    for expected, names in said.items():
        assert {name: read_meaning(name) for name in names.split()} == dict.fromkeys(names.split(), expected)
