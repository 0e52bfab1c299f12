"""The layout of the source, as tests/benchmarks/structure.py measures it."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/benchmarks/structure.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


structure = load_script()


@pytest.fixture(scope="module")
def imports() -> Any:
    """Which rooms import which."""
    return structure.room_imports(ROOT)


def test_no_import_goes_up() -> None:
    assert structure.stated_layers(ROOT) >= 9, "pyproject.toml states the layers"
    assert structure.upward_imports(ROOT) == 0


def test_no_rooms_import_each_other_in_a_circle(imports: Any) -> None:
    assert structure.circles(imports) == []


def test_at_most_twenty_two_rooms_on_ten_floors(imports: Any) -> None:
    assert len(imports) <= 22
    assert max(structure.floors(imports).values()) <= 10


def test_modules_stay_short() -> None:
    """All penalties stand in one module, so that a new one touches three files."""
    lengths = {
        str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines())
        for file in structure.source_files(ROOT)
    }
    del lengths["schemas/sparsify_schemas/penalty.py"]
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_functions_are_called_by_verb_and_object() -> None:
    names = structure.function_names(structure.source_files(ROOT))
    assert sum("_" not in name for name in names) <= 0.25 * len(names)
    assert sum(map(structure.is_participle, names)) <= 0.02 * len(names)


def test_statements_take_one_step() -> None:
    files = structure.source_files(ROOT)
    assert len(structure.dense_statements(files)) <= 100


# The script itself, on a small checkout.

LAYERS = (
    '[[contracts]]\ncontainers = ["sparsify"]\nlayers = [\n  "roof",\n  "middle | side",\n  "ground",\n]\n'
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(LAYERS, encoding="utf-8")
    sources = {"roof": "from sparsify.middle import part", "side": "import sparsify.ground", "ground": ""}
    for name, text in sources.items():
        (tmp_path / "sparsify").mkdir(exist_ok=True)
        (tmp_path / "sparsify" / f"{name}.py").write_text(f"{text}\n", encoding="utf-8")
    (tmp_path / "sparsify/middle").mkdir()
    (tmp_path / "sparsify/middle/__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "sparsify/middle/part.py").write_text("from sparsify import ground\n", encoding="utf-8")
    return tmp_path


def test_rooms_and_floors_are_counted(checkout: Path) -> None:
    imports = structure.room_imports(checkout)
    assert structure.floors(imports) == {"ground": 1, "middle": 2, "side": 2, "roof": 3}
    assert (structure.stated_layers(checkout), structure.upward_imports(checkout)) == (3, 0)
    assert structure.circles(imports) == []


def test_dense_statements_are_counted_without_what_stands_inside_them(checkout: Path) -> None:
    text = (
        "def build(xs: list[int]) -> list[int]:\n"
        "    if [x for x in xs]:\n"
        "        return [x if x else 1 for x in xs]\n"
        "    return [x for x in xs]\n"
    )
    file = checkout / "sparsify/ground.py"
    file.write_text(text, encoding="utf-8")
    assert structure.dense_statements([file]) == [(file, 3)]


def test_an_import_upwards_inside_a_function_is_found(checkout: Path) -> None:
    text = "def build() -> None:\n    from sparsify.middle.part import build\n"
    (checkout / "sparsify/ground.py").write_text(text, encoding="utf-8")
    assert structure.upward_imports(checkout) == 1
    assert structure.circles(structure.room_imports(checkout)) == [frozenset({"ground", "middle"})]
    assert structure.figures(checkout)["circles"] == "1"
