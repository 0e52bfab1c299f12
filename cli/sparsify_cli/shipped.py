"""The recipes that ship with the package: where they lie, and a copy of one for a user's folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from sparsify.errors import SparsifyError

SCHEMA_LINE = "# yaml-language-server: $schema=../schemas/recipe.schema.json\n"
_SCHEMA_LINES = (
    "# yaml-language-server: $schema=recipe.schema.json\n"
    "# With that file beside this one (`sparsify schema recipe > "
    "recipe.schema.json`) an editor completes and checks"
    " as you type.\n"
)
_APPLY = re.compile(r"(?:cd recipes && )?sparsify apply \S+\.yaml(.*)")


@dataclass(frozen=True)
class RecipeCopy:
    """A recipe for a user's folder, not yet written: its texts, and the command that runs it."""

    recipe: Path
    texts: Mapping[Path, str]
    """file -> text: the recipe, and Python files beside it"""
    command: str


def recipe_folder() -> Path:
    """The folder of the recipes: inside the installed package, or `recipes/` of a checkout."""
    package = Path(__file__).parent
    installed = package / "shipped" / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def recipe_names() -> list[str]:
    return sorted(file.stem for file in recipe_folder().glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe. Raises SparsifyError with the name that was probably meant."""
    names = recipe_names()
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f"did you mean '{near[0]}'?" if near else "`sparsify recipes` lists them"
        raise SparsifyError(f"no recipe called '{name}' ships with sparsify; {hint}")
    return recipe_folder() / f"{name}.yaml"


def modules_beside(recipe: Path) -> list[Path]:
    """Python files in the recipe's folder that the recipe names, such as ecg5000.py for `ecg5000:load`."""
    _, _, body = recipe.read_text(encoding="utf-8").partition("\nversion:")
    files = sorted(recipe.parent.glob("*.py"))
    return [file for file in files if re.search(rf"\b{file.stem}[:.]\w", body)]


def copy_recipe(name: str, destination: Path) -> RecipeCopy:
    """A copy of a shipped recipe. The commands in the comment at its head are those for the copy.

    Python files that it names are copied along. They are found from the folder in which `sparsify` is called.
    """
    source = find_recipe(name)
    folder = destination.parent
    modules = modules_beside(source)
    text = source.read_text(encoding="utf-8").replace(SCHEMA_LINE, _SCHEMA_LINES, 1)
    header, version, body = text.partition("\nversion:")
    written = _APPLY.search(header)
    arguments = written[1] if written else " --from-scratch"
    inside = f"cd {folder} && " if modules and folder != Path() else ""
    command = f"{inside}sparsify apply {destination.name if inside else destination}{arguments}"
    header = _APPLY.sub(lambda _: command, header)
    beside = {folder / file.name: file.read_text(encoding="utf-8") for file in modules}
    return RecipeCopy(destination, {destination: header + version + body, **beside}, command)
