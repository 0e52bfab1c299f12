"""How the source is laid out, as numbers: rooms, floors, imports, circles, long lines, names.

    python tests/benchmarks/structure.py [FOLDER ...] [--dense]

FOLDER: checkouts to measure beside each other; this one when left out. A *room* is a top-level module or
package of `sparsify`. The floor of a room is the length of the longest chain of imports below it; rooms that
import each other in a circle share a floor. Imports inside functions and under `TYPE_CHECKING` count as well.
A *dense* statement holds two or more comprehensions or ternaries; --dense lists those of the last folder.
"""

import argparse
import ast
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

WIDTH = 110
SOURCES = ("sparsify", "cli/sparsify_cli", "schemas/sparsify_schemas")
PARTICIPLE = re.compile(r"^[a-z]+(ed|en|ing|lt|pt|wn)$")
"""A one-word name that is a participle of a regular verb, or looks like one of an irregular verb."""
IRREGULAR = frozenset(
    "found held kept left made met put read said shown spent taken told won written".split()
)
NO_PARTICIPLE = frozenset(
    "open when then token seed need feed embed string thing bring ring golden hidden".split()
)

DENSE = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.IfExp)

Imports = Mapping[str, frozenset[str]]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of the package `sparsify`."""
    files = sorted((root / "sparsify").rglob("*.py"))
    return {dotted(file.relative_to(root)): file for file in files}


def dotted(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parse(text: str) -> ast.Module:
    """A file is looked at for several figures and parsed once."""
    return ast.parse(text)


def imported(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports anywhere."""
    for node in ast.walk(parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in inside]
        else:
            continue
        yield from (name for name in names if name in known)


def room(module: str) -> str:
    """`sparsify.graph.trace.tracer` -> `graph`; the package itself has no room."""
    return module.split(".")[1] if "." in module else ""


def room_imports(root: Path) -> Imports:
    """Room -> other rooms that it imports. The public names in `sparsify/__init__.py` are no room."""
    known = modules(root)
    found: dict[str, set[str]] = defaultdict(set)
    for module, file in known.items():
        own = room(module)
        if own:
            found[own] |= {room(other) for other in imported(file, known)} - {own, ""}
    return {name: frozenset(others) for name, others in found.items()}


def circles(imports: Imports) -> list[frozenset[str]]:
    """Sets of rooms that reach each other, larger than one."""
    reach = {name: _reached(name, imports) for name in imports}
    sets = {frozenset({a, *(b for b in reach[a] if a in reach.get(b, ()))}) for a in imports}
    return sorted((one for one in sets if len(one) > 1), key=len, reverse=True)


def _reached(start: str, imports: Imports) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = imports.get(waiting.pop(), frozenset()) - seen
        seen |= new
        waiting += new
    return seen


def floors(imports: Imports) -> dict[str, int]:
    """Room -> its floor, from 1 at the ground."""
    home = {name: frozenset({name}) for name in imports}
    for circle in circles(imports):
        home |= dict.fromkeys(circle, circle)
    height: dict[frozenset[str], int] = {}

    def floor_of(circle: frozenset[str]) -> int:
        if circle not in height:
            below = {home[other] for name in circle for other in imports[name]} - {circle}
            height[circle] = 1 + max((floor_of(other) for other in below), default=0)
        return height[circle]

    return {name: floor_of(home[name]) for name in imports}


def upward_imports(root: Path) -> int | None:
    """Imports that go up by the layers that pyproject.toml states, exceptions included; None without
    layers."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    stated = re.search(r'containers = \["sparsify"\]\nlayers = \[\n(.*?)\n\]', text, re.DOTALL)
    if stated is None:
        return None
    rows = re.findall(r'"([^"]+)"', stated[1])
    level = {name.strip(): place for place, row in enumerate(rows) for name in row.split("|")}
    pairs = [(a, b) for a, others in room_imports(root).items() for b in others]
    return sum(level.get(b, len(rows)) < level.get(a, len(rows)) for a, b in pairs)


def stated_layers(root: Path) -> int:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    stated = re.search(r'containers = \["sparsify"\]\nlayers = \[\n(.*?)\n\]', text, re.DOTALL)
    return stated[1].count("\n") + 1 if stated else 0


def source_files(root: Path) -> list[Path]:
    return [file for folder in SOURCES for file in sorted((root / folder).rglob("*.py"))]


def function_names(files: list[Path]) -> list[str]:
    trees = [parse(file.read_text(encoding="utf-8")) for file in files]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    return [name.strip("_") for name in names if not name.startswith("__")]


def is_participle(name: str) -> bool:
    if "_" in name or name in NO_PARTICIPLE:
        return False
    return name in IRREGULAR or PARTICIPLE.match(name) is not None


def dense_statements(files: list[Path]) -> list[tuple[Path, int]]:
    """(file, line) of every statement with two or more comprehensions or ternaries of its own."""
    found = []
    for file in files:
        for node in ast.walk(parse(file.read_text(encoding="utf-8"))):
            is_block = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if isinstance(node, ast.stmt) and not is_block and count_dense(node) >= 2:
                found.append((file, node.lineno))
    return found


def count_dense(statement: ast.AST) -> int:
    """Comprehensions and ternaries in the expressions of a statement, not in the statements inside it."""
    count = 0
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            count += isinstance(child, DENSE) + count_dense(child)
    return count


def figures(root: Path) -> dict[str, str]:
    """What is measured -> its figure."""
    imports, files = room_imports(root), source_files(root)
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    lengths = [len(file.read_text(encoding="utf-8").splitlines()) for file in files]
    flat = [file for file in (root / "sparsify").glob("*.py") if file.stem != "__init__"]
    stems = [file.stem for file in files if file.stem != "__init__"]
    names = function_names(files)
    up = upward_imports(root)
    return {
        "modules directly in sparsify/": str(len(flat)),
        "modules": str(len(stems)),
        "rooms": str(len(imports)),
        "floors": str(max(floors(imports).values())),
        "layers stated for import-linter": str(stated_layers(root)),
        "imports between rooms": str(sum(map(len, imports.values()))),
        "imports upwards": "none stated" if up is None else str(up),
        "circles": str(len(circles(imports))),
        "median, longest module (lines)": f"{statistics.median(lengths):g}, {max(lengths)}",
        f"lines over {WIDTH} columns": str(sum(len(line) > WIDTH for line in lines)),
        "modules in -ing": f"{sum(stem.endswith('ing') for stem in stems)} of {len(stems)}",
        "functions of one word": f"{sum('_' not in name for name in names) / len(names):.0%}",
        "functions that are participles": f"{sum(map(is_participle, names)) / len(names):.0%}",
        "dense statements": str(len(dense_statements(files))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path(__file__).parents[2]])
    parser.add_argument("--dense", action="store_true")
    arguments = parser.parse_args()
    folders = arguments.folders
    measured = [figures(folder) for folder in folders]
    print("| |", " | ".join(folder.resolve().name for folder in folders), "|")
    print("|---|" + "---|" * len(folders))
    for what in measured[0]:
        print(f"| {what} |", " | ".join(each[what] for each in measured), "|")
    for circle in circles(room_imports(folders[-1])):
        print("circle:", ", ".join(sorted(circle)))
    if arguments.dense:
        for file, line in dense_statements(source_files(folders[-1])):
            print(f"{file}:{line}")


if __name__ == "__main__":
    main()
