"""The names that a module of sparsify defines, read from its source.

Importing `sparsify.models` imports torch.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from sparsify.recipe.wording import suggest

_HERE = Path(__file__).parents[1]


def find_problem(build: str) -> tuple[str, str]:
    """(problem, hint) of a builder such as `sparsify.models.lenet6`.

    Two empty texts when there is no problem.

    A builder outside of sparsify is not checked.
    """
    module, _, name = build.replace(":", ".").rpartition(".")
    if module != "sparsify" and not module.startswith("sparsify."):
        return "", ""
    file = _find_file(module)
    if file is None:
        return f"there is no module '{module}'", suggest(build, list_builders())
    names = set(_list_names(file))
    if name in names:
        return "", ""
    return f"module '{module}' has no '{name}'", _suggest(module, name)


def _suggest(module: str, name: str) -> str:
    if module != "sparsify.models":
        return suggest(f"sparsify.models.{name}", list_builders())
    return suggest(name, [known.rpartition(".")[2] for known in list_builders()])


def _find_file(module: str) -> Path | None:
    stem = _HERE.joinpath(*module.split(".")[1:])
    return next((file for file in (stem / "__init__.py", stem.with_suffix(".py")) if file.is_file()), None)


def list_builders() -> list[str]:
    """The builders of sparsify.models."""
    models = _HERE / "models" / "__init__.py"
    return sorted(f"sparsify.models.{name}" for name in _list_names(models) if not name.startswith("_"))


def _list_names(file: Path) -> Iterator[str]:
    """What a module defines or imports at its top level."""
    for node in ast.parse(file.read_bytes()).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
            case ast.Assign():
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
