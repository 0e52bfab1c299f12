"""Files of a newer sparsify are named as such: nobody is told to delete them or to train again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsify.cost.latency import tables
from sparsify.errors import RecipeError, SparsifyError
from sparsify.recipe import load
from sparsify.runs.model_base import read_cuts
from sparsify.runs.run_folder import State
from sparsify.runs.sensitivity import read_profile
from sparsify_schemas.profile import Profile
from sparsify_schemas.target import Cpu

RULE = {"layers": "conv*", "group": "filter", "keep": {"limits": "file.json"}}
RECIPE = {"version": 1, "title": "x", "rules": [RULE]}
_profile = Profile(by="taylor", digest="d", examples=1, loss=1.0, metric=0.5, curves=())
PROFILE = _profile.model_dump(mode="json")
STATE = {"recipe": {}, "model_file": None, "model_digest": None, "allow": []}
TARGET = Cpu(kind="cpu", table="file.json")
TABLE = tables.Table(machine=tables.describe_machine(Cpu(kind="cpu")), target=Cpu(kind="cpu")).model_dump(
    mode="json"
)
CUTS = {"version": 1, "recipe": "r", "operations": [], "before": {}, "after": {}}


def read_limits() -> Any:
    return load(Path("recipe.json"))


Read = Callable[[], Any]
READERS: dict[str, tuple[str, dict[str, Any], Read, str]] = {
    "profile": ("file.json", PROFILE, lambda: read_profile(Path("file.json")), "read it with that version"),
    "limits": ("file.json", PROFILE, read_limits, "read it with that version"),
    "table": ("file.json", TABLE, lambda: tables.read_table("t", TARGET), "read it with that version"),
}


@pytest.mark.parametrize(
    ("change", "sign"), [({"version": 2}, "version: 2"), ({"more": {"of": 1}}, "it has 'more'")]
)
@pytest.mark.parametrize("name", READERS)
def test_a_newer_version_is_named(
    name: str, change: dict[str, Any], sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.json").write_text(json.dumps(RECIPE))
    file, body, read, advice = READERS[name]
    Path(file).write_text(json.dumps(body | change))
    with pytest.raises(SparsifyError) as caught:
        read()
    said = str(caught.value)
    assert said.endswith(f"{file} was written by a newer sparsify ({sign}); {advice}")
    assert "delete" not in said and "damaged" not in said


def test_a_state_with_an_unknown_key(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(STATE | {"priority": 3}))
    with pytest.raises(SparsifyError) as caught:
        State.read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/state.json was written by a newer sparsify (it has 'priority'); "
        "continue the run with that version"
    )


def test_a_cut_log_of_version_3(tmp_path: Path) -> None:
    (tmp_path / "cuts.json").write_text(json.dumps(CUTS | {"version": 3}))
    with pytest.raises(SparsifyError) as caught:
        read_cuts(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/cuts.json was written by a newer sparsify (version: 3); read it with that version"
    )


@pytest.mark.parametrize("version", [0, "2", None, 1.5])
def test_what_is_no_higher_number_is_just_wrong(version: Any, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(PROFILE | {"version": version}))
    with pytest.raises(SparsifyError, match="damaged or not a sensitivity profile"):
        read_profile(tmp_path / "p.json")


def test_a_recipe_of_version_2() -> None:
    with pytest.raises(RecipeError) as caught:
        load({**RECIPE, "rules": [], "version": 2})
    (problem,) = [problem for problem in caught.value.problems if problem.path == "version"]
    assert (problem.message, problem.hint) == (
        "expected 1, the version of the language that this sparsify reads, found the number 2",
        "it was written for a newer sparsify; use that version",
    )
