"""`sparsify recipes` lists what ships with the package, `sparsify init --from NAME` copies one of them."""

import json
import re
from pathlib import Path

import pytest

from sparsify.recipe import load
from sparsify_cli import shipped
from sparsify_cli.app import exit_code

ROOT = Path(__file__).parents[3]
NAMES = sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
BODY = """\
version: 1
title: A small network
model: {build: "nets:Small"}
data: {source: "nets:load"}
rules:
  - {layers: conv1, group: filter, sparsity: 50%}
"""
SMALL = f"""\
# yaml-language-server: $schema=../schemas/recipe.schema.json
#
# Half of the filters (A et al. 2016). Another
# sentence.
#
#   cd recipes && sparsify apply small.yaml --from-scratch
#
{BODY}"""
DIGITS = """\
# The data set of digits.
version: 1
title: Digits
reference: arXiv:1608.03665
data: {source: digits}
rules: [{layers: conv1, group: filter, sparsity: 50%}]
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def two_recipes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that ships two recipes and a Python file."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    (folder / "digits.yaml").write_text(DIGITS, encoding="utf-8")
    (folder / "nets.py").write_text("Small = load = print\n", encoding="utf-8")
    monkeypatch.setattr(shipped, "recipe_folder", lambda: folder)


@pytest.mark.usefixtures("two_recipes")
class TestList:
    def test_each_has_its_data_title_and_first_sentence(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["recipes"]) == 0
        out, error = capsys.readouterr()
        assert out.splitlines() == [
            "Recipes",
            "name    data       title and purpose",
            "-------------------------------------------------------",
            "digits  digits     Digits",
            "                   The data set of digits.",
            "small   nets:load  A small network",
            "                   Half of the filters (A et al. 2016).",
            (
                "digits comes with scikit-learn. mnist and cifar10 are files; when they are missing, "
                "a run names the"
            ),
            "command that brings them.",
            (
                "package:function is a Python file that is copied along (but for sparsify's own); "
                "its first lines"
            ),
            "name the data that it reads.",
            "Copy one: sparsify init --from NAME",
        ]
        assert error == ""

    def test_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["recipes", "--json"]) == 0
        digits, small = json.loads(capsys.readouterr().out)
        assert digits == {
            "name": "digits",
            "title": "Digits",
            "about": "The data set of digits.",
            "data": "digits",
            "reference": "arXiv:1608.03665",
            "modules": [],
        }
        assert (small["modules"], small["reference"]) == (["nets.py"], None)


def test_all_recipes_of_the_repository_are_listed_with_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [recipe["name"] for recipe in listed] == NAMES
    for recipe in listed:
        assert recipe["about"].endswith(".") and recipe["title"] and recipe["data"]


@pytest.mark.usefixtures("two_recipes")
class TestCopy:
    def test_the_recipe_and_its_python_file_are_written(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["init", "--from", "small"]) == 0
        assert capsys.readouterr() == (
            "small.yaml\nnets.py\n",
            "next: sparsify validate small.yaml, then sparsify apply small.yaml --from-scratch\n",
        )
        assert Path("small.yaml").read_text(encoding="utf-8") == (
            "# yaml-language-server: $schema=recipe.schema.json\n"
            "# With that file beside this one (`sparsify schema recipe > recipe.schema.json`) an "
            "editor completes and"
            " checks as you type.\n"
            "#\n"
            "# Half of the filters (A et al. 2016). Another\n"
            "# sentence.\n"
            "#\n"
            "#   sparsify apply small.yaml --from-scratch\n"
            "#\n"
            f"{BODY}"
        )
        assert Path("nets.py").read_text(encoding="utf-8") == "Small = load = print\n"

    def test_a_python_file_is_found_from_the_folder_of_the_recipe(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("mine").mkdir()
        assert exit_code(["init", "mine/first.yaml", "--from", "small"]) == 0
        out, error = capsys.readouterr()
        command = "cd mine && sparsify apply first.yaml --from-scratch"
        assert out == "mine/first.yaml\nmine/nets.py\n"
        assert error == f"next: sparsify validate mine/first.yaml, then {command}\n"
        assert f"#   {command}\n" in Path("mine/first.yaml").read_text(encoding="utf-8")

    def test_nothing_is_overwritten(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("nets.py").write_text("mine", encoding="utf-8")
        assert exit_code(["init", "--from", "small"]) == 1
        assert capsys.readouterr() == ("", "nets.py: exists already; name another file, or remove it first\n")
        assert sorted(Path().iterdir()) == [Path("nets.py")]
        assert Path("nets.py").read_text(encoding="utf-8") == "mine"

    def test_a_python_file_that_is_there_already_is_kept(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert exit_code(["init", "one.yaml", "--from", "small"]) == 0
        assert exit_code(["init", "two.yaml", "--from", "small"]) == 0
        assert capsys.readouterr().out == "one.yaml\nnets.py\ntwo.yaml\n"
        assert exit_code(["init", "two.yaml", "--from", "small"]) == 1
        assert capsys.readouterr().err == "two.yaml: exists already; name another file, or remove it first\n"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("smal", "no recipe called 'smal' ships with sparsify; did you mean 'small'?\n"),
            ("vgg", "no recipe called 'vgg' ships with sparsify; `sparsify recipes` lists them\n"),
            ("../nets", "no recipe called '../nets' ships with sparsify; `sparsify recipes` lists them\n"),
        ],
    )
    def test_a_name_that_there_is_not(
        self, name: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert exit_code(["init", "--from", name]) == 1
        assert capsys.readouterr() == ("", message)
        assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_copy_of_a_recipe_means_the_same(name: str) -> None:
    assert exit_code(["init", "copy.yaml", "--from", name]) == 0
    assert load("copy.yaml").recipe == load(ROOT / "recipes" / f"{name}.yaml").recipe
    header = Path("copy.yaml").read_text(encoding="utf-8").split("\nversion:")[0]
    assert re.search(
        r"^#   sparsify apply copy\.yaml (--from-scratch|[\w/-]+\.(pt|safetensors))", header, re.MULTILINE
    )
    assert "recipes/" not in header and "../" not in header
    module = Path("ecg5000.py")
    assert module.exists() == ("ecg5000" in name)
