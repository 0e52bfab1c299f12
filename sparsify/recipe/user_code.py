"""Run code that a recipe names: whatever it does becomes one error, and the process stays as it was."""

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sparsify.errors import SparsifyWarning, describe_error


@contextmanager
def run_user_code(
    name: str, make_error: Callable[[str], Exception], *, keep_chance: bool = False
) -> Iterator[None]:
    """Turn whatever the block raises into the caller's error, and put settings of the process back.

    Args:
        name: The callable, as "data.source 'mydata:load'".
        make_error: What was raised, as "ValueError: no room" -> error. SystemExit and errors that are no
            Exception count too; KeyboardInterrupt alone passes.
        keep_chance: Put the random states of random, numpy and torch back too, silently.

    Gradients, default type and device, the number of threads and the working folder are put back with a
    SparsifyWarning. Imports inside find modules of the working folder, which is searched last.
    """
    before = _Settings.read()
    chance = _read_chance() if keep_chance else ()
    try:
        with _search_folder(before.folder):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise make_error(describe_error(error)) from error
    finally:
        for put_back in chance:
            put_back()
        changed = before.restore()
        if changed:
            text = f"{name} {', '.join(changed)}; that was put back"
            warnings.warn(text, SparsifyWarning, stacklevel=3)


@contextmanager
def _search_folder(folder: str | None) -> Iterator[None]:
    """Have imports search a folder last, unless they search it already."""
    if folder is None or folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the code may have removed it
            sys.path.remove(folder)


@dataclass(frozen=True)
class _Settings:
    """Settings of the whole process that code may change and that other code depends on."""

    folder: str | None
    gradients: bool = True
    dtype: Any = None
    device: Any = None
    threads: int | None = None

    @staticmethod
    def read() -> "_Settings":
        folder = None
        with suppress(OSError):  # it may have been removed
            folder = str(os.getcwd())  # noqa: PTH109 - Path.cwd() costs as much again for every example
        torch = sys.modules.get("torch")
        if torch is None:
            return _Settings(folder)
        return _Settings(
            folder,
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.get_num_threads(),
        )

    def restore(self) -> list[str]:
        """What was changed, as the end of a sentence that begins with the name of the code."""
        now = _Settings.read()
        changed = []
        if self.folder is not None and now.folder != self.folder:
            with suppress(OSError):
                os.chdir(self.folder)
                changed.append(f"changed the working folder to {now.folder}")
        torch = sys.modules.get("torch")
        if torch is None or self.dtype is None:  # torch was not there yet
            return changed
        if now.gradients != self.gradients:
            torch.set_grad_enabled(self.gradients)
            changed.append(f"switched gradients {'on' if now.gradients else 'off'}")
        if now.dtype != self.dtype:
            torch.set_default_dtype(self.dtype)
            changed.append(f"changed torch's default type to {str(now.dtype).removeprefix('torch.')}")
        if now.device != self.device:
            torch.set_default_device(self.device)
            changed.append(f"changed torch's default device to {now.device}")
        if now.threads != self.threads and self.threads is not None:
            torch.set_num_threads(self.threads)
            changed.append(f"changed the number of threads to {now.threads}")
        return changed


def _read_chance() -> tuple[Callable[[], object], ...]:
    """What puts the random states back as they are now."""
    kept: list[Callable[[], object]] = [partial(random.setstate, random.getstate())]
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        kept.append(partial(numpy.random.set_state, numpy.random.get_state()))
    if torch is not None:
        kept.append(partial(torch.set_rng_state, torch.get_rng_state()))
    return tuple(kept)
