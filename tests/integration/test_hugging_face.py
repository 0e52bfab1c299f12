"""Models of transformers through `apply`, and out again as a folder that `from_pretrained` loads."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sparsify
from sparsify.errors import ModelError, RunError, VerificationError
from sparsify.exporters import hugging_face as hugging_face_exporter
from sparsify.forward.input_records import draw_from_record
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.models import hugging_face
from sparsify.runs.apply import apply
from sparsify.runs.save_load import load_run
from sparsify_cli.app import exit_code

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
CAUSAL = {
    **SMALL,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "use_cache": False,
}
GPT2 = {
    "vocab_size": 50,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "use_cache": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
T5 = {
    "vocab_size": 50,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
    "decoder_start_token_id": 0,
}
MOE = {
    **CAUSAL,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
}
DEEPSEEK = {
    **MOE,
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
BLOOM = {
    "vocab_size": 50,
    "hidden_size": 48,
    "n_layer": 2,
    "n_head": 4,
    "use_cache": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
VIT = {**SMALL, "image_size": 32, "patch_size": 8}
IDS = {"input_ids": {"shape": [2, 9], "dtype": "int64"}}
BOTH = {**IDS, "decoder_input_ids": {"shape": [2, 7], "dtype": "int64"}}
PIXELS = {"pixel_values": {"shape": [2, 3, 32, 32]}}


def half(layers: str, group: str = "neuron", uniform: bool = True) -> dict[str, Any]:
    return {"layers": layers, "group": group, "sparsity": "50%", "keep": {"uniform": uniform}}


HEADS = [half("*gate_proj"), half("*q_proj", "head")]
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[dict[str, Any]], dict[str, int]]] = {
    "bert": (
        "BertForSequenceClassification",
        {**SMALL, "vocab_size": 50},
        IDS,
        [half("*intermediate.dense")],
        {"intermediate_size": 48},
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": 50, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
        IDS,
        [half("*lin1")],
        {"hidden_dim": 48},
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2, IDS, [half("*c_fc")], {"n_inner": 96}),
    "llama": (
        "LlamaForCausalLM",
        {**CAUSAL, "num_key_value_heads": 4},
        IDS,
        HEADS,
        {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12},
    ),
    "llama-gqa": (
        "LlamaForCausalLM",
        {**CAUSAL, "num_key_value_heads": 2},
        IDS,
        HEADS,
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
    ),
    "llama-8": (
        "LlamaForCausalLM",
        {**CAUSAL, "num_attention_heads": 8},
        IDS,
        HEADS,
        {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 6},
    ),
    "llama-hidden": (
        "LlamaForCausalLM",
        CAUSAL,
        IDS,
        [half("*o_proj")],
        {"hidden_size": 24, "num_attention_heads": 4, "head_dim": 12},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        {**CAUSAL, "num_key_value_heads": 2},
        IDS,
        [half("*gate_up_proj"), half("*qkv_proj", "head")],
        {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
    ),
    "qwen2-tied": (
        "Qwen2ForCausalLM",
        {**CAUSAL, "num_key_value_heads": 2, "tie_word_embeddings": True},
        IDS,
        HEADS,
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {**MOE, "num_local_experts": 8},
        IDS,
        [half("*mlp", "expert")],
        {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        {**MOE, "num_experts": 8, "shared_expert_intermediate_size": 48},
        IDS,
        [half("*mlp", "expert")],
        {"num_experts": 4, "shared_expert_intermediate_size": 48},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {**MOE, "num_local_experts": 8, "head_dim": 12},
        IDS,
        [half("*mlp", "expert")],
        {"num_local_experts": 4},
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        DEEPSEEK,
        IDS,
        [half("*mlp", "expert")],
        {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2},
    ),
    "deepseek-v3-heads": (
        "DeepseekV3ForCausalLM",
        {**DEEPSEEK, "kv_lora_rank": 20, "q_lora_rank": 28, "qk_rope_head_dim": 6},
        IDS,
        [half("*q_b_proj", "head"), half("*q_a_proj"), half("*kv_a_proj_with_mqa")],
        {"num_attention_heads": 2, "q_lora_rank": 14, "kv_lora_rank": 10, "v_head_dim": 8},
    ),
    "gemma": (
        "GemmaForCausalLM",
        {**CAUSAL, "num_key_value_heads": 1, "head_dim": 12},
        IDS,
        [half("*q_proj", "head")],
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
    ),
    "bloom": ("BloomForCausalLM", BLOOM, IDS, [half("*dense_h_to_4h")], {}),
    "gpt-bigcode": ("GPTBigCodeForCausalLM", GPT2, IDS, [half("*c_fc")], {"n_inner": 96}),
    "switch": (
        "SwitchTransformersForConditionalGeneration",
        {
            **T5,
            "num_decoder_layers": 2,
            "num_experts": 4,
            "num_sparse_encoder_layers": 1,
            "num_sparse_decoder_layers": 1,
            "expert_capacity": 64,
        },
        BOTH,
        [half("*mlp", "expert")],
        {"num_experts": 2},
    ),
    "t5": ("T5ForConditionalGeneration", T5, BOTH, [half("*wi")], {"d_ff": 48}),
    "vit": (
        "ViTForImageClassification",
        VIT,
        PIXELS,
        [half("*fc1"), half("*q_proj", "head")],
        {"intermediate_size": 48, "num_attention_heads": 2},
    ),
}


def recipe(
    name: str, architecture: str, config: dict[str, Any], inputs: dict[str, Any], rules: list[dict[str, Any]]
) -> dict[str, Any]:
    model = {
        "build": "sparsify.models.hugging_face",
        "args": {"architecture": architecture, "config": config},
    }
    return {"version": 1, "title": name, "model": model, "inputs": inputs, "rules": rules}


def run_of(name: str, *changed: Any) -> Path:
    return apply(recipe(name, *(changed or CASES[name][:4])), from_scratch=True, timing=0.01)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that several tests export."""
    return apply(
        recipe("bert", *CASES["bert"][:4]),
        from_scratch=True,
        out=tmp_path_factory.mktemp("bert"),
        timing=0.01,
    )


ALIKE = (
    *("distilbert", "llama", "llama-8", "llama-hidden", "gemma", "qwen2-tied", "gpt-bigcode"),
    *("mixtral", "qwen2-moe", "deepseek-v3"),
)
"""what bert, gpt2, llama-gqa, gpt-oss and deepseek-v3-heads show as well"""
WITH_CODE = ("bloom",)
"""what no configuration says: the modelling file of each is tested below"""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.nightly) if name in ALIKE else name
        for name in CASES
        if name not in WITH_CODE
    ],
)
def test_from_pretrained_loads_what_was_cut(name: str) -> None:
    architecture, config, *_, fields = CASES[name]
    run = run_of(name)
    made = sparsify.export(run, "huggingface")
    assert made.path == Path(f"{name}-1-hf") and made.checked_by == "from_pretrained"
    assert made.difference is not None and made.difference <= 1e-6
    assert {p.name for p in made.path.iterdir()} - {"generation_config.json"} == {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    written = json.loads((made.path / "config.json").read_text())
    assert {field: written[field] for field in fields} == fields and written["architectures"] == [
        architecture
    ]
    model = getattr(transformers, architecture).from_pretrained(made.path, local_files_only=True)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in load_run(run).named_parameters()
    }
    assert sum(p.numel() for p in model.parameters()) < 0.95 * sum(
        p.numel() for p in getattr(transformers, architecture)(type(model.config)(**config)).parameters()
    )


@pytest.mark.nightly
def test_a_tiny_bert_through_the_commands_in_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe from a file, weights as save_pretrained leaves them, and the class found by AutoModel."""
    body = recipe("bert", *CASES["bert"][:4])
    Path("bert.yaml").write_text(yaml.safe_dump(body))
    dense = transformers.BertForSequenceClassification(transformers.BertConfig(**CASES["bert"][1])).eval()
    dense.save_pretrained("dense")
    assert exit_code(["apply", "bert.yaml", "dense/model.safetensors", "--quiet"]) == 0
    for format in ("pt2", "onnx", "safetensors", "huggingface"):
        if format != "onnx" or find_spec("onnx"):
            assert exit_code(["export", "runs/bert-1", "--format", format]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "bert-1-hf: " in out and "Reloaded (from_pretrained) and compared at batch 1 and 5" in out
    ids = torch.randint(50, (3, 11))
    model = transformers.AutoModelForSequenceClassification.from_pretrained("bert-1-hf")
    assert torch.equal(model.eval()(ids).logits, load_run("runs/bert-1")(ids).logits)
    assert not torch.allclose(model(ids).logits, dense(ids).logits)


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "vit",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("qwen2-tied", "llama-gqa", "phi3")),
    ],
)
def test_the_configuration_follows_the_cut(name: str) -> None:
    """save_pretrained of what `cut` returns, without a run: fields that had no number get one."""
    architecture, config, inputs, rules, fields = CASES[name]
    torch.manual_seed(0)
    model = hugging_face(architecture, config).eval()
    plan = sparsify.make_plan(recipe(name, architecture, config, inputs, rules), model)
    assert not [note for note in plan.notes if "modeling_cut" in note]
    result = sparsify.cut(plan, model)
    stated = result.model.config.to_dict()
    assert {field: stated[field] for field in fields} == fields
    assert not [note for note in result.notes if "config" in note]
    assert stated["transformers_version"] == model.config.to_dict()["transformers_version"]
    result.model.save_pretrained("saved")
    again = type(model).from_pretrained("saved", local_files_only=True).eval()
    given = draw_from_record(plan.map.inputs, seed=5, batch=3)
    with torch.no_grad():
        wanted = result.model.eval()(**given).logits
        assert torch.allclose(again(**given).logits, wanted, atol=1e-6, rtol=0)
    run = sparsify.save_run(result, "run", timing=0.01)
    assert load_run(run).config.to_dict() == stated


FALCON = {**CAUSAL, "ffn_hidden_size": 96, "num_kv_heads": 4}
DEEP = {**DEEPSEEK, "q_lora_rank": 20, "kv_lora_rank": 18, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6}
STATED: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "bloom": (
        "BloomForCausalLM",
        BLOOM,
        "*query_key_value",
        ("'config.n_head' still says 4; the layer now has 2 heads",),
    ),
    "falcon with slopes": (
        "FalconForCausalLM",
        {**FALCON, "alibi": True},
        "*query_key_value",
        (
            "'config.num_attention_heads' still says 4; the layer now has 2 heads",
            "'config.num_kv_heads' still says 4; the layer now has 2 heads",
        ),
    ),
    "falcon": ("FalconForCausalLM", FALCON, "*query_key_value", ()),
    "deepseek": (
        "DeepseekV2ForCausalLM",
        {**DEEP, "v_head_dim": 14, "n_routed_experts": 4},
        "*",
        ("'config.kv_lora_rank' still says 18; the layers now have 6 and 10 channels",),
    ),
}


@pytest.mark.parametrize("name", STATED)
def test_notes_speak_of_numbers_of_the_configuration_that_are_stale_alone(name: str) -> None:
    """The attentions of BLOOM and Falcon call the width of their heads `hidden_size`, and select the slopes
    of their heads from those of all, which `transformer.num_heads` counts."""
    architecture, config, layers, stale = STATED[name]
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**config)).eval()
    ids = {"input_ids": torch.randint(2, 50, (2, 9))}
    rules = [half(layers, "head", uniform=layers != "*")]
    plan = sparsify.make_plan(recipe("t", architecture, {}, IDS, rules), model, ids)
    result = sparsify.cut(plan, model)
    assert tuple(note for note in result.notes if "still says" in note) == stale
    assert result.model.config.hidden_size == 48
    if "falcon" in name:  # what makes slopes makes those of all heads
        assert result.model.transformer.num_heads == (2 if name == "falcon" else 4)


@pytest.mark.parametrize("value", [10**9, 17])
def test_a_log_that_states_a_number_of_its_own_is_refused(value: int) -> None:
    architecture, config, inputs, rules, _ = CASES["gpt2"]
    model = hugging_face(architecture, config).eval()
    result = sparsify.cut(sparsify.make_plan(recipe("g", architecture, config, inputs, rules), model), model)
    operations = [
        op.model_copy(update={"value": value}) if getattr(op, "attribute", "") == "config.n_inner" else op
        for op in result.cuts.operations
    ]
    with pytest.raises(RunError) as caught:
        replay_cuts(model, result.cuts.model_copy(update={"operations": tuple(operations)}))
    assert str(caught.value) == (
        "the cut log sets '.config.n_inner', which is not a width that a GPT2LMHeadModel holds"
    )


FILE = "the export to huggingface writes modeling_cut.py, which is loaded with trust_remote_code=True"
NOTES: list[tuple[list[dict[str, Any]], list[str]]] = [
    (
        [half("*intermediate.dense", uniform=False)],
        [
            "rules.0: 'bert.encoder.layer.0.intermediate.dense' and "
            "'bert.encoder.layer.1.intermediate.dense' may keep different widths, for which BertConfig has "
            f"one number. keep: {{uniform: true}} gives them one width; otherwise {FILE}"
        ],
    ),
    (
        [half("*query", "head"), half("*intermediate.dense")],
        [
            "with half of each group, no number in BertConfig makes "
            "'bert.encoder.layer.0.attention.self.query.weight' 24x48: with intermediate_size 48 it is "
            f"48x48: {FILE}"
        ],
    ),
    (
        [{"layers": "bert.encoder.layer.1", "group": "depth", "sparsity": "100%"}],
        [f"rules.0: BertConfig cannot say which blocks are left: {FILE}"],
    ),
    ([half("*intermediate.dense")], []),
    ([{"layers": "*intermediate.dense", "group": "neuron", "sparsity": "50%"}], []),  # equal by default
]


@pytest.mark.parametrize(("rules", "expected"), NOTES)
def test_the_plan_says_what_the_configuration_cannot(
    rules: list[dict[str, Any]], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    body = recipe("planned", *CASES["bert"][:3], rules)
    Path("r.yaml").write_text(yaml.safe_dump(body))
    assert exit_code(["plan", "r.yaml", "--from-scratch", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert [note for note in notes if "Config" in note] == expected
    if rules[0]["group"] == "depth":  # which needs weights
        return
    with torch.device("meta"):
        model = hugging_face(*CASES["bert"][:2])
    assert [note for note in sparsify.make_plan(body, model).notes if "Config" in note] == expected


def test_the_plan_knows_configurations_with_four_numbers_changed() -> None:
    """48 is the old value of two widths, which change differently: the new numbers cannot be read off."""
    rules = [half("*o_proj"), *HEADS]
    config = {**CAUSAL, "num_attention_heads": 6, "num_key_value_heads": 3}
    body = recipe("llama", "LlamaForCausalLM", config, IDS, rules)
    with torch.device("meta"):
        model = hugging_face("LlamaForCausalLM", config)
    assert not [note for note in sparsify.make_plan(body, model).notes if "Config" in note]


BEYOND: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "different widths": (
        "bert",
        [half("*intermediate.dense", uniform=False)],
        r"'bert\.encoder\.layer\.1\.intermediate\.dense\.weight' is \d+x48 and "
        r"'bert\.encoder\.layer\.0\.intermediate\.dense\.weight' \d+x48, but BertConfig "
        r"has one number for both; keep: \{uniform: true\} in a rule for both gives them the same width",
    ),
    "heads of their own size": (
        "bert",
        [half("*query", "head"), half("*intermediate.dense")],
        r"no number in BertConfig makes 'bert\.encoder\.layer\.0\.attention\.self\.query\.weight' "
        r"24x48: it stays 48x48",
    ),
    "the width of all": (
        "bert",
        [half("*.0.attention.output.dense")],
        r"no number in BertConfig makes 'bert\.encoder\.layer\.0\.attention\.self\.query\.weight' "
        r"48x24: with hidden_size 24 it is 24x24",
    ),
    "heads of one layer, tied weights": (
        "qwen2-tied",
        [half("*.1.mlp.gate_proj"), half("*q_proj", "head")],
        r"'model\.layers\.1\.mlp\.gate_proj\.weight' is 48x48 and 'model\.layers\.0\.mlp\.gate_proj\.weight' "
        r"96x48, but Qwen2Config has one number for both; keep: \{uniform: true\} in a rule for both gives "
        r"them the same width",
    ),
    "a number of heads that the configuration refuses": (
        "llama-8",
        [{**half("*q_proj", "head"), "sparsity": "37.5%"}],
        r"LlamaConfig refuses the numbers of the cut model: ValueError: The hidden size \(48\) is not a "
        r"multiple of the number of attention heads \(5\)\.",
    ),
    "packed heads of one layer": (
        "phi3",
        [half("*.0.self_attn.qkv_proj", "head")],
        r"'model\.layers\.0\.self_attn\.o_proj\.weight' is 48x24 and "
        r"'model\.layers\.1\.self_attn\.o_proj\.weight' 48x48, but Phi3Config has one number for both; "
        r"keep: \{uniform: true\} in a rule for both gives them the same width",
    ),
    "heads with slopes": (
        "bloom",
        [half("*query_key_value", "head", uniform=False)],
        r"'transformer\.h\.0\.self_attention' selects its heads' of what BloomForCausalLM makes for 4 heads "
        r"\(slopes of positions\), which it would make otherwise for fewer",
    ),
    "heads of one key": (
        "gpt-bigcode",
        [half("*c_attn", "head")],
        r"no number in GPTBigCodeConfig makes 'transformer\.h\.0\.attn\.c_attn\.weight' 48x48: "
        r"it stays 96x48",
    ),
    "a block less": (
        "llama",
        [{"layers": "model.layers.1", "group": "depth", "sparsity": "100%"}],
        r"a new LlamaForCausalLM and the cut model differ in 'model\.layers\.1\.input_layernorm\.weight', "
        r"which only one of them has",
    ),
}


AT_NIGHT = ("the width of all", "heads of one key", "different widths", "heads of one layer, tied weights")
"""what the others show as well"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly) if name in AT_NIGHT else name for name in BEYOND]
)
def test_what_the_configuration_cannot_say_stands_in_a_modelling_file(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, rules, reason = BEYOND[name]
    architecture, config, inputs = CASES[case][:3]
    run = run_of("beyond", architecture, config, inputs, rules)
    made = sparsify.export(run, "huggingface", "out")
    (note,) = made.notes
    assert re.fullmatch(
        rf"config\.json alone cannot express the model: {reason}\. "
        r"modeling_cut\.py builds it: load the folder with trust_remote_code=True",
        note,
    )
    assert made.difference is not None and made.difference <= 1e-6
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(Path("modules").resolve()))
    own = load_run(run)
    auto = "AutoModelForCausalLM" if "Causal" in architecture else "AutoModelForSequenceClassification"
    model = load_with_code(auto, "out")
    assert_equal_outputs(own, model)
    model.save_pretrained("again")
    assert_equal_outputs(own, load_with_code(auto, "again"))
    if "Causal" in architecture:
        prompt = torch.tensor([[3, 4, 5]])
        asked = {"max_new_tokens": 5, "do_sample": False, "use_cache": False}
        assert torch.equal(own.generate(prompt, **asked), model.generate(prompt, **asked))
    assert f"import {auto}" in Path("out/README.md").read_text()
    assert "sparsify" not in "".join(
        line for line in Path("out/modeling_cut.py").read_text().splitlines() if "import" in line
    )


def load_with_code(auto: str, folder: str) -> Any:
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    assert type(model).__name__.startswith("Cut")
    return model.eval()


def assert_equal_outputs(own: Any, model: Any) -> None:
    generator = torch.Generator().manual_seed(11)
    for length in (3, 17):
        ids = torch.randint(50, (4, length), generator=generator)
        mask = (torch.arange(length) < torch.tensor([[1], [2], [3], [length]])).long()
        with torch.no_grad():
            found, wanted = (each(input_ids=ids, attention_mask=mask).logits for each in (model, own))
        assert torch.allclose(found, wanted, atol=1e-6, rtol=0)


def test_the_configuration_states_the_widths_that_it_can(bert_heads: Path) -> None:
    sparsify.export(bert_heads, "huggingface", "out")
    written = json.loads(Path("out/config.json").read_text())
    assert (written["num_attention_heads"], written["intermediate_size"]) == (2, 48)
    assert written["cut"]["dense"] == {"num_attention_heads": 4, "intermediate_size": 96}
    assert written["auto_map"] == {
        "AutoModelForSequenceClassification": "modeling_cut.CutBertForSequenceClassification"
    }
    assert written["cut"]["shapes"]["bert.encoder.layer.1.attention.self.query.weight"] == [24, 48]


@pytest.fixture(scope="module")
def bert_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose widths BertConfig cannot express."""
    return apply(
        recipe("heads", *CASES["bert"][:3], BEYOND["heads of their own size"][1]),
        from_scratch=True,
        out=tmp_path_factory.mktemp("heads"),
        timing=0.01,
    )


def test_a_run_on_a_run_is_narrowed_from_the_first_dense_model(
    bert_heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = recipe("again", *CASES["bert"][:3], [half("*intermediate.dense", uniform=False)])
    run = apply(body, bert_heads, timing=0.01)
    made = sparsify.export(run, "huggingface", "out")
    assert made.difference is not None and made.difference <= 1e-6
    assert json.loads(Path("out/config.json").read_text())["cut"]["dense"] == {
        "num_attention_heads": 4,
        "intermediate_size": 96,
    }
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(Path("modules").resolve()))
    assert_equal_outputs(load_run(run), load_with_code("AutoModelForSequenceClassification", "out"))


def test_what_the_modelling_file_cannot_hold_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsify_schemas.cuts import Gather

    run = run_of("refused", *CASES["bert"][:3], BEYOND["different widths"][1])
    read = hugging_face_exporter.modeling_file.describe_changes

    def gathered(dense: Any, cut: Any, rounds: Any) -> Any:
        op = Gather(module="bert.pooler.dense", size=48, keep=((0, 24),))
        operations = (*rounds[0].operations, op)
        return read(dense, cut, (rounds[0].model_copy(update={"operations": operations}),))

    monkeypatch.setattr(hugging_face_exporter.modeling_file, "describe_changes", gathered)
    with pytest.raises(ModelError) as caught:
        sparsify.export(run, "huggingface", "out")
    assert str(caught.value).endswith(
        "; modeling_cut.py cannot hold 'bert.pooler.dense', which sparsify computes by a module of its own; "
        "--format pt2, onnx and safetensors take the model as it is"
    )
    assert not Path("out").exists() and not list(Path.cwd().glob(".*"))


def test_tokenizer_and_settings_of_the_original_are_copied(
    bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = Path("dense")
    transformers.BertForSequenceClassification(transformers.BertConfig(**CASES["bert"][1])).save_pretrained(
        dense
    )
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "generation_config.json",
        "secret.txt",
    ):
        (dense / name).write_text(f'{{"name": "{name}"}}')
    (dense / "README.md").write_text("---\nlicense: apache-2.0\ntags: [old]\n---\n# Dense\n")
    asked = ["export", str(bert), "--format", "huggingface", "--out", "hf", "--original", "dense"]
    assert exit_code(asked) == 0, capsys.readouterr().err
    assert {path.name for path in Path("hf").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    assert Path("hf/vocab.txt").read_text() == '{"name": "vocab.txt"}'
    card = Path("hf/README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\ntags:\n- sparsify\n- pruning\nlicense: apache-2.0\n---\n\n# bert\n"
    )
    report = json.loads((bert / "report.json").read_text())
    assert f"| parameters | {report['dense']['params'] / 1000:.1f} k |" in card
    assert 'BertForSequenceClassification.from_pretrained("PATH OF THIS FOLDER")' in card
    assert (bert / "recipe.yaml").read_text().strip() in card


def test_an_original_of_another_kind_is_refused(bert: Path) -> None:
    Path("other").mkdir()
    with pytest.raises(RunError) as caught:
        sparsify.export(bert, "huggingface", "hf", original="other")
    assert str(caught.value) == (
        "other is no folder of a model of transformers: other/config.json names no model_type"
    )
    Path("other/config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(RunError) as caught:
        sparsify.export(bert, "huggingface", "hf", original="other")
    assert str(caught.value) == "other holds a model of type gpt2, the run's model is of type bert"
    Path("other/config.json").write_text('{"model_type": "bert"}')
    made = sparsify.export(bert, "huggingface", "hf", original="other")
    assert made.notes == ("other holds no tokenizer to copy",)


class Hub:
    """Stands in for the hub's own library."""

    told: list[Any] = []

    def create_repo(self, repository: str, **options: Any) -> None:
        if repository == "me/refused":
            raise ConnectionError("no network")
        self.told.append(("create", repository, options))

    def upload_folder(self, **options: Any) -> None:
        self.told.append(
            ("upload", options["repo_id"], {p.name for p in Path(options["folder_path"]).iterdir()})
        )


def test_the_folder_is_pushed_by_the_librarys_own_call(
    bert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "told", [])
    asked = ["export", str(bert), "--format", "huggingface", "--out", "hf", "--push-to-hub"]
    assert exit_code([*asked, "me/small"]) == 0, capsys.readouterr().err
    assert Hub.told == [
        ("create", "me/small", {"exist_ok": True}),
        ("upload", "me/small", {"README.md", "config.json", "model.safetensors"}),
    ]
    assert exit_code([*asked, "me/refused", "--force"]) == 1
    assert "hf was written, but not pushed to me/refused: ConnectionError: no network" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"original": "dense"}, "--original is for huggingface; pt2 holds no tokenizer"),
        ({"push_to_hub": "me/small"}, "--push-to-hub is for huggingface; pt2 is not pushed"),
    ],
)
def test_options_of_a_folder_are_refused_for_files(bert: Path, options: Any, message: str) -> None:
    with pytest.raises(RunError) as caught:
        sparsify.export(bert, "pt2", **options)
    assert str(caught.value) == message


MINILM = Path(os.environ.get("SPARSIFY_DATA", Path.home() / ".cache" / "sparsify")) / "minilm"


@pytest.mark.nightly
@pytest.mark.parametrize("source", ["random", "real weights"])
def test_minilm_with_half_of_heads_and_neurons_goes_out_by_the_commands(
    source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a folder that from_pretrained loads, and as ONNX that runs at lengths 8, 20 and 128."""
    dense = Path("dense")
    original = dense
    if source == "random":
        sizes = {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 12,
            "intermediate_size": 96,
        }
        torch.manual_seed(0)
        model = transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes))
    elif MINILM.is_dir():
        original = MINILM
        model = transformers.BertModel.from_pretrained(MINILM, local_files_only=True)
    else:
        pytest.skip(f"{MINILM} is missing")
    model.save_pretrained(dense)
    config = json.loads((dense / "config.json").read_text())
    shape = {"shape": [2, 16], "dtype": "int64"}
    rules = [half("encoder.layer.*.intermediate.dense"), half("*.query", "head")]
    body = recipe("minilm", "BertModel", config, {"input_ids": shape, "attention_mask": shape}, rules)
    Path("minilm.yaml").write_text(yaml.safe_dump(body))
    assert exit_code(["apply", "minilm.yaml", str(dense / "model.safetensors"), "--quiet"]) == 0
    export = ["export", "runs/minilm-1", "--force", "--format"]
    folder = [*export, "huggingface", "--out", "small", "--original", str(original)]
    assert exit_code(folder) == 0, capsys.readouterr().err
    own = load_run("runs/minilm-1")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(Path("modules").resolve()))
    small = load_with_code("AutoModel", "small")
    assert (Path("small") / "vocab.txt").exists() is (source == "real weights")
    assert small.config.num_attention_heads == 6
    assert small.config.intermediate_size == config["intermediate_size"] // 2
    assert small.encoder.layer[0].attention.self.query.out_features == config["hidden_size"] // 2
    session = None
    if find_spec("onnxruntime") and find_spec("onnx"):
        import onnxruntime

        dynamic = ["--dynamic", "input_ids:1=sequence,attention_mask:1=sequence"]
        assert exit_code([*export, "onnx", "--out", "m.onnx", *dynamic]) == 0, capsys.readouterr().err
        session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
        assert {one.name: one.shape for one in session.get_inputs()} == {
            "input_ids": ["batch", "sequence"],
            "attention_mask": ["batch", "sequence"],
        }
        names = [one.name for one in session.get_outputs()]
        assert names == ["last_hidden_state", "pooler_output"]
    generator = torch.Generator().manual_seed(21)
    for length in (8, 20, 128):
        ids = torch.randint(config["vocab_size"], (3, length), generator=generator)
        mask = (torch.arange(length) < torch.tensor([[length], [length // 2], [3]])).long()
        with torch.no_grad():
            wanted = own(input_ids=ids, attention_mask=mask)
            found = small(input_ids=ids, attention_mask=mask)
        for name in ("last_hidden_state", "pooler_output"):
            assert torch.allclose(found[name], wanted[name], atol=1e-6, rtol=0)
        if session is not None:
            given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
            for got, want in zip(session.run(None, given), wanted.to_tuple(), strict=True):
                assert float((torch.from_numpy(got) - want).abs().max()) <= 1e-5 * float(want.abs().max())


def test_a_folder_is_replaced_only_by_force_and_only_one_of_a_model(bert: Path) -> None:
    run = bert
    Path("mine").mkdir()
    Path("mine/precious.txt").write_text("x")
    for force in (False, True):
        with pytest.raises(RunError) as caught:
            sparsify.export(run, "huggingface", "mine", force=force)
        assert (
            str(caught.value)
            == "mine exists and is not a Hugging Face folder; choose another place with --out"
        )
    assert [p.name for p in Path("mine").iterdir()] == ["precious.txt"]
    sparsify.export(run, "huggingface", "hf")
    Path("hf/old.txt").write_text("x")
    with pytest.raises(
        RunError, match=r"^hf exists already; choose another place with --out, or replace it with --force$"
    ):
        sparsify.export(run, "huggingface", "hf")
    sparsify.export(run, "huggingface", "hf", force=True)
    assert not Path("hf/old.txt").exists() and Path("hf/config.json").exists()
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["hf", "mine"]


def test_a_write_that_fails_leaves_the_old_folder(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bert
    sparsify.export(run, "huggingface", "hf")
    before = Path("hf/model.safetensors").read_bytes()
    monkeypatch.setattr("sparsify.exporters.hugging_face.load_pretrained", lambda kind, folder: 1 / 0)
    with pytest.raises(
        VerificationError,
        match="hf was not written: from_pretrained cannot run what was made: ZeroDivisionError",
    ):
        sparsify.export(run, "huggingface", "hf", force=True)
    assert Path("hf/model.safetensors").read_bytes() == before and [p.name for p in Path.cwd().iterdir()] == [
        "hf"
    ]


def test_other_models_and_a_missing_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {
        "version": 1,
        "title": "other",
        "model": {"build": "sparsify.models.digits_cnn"},
        "inputs": [{"shape": [2, 1, 8, 8]}],
    }
    run = apply(
        {**body, "rules": [{"layers": "conv1", "group": "filter", "sparsity": "50%"}]},
        from_scratch=True,
        timing=0.01,
    )
    with pytest.raises(
        ModelError,
        match=(
            r"^the run's model is a \w+, not a model of transformers; export it with --format pt2, "
            r"onnx or safetensors$"
        ),
    ):
        sparsify.export(run, "huggingface")
    monkeypatch.setattr(
        "sparsify.exporters.writer.find_spec",
        lambda name: None if name == "transformers" else find_spec(name),
    )
    with pytest.raises(RunError) as caught:
        sparsify.export(run, "huggingface")
    assert str(caught.value) == (
        "export to a Hugging Face folder needs transformers, which is not installed: "
        "pip install 'sparsify-recipes[transformers]'"
    )


def test_a_builder_without_the_library_or_with_another_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ModelError,
        match=(
            r"ValueError: transformers has no model 'BertFoo'; config\.json has the "
            r"name under 'architectures'$"
        ),
    ):
        apply(recipe("x", "BertFoo", {}, IDS, [half("*")]), from_scratch=True)
    with pytest.raises(ModelError, match="ValueError: transformers has no model 'pipeline'"):
        apply(recipe("x", "pipeline", {}, IDS, [half("*")]), from_scratch=True)
    monkeypatch.setattr("sparsify.models.transformers_nets.find_spec", lambda name: None)
    with pytest.raises(
        ModelError,
        match=(
            r"ImportError: the library transformers is not installed: "
            r"pip install 'sparsify-recipes\[transformers\]'$"
        ),
    ):
        apply(recipe("x", "BertModel", {}, IDS, [half("*")]), from_scratch=True)
