"""What a user installs: three packages with the recipes and JSON Schemas, and no top-level `cli`, `recipes`
or `tests`."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--wheel", "--no-isolation", "--outdir", str(folder)]
    command = [sys.executable, "-m", "build", *options, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("sparsify_recipes-*.whl")
    return built


def test_the_wheel_holds_three_packages_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "sparsify",
        "sparsify_cli",
        "sparsify_schemas",
    }
    assert {"sparsify/py.typed", "sparsify_cli/py.typed", "sparsify_schemas/py.typed"} <= set(names)
    assert "sparsify = sparsify_cli.app:main" in entry


@pytest.mark.parametrize(
    ("folder", "patterns"), [("recipes", ["*.yaml", "*.py"]), ("schemas", ["*.schema.json"])]
)
def test_the_wheel_holds_every_recipe_and_schema(wheel: Path, folder: str, patterns: list[str]) -> None:
    files = {file.name: file for pattern in patterns for file in (ROOT / folder).glob(pattern)}
    inside = f"sparsify_cli/shipped/{folder}/"
    with zipfile.ZipFile(wheel) as archive:
        held = [name for name in archive.namelist() if name.startswith(inside)]
        assert sorted(name.removeprefix(inside) for name in held) == sorted(files)
        for name in held:
            assert archive.read(name) == files[name.removeprefix(inside)].read_bytes()


def test_an_installed_package_lists_copies_and_validates_its_recipes(wheel: Path, tmp_path: Path) -> None:
    installed, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)

    def sparsify(*arguments: str) -> str:
        command = [sys.executable, "-m", "sparsify_cli", *arguments]
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import sparsify_cli; print(sparsify_cli.__file__)"],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(installed)), "not the checkout"
    listed = [recipe["name"] for recipe in json.loads(sparsify("recipes", "--json"))]
    assert listed == sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
    assert sparsify("init", "--from", "lstm-ecg5000-hidden") == "lstm-ecg5000-hidden.yaml\necg5000.py\n"
    assert sparsify("validate", "lstm-ecg5000-hidden.yaml").startswith("lstm-ecg5000-hidden.yaml: valid\n")
