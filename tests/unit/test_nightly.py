"""The list of variants that are left to the night: it is read rightly, and every line names a test."""

import ast
from functools import cache
from pathlib import Path

import nightly
import pytest

ROOT = Path(__file__).parents[2]


@cache
def list_tests(file: str) -> dict[str, ast.FunctionDef]:
    """The functions of a file by name; many lines name the same file."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_line_names_a_test_with_variants() -> None:
    assert nightly.LINES
    for line in nightly.LINES:
        file, *_, name = line.name.split("::")
        test = list_tests(file).get(name.split("[")[0])
        assert test is not None, line.name
        marks = [ast.unparse(mark) for mark in test.decorator_list]
        assert any("parametrize" in mark or mark.isupper() for mark in marks), (
            f"{line.name} has no variants: mark it with @pytest.mark.nightly"
        )
    assert len({line.name for line in nightly.LINES}) == len(nightly.LINES)


def test_names_and_every_so_many_th_variant() -> None:
    lines = nightly.read_list("# why\n\ntests/a.py::test_one[slow\n1 of 2 tests/a.py::test_two\n")
    assert lines == [nightly.Left("tests/a.py::test_one[slow"), nightly.Left("tests/a.py::test_two", 2)]
    names = ["tests/a.py::test_one[quick]", "tests/a.py::test_one[slow way]", "tests/b.py::test_two[1]"]
    names += ["tests/a.py::test_two_more[1]", "tests/a.py::test_two_more[2]"]
    variants = [f"tests/a.py::test_two[{n}]" for n in range(5)]
    assert nightly.find_left_out([*names, *variants], lines) == {names[1], variants[1], variants[3]}


def test_a_line_that_is_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'test_one' is not '1 of N tests/FILE\.py::NAME'"):
        nightly.read_list("test_one")
