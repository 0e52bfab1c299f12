"""Adding a member to a family: mypy names every place that must be filled,
and CONTRIBUTING lists these very places.

In a copy of the sources each family gets an imaginary member that nothing knows of.
Every place that mypy then complains about is a function;
of a penalty or criterion also the method that its class has to have.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from sparsify_schemas.criterion import Criterion
from sparsify_schemas.penalty import Penalty

ROOT = Path(__file__).parents[2]
SOURCES = ("sparsify", "cli", "schemas")
CACHE = ".mypy_cache"
"""of a checkout in which `make types` has run: with it mypy takes seconds, without a minute"""

Edit = tuple[str, str, str]
"""file, what stands there once, what takes its place"""


def member(family: str, base: str, joined: str, body: str = "") -> tuple[Edit, ...]:
    """A class before the union that it joins. joined: how the union begins, up to its first member."""
    file, name = f"schemas/sparsify_schemas/{family}.py", f"Imaginary{family.capitalize()}"
    text = f'@final\nclass {name}({base}):\n    kind: Literal["imaginary"]\n{body}\n\n{joined}{name} | '
    return (
        (file, joined, text),
        (file, '"""\n\nfrom ', '"""\n\nfrom typing import final\nfrom '),
    )


FAMILIES: dict[str, tuple[Edit, ...]] = {
    "a penalty": member("penalty", "PenaltySpec", "Penalty = Annotated[\n    "),
    "a criterion": member("criterion", "CriterionSpec", "Criterion = Annotated[\n    "),
    "a group type": (
        ("schemas/sparsify_schemas/group.py", "Word = Literal[", 'Word = Literal["ImaginaryGroup", '),
    ),
    "a schedule": member("schedule", "Spec", "_Members = "),
    "a target": member(
        "target",
        "Spec",
        "Target = Annotated[",
        '    runtime: Literal["ImaginaryTarget"]\n    batch: Positive = 1\n'
        '    dtype: Literal["float32"] = "float32"\n'
        '    layout: Layout = "contiguous"\n    table: Text | None = None\n',
    ),
    "a stage": member("stage", "Spec", "Stage = Annotated[", "    name: Text\n"),
    "a baseline": (
        (
            "schemas/sparsify_schemas/baseline.py",
            "\nBaseline = Literal[",
            '\nBaseline = Literal["ImaginaryBaseline", ',
        ),
    ),
}
NAMES = {
    "a penalty": "ImaginaryPenalty",
    "a criterion": "ImaginaryCriterion",
    "a group type": "ImaginaryGroup",
    "a schedule": "ImaginarySchedule",
    "a target": "ImaginaryTarget",
    "a stage": "ImaginaryStage",
    "a baseline": "ImaginaryBaseline",
}
"""by which mypy's messages name the member"""


def named_places(copy: Path) -> dict[str, set[str]]:
    """Family -> the places, `file.py:function`, that mypy names when it has a
    member more. copy: an empty folder."""
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", copy)
    if (ROOT / CACHE).exists():
        shutil.copytree(ROOT / CACHE, copy / CACHE)
    for file, before, after in (edit for edits in FAMILIES.values() for edit in edits):
        text = (copy / file).read_text()
        assert text.count(before) == 1, f"{before!r} stands in {file} {text.count(before)} times"
        (copy / file).write_text(text.replace(before, after))
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--no-pretty", "--no-color-output"]
    said = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert not said.stderr, said.stderr
    found: dict[str, set[str]] = {family: set() for family in FAMILIES}
    for line in said.stdout.splitlines():
        family = next((family for family, name in NAMES.items() if name in line), None)
        assert family is not None, f"no member is named in {line!r}"
        found[family].add(place(copy, line))
    return found


def place(root: Path, line: str) -> str:
    """`file.py:function` of a line of mypy's; of a class that lacks a method, that method."""
    file, number, message = line.split(":", 2)
    abstract = re.search(r'has abstract attributes "(\w+)"', message)
    return f"{file}:{abstract[1] if abstract else function_at(root / file, int(number))}"


def function_at(file: Path, line: int) -> str:
    """The innermost function around a line."""
    around = [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or line)
    ]
    return max(around, key=lambda node: node.lineno).name


def listed_places() -> dict[str, set[str]]:
    """Family -> the places in its row of the table in CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.partition("| to add |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1:] for line in table.splitlines()[2:]]
    return {row[0].strip(): set(re.findall(r"`([\w/]+\.py:\w+)`", row[1])) for row in rows}


@pytest.mark.nightly
def test_mypy_names_the_very_places_that_contributing_lists(tmp_path: Path) -> None:
    """One run of mypy for all families, as it takes seconds."""
    assert named_places(tmp_path) == listed_places()


@pytest.mark.parametrize(
    "kind",
    [k for union in (Penalty, Criterion) for k in get_args(get_args(union)[0])],
    ids=lambda k: k.__name__,
)
def test_members_with_facts_are_final(kind: type) -> None:
    """So that mypy complains where a member is written, not first where it is used."""
    assert getattr(kind, "__final__", False), f"write @final above {kind.__name__}"
