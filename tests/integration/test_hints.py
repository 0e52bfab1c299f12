"""What people write who come from elsewhere gets the useful next step."""

import json
from pathlib import Path

import pytest
import yaml

from sparsify_cli.app import exit_code

RECIPE = {
    "version": 1,
    "title": "Small",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "10%"},
    "rules": [{"layers": "conv*", "group": "filter"}],
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("layers", "hint"),
    [
        ("conv1, conv2", "write several layers as a list: [conv1, conv2]"),
        ("{conv1,conv2}", "write several layers as a list: [conv1, conv2]"),
        ("conv1,conv2,conv3", "write several layers as a list: [conv1, conv2, conv3]"),
        ("torch.nn.Conv2d", "write the class without its package: Conv2d"),
        ("nn.Conv2d", "write the class without its package: Conv2d"),
        ("\u201cconv*\u201d", "it holds U+201C (left double quotation mark), not '\"'"),
        ("c\u043env1", "it holds U+043E (Cyrillic small letter o), not 'o'"),
        ("conv1\u00a0", "it holds U+00A0 (no-break space), not a plain space"),
    ],
)
def test_layers(layers: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {**RECIPE, "rules": [{"layers": layers, "group": "filter"}]}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert exit_code(["plan", "recipe.yaml", "--from-scratch"]) == 1
    assert capsys.readouterr().err.endswith(
        f"rules.0.layers: {layers!r} matches no layer of the model; {hint}\n"
    )


def test_a_run_that_has_not_finished_as_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    Path("half").mkdir()
    Path("half/state.json").write_text("{}")
    assert exit_code(["plan", "recipe.yaml", "half"]) == 1
    assert capsys.readouterr().err == (
        "half is a run that has not finished and has no cut model yet; "
        "continue it with 'sparsify apply --resume half'\n"
    )


def test_a_resumed_run_stays_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["apply", "--resume", "half", "--out", "there"]) == 2
    assert "--resume goes on in half, and --out names another folder; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--from-scratch"], ["--strict"], ["--allow", "numpy"]])
def test_a_resumed_run_goes_on_as_it_was_started(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["apply", "--resume", "half", *option]) == 2
    message = f"--resume goes on as half was started, and would ignore {option[0]}; leave it out"
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_penalty_of_scales_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    """LeNet-5 has no normalisation; digits_cnn has some."""
    penalty = {"kind": "bn_scale", "strength": 1e-4}
    recipe = {
        **{key: value for key, value in RECIPE.items() if key != "data"},
        "inputs": [{"shape": [2, 1, 28, 28]}],
        "model": {"build": "sparsify.models.lenet5"},
        "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%", "penalty": penalty}],
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert exit_code(["plan", "recipe.yaml", "--from-scratch"]) == 1
    assert capsys.readouterr().err.endswith(
        "rules.0.penalty: penalty bn_scale finds no normalisation with a scale in the rule's groups; "
        "use group_lasso there\n"
    )
    recipe |= {"inputs": [{"shape": [2, 1, 8, 8]}], "model": RECIPE["model"]}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert exit_code(["plan", "recipe.yaml", "--from-scratch"]) == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "x.npy",
            "'x.npy' is no source; an .npy holds one array; "
            "write x_train, y_train, x_test and y_test into one .npz by numpy.savez",
        ),
        ("x.parquet", "'x.parquet' is no source; write the table as .csv"),
        (
            "x.pt",
            "'x.pt' is no source; "
            "write arrays as .npz, or name a callable that returns Datasets, such as mydata:load",
        ),
        ("mine.py", "'mine.py' is no source; name the callable in it, such as mydata:load"),
        ("https://a.b/d.npz", "'https://a.b/d.npz' is a URL; download the file, and write its path"),
        ("./mine.py:load", "'./mine.py:load' names a file; write its module, 'mine:load'"),
        ("mine.py:load", "'mine.py:load' names a file; write its module, 'mine:load'"),
        (
            "sets/mine.py:load",
            "'sets/mine.py:load' names a file; write its module, 'mine:load', and run sparsify in sets",
        ),
    ],
)
def test_sources(source: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "data": {"source": source}}))
    assert exit_code(["validate", "recipe.yaml"]) == 1
    assert capsys.readouterr().err.rstrip().endswith(f"data.source: {said}")


@pytest.mark.parametrize("key", ["model.build", "task.loss", "task.collate", "stages.0.optimizer.use"])
@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("./mine.py:make", "write its module, 'mine:make'"),
        ("mine.py:make", "write its module, 'mine:make'"),
        ("nets/mine.py:make", "write its module, 'mine:make', and run sparsify in nets"),
        ("nets\\mine.py:make", "write its module, 'mine:make', and run sparsify in nets"),
        ("mine.py", "write its module, 'mine:NAME' with the name of the callable"),
    ],
)
def test_a_callable_in_a_file(key: str, written: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = {"kind": "other", "use": "RAdam"}
    train = {"kind": "train", "name": "learn", "epochs": 1, "optimizer": optimizer}
    Path("recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "stages": [train, {"kind": "cut"}]}))
    assert exit_code(["validate", "recipe.yaml", "--set", f"{key}={written}"]) == 1
    assert capsys.readouterr().err == f"--set: {key}: {written!r} names a file; {hint}\n"


def test_a_metric_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "task": {"metrics": ["./mine.py:score"]}}))
    assert exit_code(["validate", "recipe.yaml"]) == 1
    assert "'./mine.py:score' names a file; write its module, 'mine:score'" in capsys.readouterr().err


def test_a_usage_error_is_json_after_another_command(capsys: pytest.CaptureFixture[str]) -> None:
    """In one process; found by tests/benchmarks/fuzz_commands.py."""
    assert exit_code(["explain", "macs"]) == 0
    capsys.readouterr()
    assert exit_code(["validate", "recipe.yaml", "--json", "--nonsense"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "UsageError"
