"""Parts of a measurement on disk: made once, whole, and refused when they were damaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparsify.errors import RunError
from sparsify.runs.measurement_cache import MeasurementCache


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MeasurementCache:
    monkeypatch.chdir(tmp_path)
    found = MeasurementCache(Path("kept"), "a model")
    assert found.get_file("a.bin", lambda: b"abc") == b"abc"
    assert found.get_figures("times", 2, lambda: (1.5, None)) == (1.5, None)
    return found


def never() -> None:
    raise AssertionError("made again")


def complaint(parts: MeasurementCache) -> str:
    with pytest.raises(RunError) as caught:
        parts.get_file("a.bin", never)  # type: ignore[arg-type]
        parts.get_figures("times", 2, never)  # type: ignore[arg-type]
    return str(caught.value)


def test_what_is_there_is_read(parts: MeasurementCache) -> None:
    assert parts.get_file("a.bin", never) == b"abc"  # type: ignore[arg-type]
    assert parts.get_figures("times", 2, never) == (1.5, None)  # type: ignore[arg-type]


def test_what_is_of_something_else_is_made_anew(parts: MeasurementCache) -> None:
    other = replace(parts, of="another model")
    assert other.get_file("a.bin", lambda: b"d") == b"d"
    assert other.get_figures("times", 2, lambda: (2.0, 3.0)) == (2.0, 3.0)


def test_a_part_that_is_gone_is_made_anew(parts: MeasurementCache) -> None:
    Path("kept/a.bin").unlink()
    assert parts.get_file("a.bin", lambda: b"abc") == b"abc"


def test_a_kill_while_a_part_is_made_leaves_the_others(parts: MeasurementCache) -> None:
    def killed() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.get_file("b.bin", killed)
    assert parts.get_file("a.bin", never) == b"abc"  # type: ignore[arg-type]
    assert parts.get_file("b.bin", lambda: b"b") == b"b"


def test_a_damaged_part_is_refused(parts: MeasurementCache) -> None:
    Path("kept/a.bin").write_bytes(b"abd")
    assert complaint(parts) == (
        "kept/a.bin is damaged: its SHA-256 is not the one in parts.json; delete it, and it is measured again"
    )


def test_a_damaged_record_is_refused(parts: MeasurementCache) -> None:
    record = Path("kept/parts.json")
    whole = json.loads(record.read_text())
    record.write_text(json.dumps({**whole, "figures": {"times": [1.0]}}))
    assert (
        complaint(parts)
        == "kept/parts.json is damaged (times: 1 numbers instead of 2); delete it, and it is measured again"
    )
    record.write_text(json.dumps({**whole, "figures": [1]}))
    assert complaint(parts) == (
        "kept/parts.json is damaged (figures: Input should be an object); delete it, and it is measured again"
    )
    record.unlink()
    record.mkdir()
    assert complaint(parts) == "kept/parts.json is damaged: it is not a regular file"


def test_a_place_that_cannot_be_written_is_named(parts: MeasurementCache) -> None:
    Path("file").write_text("")
    with pytest.raises(RunError, match="cannot make file: File exists"):
        MeasurementCache(Path("file"), "x").get_file("a", lambda: b"")
