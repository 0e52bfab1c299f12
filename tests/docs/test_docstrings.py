"""The public functions say what they take, return and raise, and their examples run.

The examples share the model and the recipe that docs/reference/python.md shows.
"""

import doctest
import inspect
import re
import sys
from pathlib import Path

import pytest

import sparsify

sys.path.append(str(Path(__file__).parent))

from blocks import DOCS, blocks

PUBLIC = [name for name in sparsify.__all__ if name != "__version__"]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(sparsify, name))]
WITHOUT_ERRORS = {"describe"}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_a_public_name_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared: dict[str, object] = {}
    for block in blocks(DOCS / "reference" / "python.md"):
        if block.mark == "run":
            exec(block.text, shared)
    test = doctest.DocTestParser().get_doctest(
        inspect.getdoc(getattr(sparsify, name)) or "", shared, name, None, None
    )
    assert test.examples, f"{name} has no example"
    told: list[str] = []
    options = doctest.ELLIPSIS
    doctest.DocTestRunner(optionflags=options).run(test, out=told.append)
    assert "".join(told) == ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_docstring_names_every_argument_the_result_and_the_errors(name: str) -> None:
    function = getattr(sparsify, name)
    text = inspect.getdoc(function) or ""
    sections = re.findall(r"^(Args|Returns|Raises|Examples):$", text, re.MULTILINE)
    wanted = ["Args", "Returns", "Raises", "Examples"]
    assert sections == [s for s in wanted if s != "Raises" or name not in WITHOUT_ERRORS]
    listed = re.findall(r"^    (\w+): ", text.partition("Args:")[2].partition("Returns:")[0], re.MULTILINE)
    assert listed == list(inspect.signature(function).parameters)


def test_the_reference_shows_every_public_name() -> None:
    shown = (DOCS / "reference" / "python.md").read_text()
    assert [name for name in PUBLIC if f"::: sparsify.{name}\n" not in shown] == []
