"""What people write who come from elsewhere gets the useful next step."""

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
        f"rules.0.layers: '{layers}' matches no layer of the model; {hint}\n"
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
