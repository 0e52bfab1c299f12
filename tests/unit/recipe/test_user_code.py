"""User code in a guard: one error whatever it raises, and the settings of the process as they were."""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsify.errors import DataError, SparsifyWarning
from sparsify.recipe.user_code import run_user_code


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoException(BaseException):
    pass


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (ValueError("no room"), "ValueError: no room"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (ValueError(), "ValueError"),
        (WithoutText(), "WithoutText"),
        (NoException("odd"), "NoException: odd"),
        (GeneratorExit(), "GeneratorExit"),
        (SystemExit(), "it called sys.exit()"),
        (SystemExit(0), "it called sys.exit(0)"),
        (SystemExit("bye"), "it called sys.exit('bye')"),
    ],
)
def test_whatever_is_raised_is_one_error_with_its_cause(raised: BaseException, text: str) -> None:
    with pytest.raises(DataError) as found, run_user_code("it", lambda why: DataError(f"it failed: {why}")):
        raise raised
    assert str(found.value) == f"it failed: {text}"
    assert found.value.__cause__ is raised


def test_an_interrupt_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), run_user_code("it", DataError):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: torch.set_grad_enabled(False), "switched gradients off"),
        (lambda: torch.set_default_dtype(torch.float64), "changed torch's default type to float64"),
        (lambda: torch.set_default_device("meta"), "changed torch's default device to meta"),
        (lambda: torch.set_num_threads(3), "changed the number of threads to 3"),
        (lambda: os.chdir("/"), "changed the working folder to /"),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_settings_are_put_back_and_named(
    change: Callable[[], object], said: str, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> tuple[object, ...]:
        torch_settings = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
        return (*torch_settings, torch.get_num_threads(), Path.cwd())

    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    before = read()
    with pytest.warns(SparsifyWarning) as warned:
        try:
            with run_user_code("model.build 'a.b'", DataError):
                change()
                if fails:
                    raise ValueError
        except DataError:
            assert fails
    assert [str(w.message) for w in warned] == [f"model.build 'a.b' {said}; that was put back"]
    assert read() == before


def test_a_folder_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with run_user_code("it", DataError):
        os.chdir(tmp_path)


def test_random_states_are_put_back_where_asked() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = draw()
    seed()
    with run_user_code("it", DataError, keep_chance=True):
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
    assert draw() == expected
    seed()
    with run_user_code("it", DataError):
        draw()
    assert draw() != expected


def test_the_standard_streams_are_left_alone() -> None:
    before = sys.stdout, sys.stderr
    with run_user_code("it", DataError):
        pass
    assert (sys.stdout, sys.stderr) == before


def test_imports_inside_find_modules_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searched last, and only inside: the path of the process stays as it was, whatever the code did."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only_in_this_folder.py").write_text("VALUE = 3\n")
    monkeypatch.delitem(sys.modules, "only_in_this_folder", raising=False)
    before = list(sys.path)
    with run_user_code("it", DataError):
        assert sys.path == [*before, str(tmp_path)]
        from only_in_this_folder import VALUE  # type: ignore[import-not-found]
    assert sys.path == before and VALUE == 3
    with run_user_code("it", DataError), run_user_code("it", DataError):
        sys.path.remove(str(tmp_path))
    assert sys.path == before
    monkeypatch.setattr(sys, "path", [str(tmp_path), *before])
    with run_user_code("it", DataError):
        pass
    assert sys.path == [str(tmp_path), *before], "its place is kept where it is searched already"
