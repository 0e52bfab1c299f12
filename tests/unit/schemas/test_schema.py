"""The JSON Schemas: current, valid themselves, kind to good recipes and strict with bad ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sparsify.recipe import dump, load
from sparsify.recipe.nodes import to_plain
from sparsify.recipe.yaml_parser import read_text
from sparsify_schemas.cuts import Cuts, Narrow, Width
from sparsify_schemas.export import SCHEMAS, recipe_schema, text_of, write_all

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
VALIDATOR = Draft202012Validator(recipe_schema())

GOOD = """\
version: 1
title: Sample
vars: {epochs: 3, share: 40, on: true}
model: {build: a.b, args: {x: [1, {y: null}]}}
inputs: {x: {shape: [2, "${epochs}"]}}
data: {source: digits, augment: {flip: "${on}"}}
targets: {here: {kind: cpu, threads: "${epochs}"}}
budget: {macs: "${share}%", bytes: 8MiB}
rules:
  - layers: "conv*"
    group: out_channel
    penalty: {kind: group_lasso, strength: {kind: cubic, to: "${epochs / 1e3}", end: "${epochs}ep"}}
    sparsity: "${share}%"
  - layers: [fc2]
    protect: "${on}"
stages:
  - {kind: train, epochs: "${epochs}", optimizer: {kind: adam, lr: 1e-3, betas: [0.9, "${0.9}"]}}
  - {kind: cut}
"""


def raw(text: str) -> Any:
    """A recipe as an editor sees it: neither merged nor filled in."""
    document = read_text(text, "recipe.yaml")
    assert document.root is not None
    return to_plain(document.root)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_files_are_current(name: str) -> None:
    file = ROOT / "schemas" / f"{name}.schema.json"
    assert file.read_text(encoding="utf-8") == text_of(SCHEMAS[name]()), "run `python -m sparsify_schemas`"


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_is_a_schema_of_draft_2020_12(name: str) -> None:
    schema = SCHEMAS[name]()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == f"sparsify {name}"
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_every_worked_example_validates(file: Path) -> None:
    VALIDATOR.validate(raw(file.read_text(encoding="utf-8")))
    load(file)


def test_expressions_may_stand_for_values() -> None:
    VALIDATOR.validate(raw(GOOD))
    load(raw(GOOD))


def test_a_resolved_recipe_validates() -> None:
    VALIDATOR.validate(raw(dump(load(raw(GOOD)).recipe)))


@pytest.mark.parametrize(
    "text",
    [
        "extends: base.yaml\n",
        (
            "extends: base.yaml\n"
            "title: x\n"
            "model: {args: {x: 1}}\n"
            "data: {validation: 20%}\n"
            "targets: {here: {threads: 2}}\n"
            "budget: {macs: null}\n"
        ),
        "extends: base.yaml\nvars: {epochs: 1}\n",
    ],
)
def test_a_child_needs_only_what_it_changes(text: str) -> None:
    VALIDATOR.validate(raw(text))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("title: Sample\n", ""),
        ("build: a.b, ", ""),
        ("{source: digits, ", "{"),
        ("kind: cpu, ", ""),
        ("title: Sample", "titel: Sample"),
        ("title: Sample", "title: 5"),
        ("version: 1", "version: 2"),
        ("8MiB", "8"),
        ("8MiB", "8 MiB"),
        ("${share}%", "40"),
        ("group_lasso", "group_laso"),
        ("to:", "too:"),
        ("out_channel", "height"),
        ("epochs: 3", "epochs: [3]"),
        ("kind: cut", "kind: prune"),
        ("protect:", "protects:"),
        ("betas: [0.9, ", "betas: ["),
    ],
)
def test_mistakes_are_flagged(old: str, new: str) -> None:
    assert old in GOOD
    assert not VALIDATOR.is_valid(raw(GOOD.replace(old, new, 1)))


@pytest.mark.parametrize(
    "text",
    [
        "extends: base.yaml\ntitel: x\n",
        "extends: base.yaml\nmodel: {biuld: a.b}\n",
        "extends: base.yaml\nrules: [{group: filter}]\n",
        "extends: 3\n",
    ],
)
def test_mistakes_of_a_child_are_flagged(text: str) -> None:
    assert not VALIDATOR.is_valid(raw(text))


def test_a_cut_log_validates() -> None:
    cuts = Cuts(
        plan="abc",
        widths=(Width(group="conv1", width=4, keep=((0, 3),)),),
        operations=(Narrow(tensor="conv1.weight", dim=0, size=4, keep=((0, 3),)),),
    )
    Draft202012Validator(SCHEMAS["cuts"]()).validate(json.loads(cuts.model_dump_json()))


def test_the_module_writes_the_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sparsify_schemas", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / f"{name}.schema.json") for name in SCHEMAS]
    assert write_all(tmp_path)[0].read_text(encoding="utf-8") == text_of(recipe_schema())


def test_the_language_imports_neither_torch_nor_yaml() -> None:
    code = (
        "import sys, sparsify_schemas.export; print([m for m in ('torch', 'yaml', 'typer', "
        "'sparsify') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
