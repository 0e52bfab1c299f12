"""Ctrl-C and SIGTERM end every command with a sentence and its exit code, and leave no temporary file."""

import importlib
import json
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsify_cli import stopping
from sparsify_cli.app import exit_code


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stop_in_write(number: signal.Signals, end: Callable[[], None]) -> Callable[[Path, bytes], int]:
    """A write that is stopped in the middle."""

    def write(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except KeyboardInterrupt:
            end()
            raise
        return 0

    return write


def raise_another() -> None:
    """As libraries in C do, whose own error takes the place of what a signal raised; seen in a kill of
    `sparsify export`."""
    raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'")


@pytest.mark.parametrize("end", [lambda: None, raise_another], ids=["as it is", "as another error"])
def test_sigterm_in_a_write(
    end: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Path, "write_bytes", stop_in_write(signal.SIGTERM, end))
    assert exit_code(["init", "new.yaml"]) == 143
    assert capsys.readouterr() == ("", "stopped by SIGTERM\n")
    assert not list(Path.cwd().iterdir())
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where a shell started the tests in the background, with SIGINT
    ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_a_write(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", stop_in_write(signal.SIGINT, lambda: None))
    assert exit_code(["init", "new.yaml"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")
    assert not list(Path.cwd().iterdir())


def test_json_says_it_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise stopping.Terminated

    monkeypatch.setattr("sparsify_cli.validate.load", stop)
    assert exit_code(["validate", "r.yaml", "--json"]) == 143
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "StoppedError", "message": "stopped by SIGTERM", "problems": []}
    assert err == "stopped by SIGTERM\n"


IMPORTED = """
import os, signal, time
from pathlib import Path
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.1)
Path("imported").touch()
"""


@pytest.mark.parametrize("longest", [5.0, 0.0])
def test_an_import_ends_first_within_bounds(longest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch aborted when SIGTERM came during its import; found by tests/benchmarks/kill_commands.py."""
    name = f"signalled_{int(longest)}"
    Path(f"{name}.py").write_text(IMPORTED)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setattr(stopping, "_LONGEST_IMPORT", longest)
    with pytest.raises(stopping.Terminated), stopping.raise_on_sigterm():
        importlib.import_module(name)
        time.sleep(10)
    assert Path("imported").exists() == bool(longest)


def test_an_error_without_a_signal_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="UntypedStorage"), stopping.raise_on_sigterm():
        raise_another()


def test_another_thread_has_no_signals() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(exit_code(["explain", "macs"])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize(
    ("made", "distributed", "said"),
    [
        (None, False, "interrupted before the run began; nothing was written"),
        ((), False, "interrupted; continue with: sparsify apply --resume run"),
        ((), True, "interrupted; continue with: sparsify apply --resume run, on any number of processes"),
        (("report.json",), False, "interrupted; the run is complete: sparsify report run"),
    ],
)
def test_a_run_says_how_to_go_on(made: tuple[str, ...] | None, distributed: bool, said: str) -> None:
    run = None if made is None else Path("run")
    for name in made or ():
        Path("run").mkdir()
        Path("run", name).touch()
    error = stopping.describe_stop(KeyboardInterrupt(), run, distributed)
    assert (str(error), error.exit_code) == (said, 130)


class _Leaving:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_comes_while_an_object_goes_is_not_lost() -> None:
    """Python ignores what `__del__` raises."""
    with pytest.raises(stopping.Terminated), stopping.raise_on_sigterm():
        leaving = [_Leaving()]
        leaving.clear()
        time.sleep(5.0)
        pytest.fail("the signal was lost")


def test_a_signal_that_comes_in_a_callback_of_a_weak_reference_is_not_lost() -> None:
    """Python ignores what such a callback raises, too: a WeakSet has one for each of its members."""
    text = "def _remove(_gone):\n    signal.raise_signal(signal.SIGTERM)"
    names: dict[str, Any] = {"signal": signal}
    exec(compile(text, weakref.WeakSet.__init__.__code__.co_filename, "exec"), names)
    item = _Item()
    with pytest.raises(stopping.Terminated), stopping.raise_on_sigterm():
        reference = weakref.ref(item, names["_remove"])
        del item
        time.sleep(5.0)
        pytest.fail(f"the signal was lost: {reference}")


class _Item:
    pass
