"""Models of transformers through `apply`, and out again as a folder that `from_pretrained` loads."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sparsify
from sparsify.errors import ModelError, RunError, VerificationError
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
    "llama-hidden": (
        "LlamaForCausalLM",
        CAUSAL,
        IDS,
        [half("*o_proj")],
        {"hidden_size": 24, "num_attention_heads": 4, "head_dim": 12},
    ),
    "qwen2-tied": (
        "Qwen2ForCausalLM",
        {**CAUSAL, "num_key_value_heads": 2, "tie_word_embeddings": True},
        IDS,
        HEADS,
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12},
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


ALIKE = ("distilbert", "llama")
"""what bert and llama-gqa show as well"""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.nightly) if name in ALIKE else name for name in CASES]
)
def test_from_pretrained_loads_what_was_cut(name: str) -> None:
    architecture, config, *_, fields = CASES[name]
    run = run_of(name)
    made = sparsify.export(run, "huggingface")
    assert made.path == Path(f"{name}-1-hf") and made.checked_by == "from_pretrained"
    assert made.difference is not None and made.difference <= 1e-6
    assert {p.name for p in made.path.iterdir()} - {"generation_config.json"} == {
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


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "different widths": (
        [half("*intermediate.dense", uniform=False)],
        r"'bert\.encoder\.layer\.1\.intermediate\.dense\.weight' is \d+x48 and "
        r"'bert\.encoder\.layer\.0\.intermediate\.dense\.weight' \d+x48, but BertConfig "
        r"has one number for both; keep: \{uniform: true\} in the rule gives them the same width, "
        r"and --format pt2, onnx and safetensors take the model as it is",
    ),
    "heads of their own size": (
        [half("*query", "head")],
        r"no number in BertConfig makes 'bert\.encoder\.layer\.0\.attention\.self\.query\.weight' "
        r"24x48: it stays 48x48; "
        r"--format pt2, onnx and safetensors take the model as it is",
    ),
    "the width of all": (
        [half("*.0.attention.output.dense")],
        r"no number in BertConfig makes 'bert\.encoder\.layer\.0\.attention\.self\.query\.weight' "
        r"48x24: with hidden_size 24 it is 24x24; "
        r"--format pt2, onnx and safetensors take the model as it is",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_configuration_cannot_say_is_refused_by_name(name: str) -> None:
    rules, message = REFUSED[name]
    run = run_of("refused", *CASES["bert"][:3], rules)
    with pytest.raises(ModelError, match=f"^{message}$"):
        sparsify.export(run, "huggingface", "out")
    assert not Path("out").exists() and not list(Path.cwd().glob(".*"))
    assert sparsify.export(run, "pt2").difference == 0


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
