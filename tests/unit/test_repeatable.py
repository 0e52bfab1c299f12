"""Property tests repeat themselves: the same examples in every run, whatever ran before, and nothing is
kept."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import configuration, given, settings
from hypothesis import strategies as st

NIGHTLY = settings.get_current_profile_name() == "fresh"
ROOT = Path(__file__).parents[2]


def drawn() -> list[object]:
    """What Hypothesis draws for one property."""
    found: list[object] = []

    @given(st.integers(), st.floats(), st.text())
    def property(number: int, part: float, text: str) -> None:
        found.append((number, repr(part), text))

    property()
    return found


@pytest.mark.skipif(NIGHTLY, reason="a night is for fresh examples")
def test_the_examples_do_not_depend_on_the_modules_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = drawn()
    source = tmp_path.parent / "constants_of_a_module.py"
    source.write_text("NUMBERS = 123456789, 0.123456789, 'a word that nobody draws'\n")
    module = ModuleType("constants_of_a_module")
    module.__file__ = str(source)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert drawn() == before


@pytest.mark.skipif(NIGHTLY, reason="a night is for fresh examples")
def test_every_property_repeats_itself_and_keeps_nothing(request: pytest.FixtureRequest) -> None:
    properties = [item for item in request.session.items if hasattr(getattr(item, "obj", None), "hypothesis")]
    for item in properties:
        used = item.obj._hypothesis_internal_use_settings  # type: ignore[attr-defined]
        assert used.derandomize and used.database is None and used.deadline is None, item.nodeid


def test_nothing_is_written_into_the_repository() -> None:
    assert not configuration.storage_directory().path.is_relative_to(ROOT)
