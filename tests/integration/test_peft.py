"""LoRA-tuned models of peft through a cut: every adapter is narrowed with its layer, ranks stay, and adapters
can be trained, merged, saved and loaded again."""

import importlib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sparsify
from sparsify.errors import RecipeError
from sparsify.events import Event, StepDone
from sparsify.training.optimizers import make_optimizer
from sparsify_cli.app import exit_code
from sparsify_schemas.stage import Adam, Rate

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

LINEAR = ["query", "value", "dense"]
CONV = ["stem", "conv", "up"]
FFN = {"layers": "*.intermediate.dense", "group": "neuron", "sparsity": "50%"}
FILTERS = [
    {"layers": "conv", "group": "filter", "sparsity": "50%"},
    {"layers": "stem", "group": "filter", "sparsity": "25%"},
]


class Cnn(nn.Module):
    """A stem, a residual branch of two convolutions, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 12, 3, padding=1)
        self.up = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.up(torch.relu(self.conv(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def cnn() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return Cnn(), (torch.randn(2, 3, 6, 6),)


def bert() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=30,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config), {"input_ids": torch.randint(0, 30, (2, 6))}


def llama() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, vocab_size=30, use_cache=False, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), {"input_ids": torch.randint(0, 30, (2, 6))}


def adapted(make: Callable[[], tuple[nn.Module, Any]], *configs: Any) -> tuple[Any, Any]:
    """A model with adapters that are not zero, as after a training, and its inputs."""
    model, inputs = make()
    first, *further = configs
    model = peft.get_peft_model(model, first)
    for number, config in enumerate(further):
        model.add_adapter(f"further{number}", config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.normal_(std=0.2)
            elif "modules_to_save" in name and parameter.dim() > 1:
                parameter.mul_(1.5)
    return model.eval(), inputs


def cut(model: nn.Module, inputs: Any, *rules: dict[str, Any], **given: Any) -> Any:
    recipe = {"version": 1, "title": "adapters", "rules": list(rules)}
    return sparsify.cut(sparsify.make_plan(recipe, model, inputs), model, **given)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any) -> Tensor:
    made = model.eval()(**inputs) if isinstance(inputs, dict) else model.eval()(*inputs)
    return made if isinstance(made, Tensor) else made.logits


def adapters(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(LoRA layer, adapter) of all that a model has."""
    layers = [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    return [(layer, name) for layer in layers for name in layer.lora_A]


def difference(result: Any, dense: nn.Module, inputs: Any) -> float:
    """From the reference. DoRA divides by the norm of a row, which is zero for a row that is gone: such a row
    is of ones there, and its magnitude of zero takes them out again."""
    twin = reference.masked(dense, result.cuts)
    for layer, name in adapters(twin):
        magnitude = dict(layer.lora_magnitude_vector).get(name)
        if magnitude is not None:
            gone = magnitude.weight.flatten() == 0
            layer.get_base_layer().weight.data[gone] = 1.0
    own = reference.converted(inputs)
    with torch.no_grad():
        wanted = reference.tensors_of(twin(**own) if isinstance(own, dict) else twin(*own))
    return reference.relative(reference.run(result.model, inputs), list(wanted))


CASES = {
    "bert": (bert, [peft.LoraConfig(r=3, target_modules=LINEAR, task_type="SEQ_CLS")], [FFN]),
    "bert, rslora, bias, dropout": (
        bert,
        [
            peft.LoraConfig(
                r=3,
                target_modules=LINEAR,
                use_rslora=True,
                lora_bias=True,
                bias="all",
                lora_dropout=0.1,
                task_type="SEQ_CLS",
            )
        ],
        [FFN],
    ),
    "bert, heads, two adapters": (
        bert,
        [
            peft.LoraConfig(r=3, target_modules=LINEAR, task_type="SEQ_CLS"),
            peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"),
        ],
        [{"layers": "*.query", "group": "neuron", "sparsity": "50%"}],
    ),
    "llama, all linear": (
        llama,
        [peft.LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM")],
        [
            {"layers": "*.up_proj", "group": "neuron", "sparsity": "50%"},
            {"layers": "*.q_proj", "group": "neuron", "sparsity": "50%"},
        ],
    ),
    "cnn, head saved": (cnn, [peft.LoraConfig(r=3, target_modules=CONV, modules_to_save=["head"])], FILTERS),
    "cnn, norm saved, two adapters": (
        cnn,
        [
            peft.LoraConfig(r=3, target_modules=CONV, modules_to_save=["head", "norm"]),
            peft.LoraConfig(r=2, target_modules=["conv"], modules_to_save=["head"]),
        ],
        FILTERS,
    ),
    "cnn, dora": (cnn, [peft.LoraConfig(r=3, target_modules=[*CONV, "head"], use_dora=True)], FILTERS),
    "llama, dora": (
        llama,
        [peft.LoraConfig(r=3, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM")],
        [{"layers": "*.up_proj", "group": "neuron", "sparsity": "50%"}],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_all_adapters_are_narrowed_with_their_layers(case: Any, tmp_path: Path) -> None:
    make, configs, rules = case
    model, inputs = adapted(make, *configs)
    result = cut(model, inputs, *rules)
    thin: Any = result.model
    assert result.cuts.operations

    for name in model.peft_config:  # one for all: what is active, what is not, and the model without any
        model.set_adapter(name)
        thin.set_adapter(name)
        assert difference(result, model, inputs) < 1e-9
    model.set_adapter("default")
    thin.set_adapter("default")
    with model.disable_adapter(), thin.disable_adapter():
        assert difference(result, model, inputs) < 1e-9

    for layer, name in adapters(thin):
        rank, base = layer.r[name], layer.get_base_layer().weight
        assert layer.lora_A[name].weight.shape[:2] == (rank, base.shape[1])
        assert layer.lora_B[name].weight.shape[:2] == (base.shape[0], rank)
        assert (layer.out_features, layer.in_features) == base.shape[:2]

    expected = outputs(thin, inputs)
    assert torch.allclose(outputs(deepcopy(thin).merge_and_unload(), inputs), expected, atol=1e-6)
    thin.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(deepcopy(thin).unload(), tmp_path)
    assert torch.equal(outputs(loaded, inputs), expected)


def test_a_model_that_is_merged_can_be_cut_and_unmerged() -> None:
    model, inputs = adapted(cnn, peft.LoraConfig(r=3, target_modules=CONV))
    model.merge_adapter()
    thin: Any = cut(model, inputs, *FILTERS).model
    merged = outputs(thin, inputs)
    thin.unmerge_adapter()
    assert thin.base_model.model.conv.lora_B["default"].weight.shape == (6, 3, 1, 1)
    assert torch.allclose(outputs(thin, inputs), merged, atol=1e-5)
    assert not any(layer.merged for layer, _ in adapters(thin))


def test_planning_leaves_the_adapters_as_they_are() -> None:
    model, inputs = adapted(
        cnn,
        peft.LoraConfig(r=3, target_modules=CONV, modules_to_save=["head"]),
        peft.LoraConfig(r=2, target_modules=["conv"], modules_to_save=["head"]),
    )
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    cut(model, inputs, *FILTERS)
    assert model.active_adapters == ["default"]
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    states = [(layer.active_adapters, layer.disable_adapters) for layer, _ in adapters(model)]
    assert states == [(["default"], False)] * 4


def test_training_goes_on_with_the_adapters_alone() -> None:
    model, inputs = adapted(cnn, peft.LoraConfig(r=3, target_modules=CONV, modules_to_save=["head"]))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    model(*inputs).square().mean().backward()
    optimizer.step()
    result = cut(model, inputs, *FILTERS, optimizer=optimizer)
    thin = result.model
    batches = [torch.randn(8, 3, 6, 6) for _ in range(3)]
    frozen = thin.base_model.model.up.base_layer.weight  # type: ignore[union-attr]
    dense = frozen.clone()
    sparsify.repair(result, batches)
    assert not torch.equal(frozen, dense)  # refitted on purpose
    before = {name: p.detach().clone() for name, p in thin.named_parameters()}
    optimizer.zero_grad()
    thin(*inputs).square().mean().backward()
    optimizer.step()
    moved = {name for name, p in thin.named_parameters() if not torch.equal(p, before[name])}
    adapting = {name for name in before if "lora_" in name or "modules_to_save" in name}
    assert moved == adapting == {name for name, p in thin.named_parameters() if p.requires_grad}
    assert all(p.shape == optimizer.state[p]["exp_avg"].shape for p in optimizer.param_groups[0]["params"])


def test_rules_speak_of_layers_as_if_there_were_no_adapters() -> None:
    model, inputs = adapted(bert, peft.LoraConfig(r=3, target_modules=LINEAR, task_type="SEQ_CLS"))

    def matched(pattern: str) -> tuple[str, ...]:
        rule = {"layers": pattern, "group": "neuron"}
        recipe = {"version": 1, "title": "names", "rules": [rule]}
        return sparsify.make_plan(recipe, model, inputs).assignments[0].layers

    layer = "base_model.model.bert.encoder.layer.0.intermediate.dense.base_layer"
    assert matched("*.intermediate.dense") == (layer,)
    assert matched("bert.encoder.layer.0.intermediate.dense") == (layer,)
    assert matched("re:bert.*intermediate.dense") == (layer,)
    assert matched(layer) == (layer,)
    assert not [name for name in matched("Linear") if "lora_" in name]


class Block(nn.Module):
    """x + b(relu(a(x)))"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Deep(nn.Module):
    """Three residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def deep() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return Deep(), (torch.randn(2, 6, 5, 5),)


def test_residual_blocks_leave_with_their_adapters() -> None:
    config = peft.LoraConfig(r=2, target_modules=["a", "b"], modules_to_save=["head"])
    model, inputs = adapted(deep, config)
    result = cut(model, inputs, {"layers": "blocks.?", "group": "depth", "sparsity": "34%"})
    thin: Any = result.model
    assert len(adapters(thin)) == 4  # of six
    assert reference.difference(result, model, inputs) < 1e-9
    with model.disable_adapter(), thin.disable_adapter():
        assert reference.difference(result, model, inputs) < 1e-9
    with pytest.raises(RecipeError) as raised:
        cut(model, inputs, {"layers": "block.?", "group": "depth"})
    assert str(raised.value) == (
        "<recipe>: rules.0.layers: 'block.?' matches no residual block or branch of the model; those that "
        "can leave are blocks.0, blocks.1, blocks.2; their classes are Block"
    )


def test_learning_rates_go_by_plain_names_too() -> None:
    model, _ = adapted(cnn, peft.LoraConfig(r=3, target_modules=CONV, modules_to_save=["head"]))
    rates = [Rate(layers=("head",), scale=0.1)]
    optimizer = make_optimizer(Adam(kind="adam", lr=0.1), model, rates)
    assert [(len(group["params"]), group["scale"]) for group in optimizer.param_groups] == [
        (6, 1.0),
        (2, 0.1),
    ]


def test_a_mistyped_layer_is_answered_with_a_plain_name() -> None:
    model, inputs = adapted(bert, peft.LoraConfig(r=3, target_modules=LINEAR, task_type="SEQ_CLS"))
    with pytest.raises(RecipeError) as raised:
        cut(model, inputs, {**FFN, "layers": "*.intermediat.dense"})
    assert str(raised.value) == (
        "<recipe>: rules.0.layers: '*.intermediat.dense' matches no layer of the model; "
        "did you mean '*.intermediate.dense'?"
    )


def test_the_rank_of_an_adapter_stays() -> None:
    model, inputs = adapted(cnn, peft.LoraConfig(r=3, target_modules=["conv"]))
    name = "base_model.model.conv.lora_A.default"
    with pytest.raises(RecipeError) as raised:
        cut(model, inputs, {"layers": "*lora_A*", "group": "filter", "sparsity": "50%"})
    assert str(raised.value) == (
        f"<recipe>: rules.0.sparsity: 50% cannot be reached: '{name}' keeps its width: it is the rank of an "
        "adapter, which peft's configuration states; select other layers, or leave 'sparsity' out"
    )


def test_a_plan_says_that_a_penalty_cannot_move_frozen_weights() -> None:
    model, inputs = adapted(cnn, peft.LoraConfig(r=3, target_modules=CONV))
    rule = {**FILTERS[0], "penalty": {"kind": "group_lasso", "strength": 0.1}}
    plan = sparsify.make_plan({"version": 1, "title": "frozen", "rules": [rule]}, model, inputs)
    assert plan.notes == (
        "rules.0: 2 of the 4 weight tensors that its penalty reaches are frozen (requires_grad is False), so "
        "no group of them becomes zero by the penalty; what leaves is chosen by the criterion",
    )


NETS = """
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from sparsify.models import digits_cnn


def digits():
    torch.manual_seed(0)
    config = LoraConfig(r=3, target_modules=["conv2", "conv3"], modules_to_save=["fc"])
    return get_peft_model(digits_cnn(), config)


def classifier():
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                        vocab_size=30, max_position_embeddings=16)
    targets = ["query", "value", "dense"]
    model = get_peft_model(BertForSequenceClassification(config), LoraConfig(r=3, target_modules=targets,
                                                                            task_type="SEQ_CLS"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model
"""


def test_a_run_with_adapters_becomes_a_folder_of_transformers_with_them_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("lora_nets.py").write_text(NETS)
    Path("bert.yaml").write_text(
        "version: 1\ntitle: adapted\nmodel: {build: 'lora_nets:classifier'}\n"
        "inputs: {input_ids: {shape: [2, 6], dtype: int64}}\ntargets: {here: {kind: cpu}}\n"
        "rules: [{layers: '*.intermediate.dense', group: neuron, sparsity: 50%}]\nstages: [{kind: cut}]\n"
    )
    assert exit_code(["apply", "bert.yaml", "--from-scratch", "--quiet"]) == 0
    assert exit_code(["export", "runs/adapted-1", "--format", "huggingface", "--out", "merged"]) == 0
    assert "the adapters of peft are merged into the weights" in capsys.readouterr().out
    loaded = transformers.BertForSequenceClassification.from_pretrained("merged")
    assert loaded.config.intermediate_size == 16
    inputs = {"input_ids": torch.randint(0, 30, (2, 6))}
    own = sparsify.load_run("runs/adapted-1")
    assert torch.allclose(outputs(loaded, inputs), outputs(own, inputs), atol=1e-6)


RECIPE = """
version: 1
title: digits
model: {build: "lora_nets:digits"}
data: {source: digits, validation: 70%}
targets: {here: {kind: cpu}}
rules: [{layers: "conv?", group: filter, sparsity: 50%}]
stages:
  - {kind: train, name: adapt, epochs: 1, optimizer: {kind: sgd, lr: 0.05, momentum: 0.9}}
  - {kind: cut}
  - {kind: repair, examples: 100}
  - {kind: train, name: finetune, epochs: 1, optimizer: {kind: sgd, lr: 0.01, momentum: 0.9}}
"""


def test_a_recipe_trains_the_adapters_and_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("lora_nets.py").write_text(NETS)
    Path("digits.yaml").write_text(RECIPE)

    def stop(event: Event) -> None:
        if isinstance(event, StepDone) and event.stage == "finetune":
            raise KeyboardInterrupt

    whole = sparsify.apply("digits.yaml", from_scratch=True, timing=0.02)
    with pytest.raises(KeyboardInterrupt):
        sparsify.apply("digits.yaml", from_scratch=True, timing=0.02, listener=stop)
    resumed = sparsify.apply(resume="runs/digits-2", timing=0.02)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()

    start = importlib.import_module("lora_nets").digits().state_dict()
    dense, thin = load_file(whole / "dense.safetensors"), sparsify.load_run(whole)
    moved = {name for name, value in dense.items() if not torch.equal(value, start[name])}
    trained = {name for name in moved if "running_" not in name and "num_batches" not in name}
    assert trained == {name for name in start if "lora_" in name or "modules_to_save" in name}
    narrow = {name: p.shape for name, p in thin.named_parameters() if p.shape != dense[name].shape}
    assert any(".base_layer." in name for name in narrow) and any(".lora_B." in name for name in narrow)

    assert exit_code(["export", str(whole), "--format", "safetensors", "--out", "digits.safetensors"]) == 0
    assert "largest difference 0 of the largest" in " ".join(capsys.readouterr().out.split())
