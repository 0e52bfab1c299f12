"""Stop by Ctrl-C, or by SIGTERM, which launchers, schedulers and `kill` send."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sparsify.errors import SparsifyError

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes, as in a shell: 128 plus the number of the signal."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C."""


class StoppedError(SparsifyError):
    """A command was stopped by Ctrl-C or SIGTERM; the message says how to go on."""

    def __init__(self, stop: KeyboardInterrupt, more: str = "") -> None:
        super().__init__(f"{_describe_signal(stop)}{more}")
        self.exit_code = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED


def _describe_signal(stop: KeyboardInterrupt) -> str:
    return "stopped by SIGTERM" if isinstance(stop, Terminated) else "interrupted"


_PAUSE, _LONGEST_IMPORT = 0.05, 5.0
"""Seconds until a signal that came in an import comes again; and how many of them an import may go on."""
_WEAK_REFERENCES = ("weakref.py", "_weakrefset.py")


def _must_wait(frame: FrameType | None) -> bool:
    """Whether an exception would do harm, in an import, or be lost: Python ignores those of `__del__` and of
    what runs when a weakly referenced object goes."""
    while frame is not None:
        code = frame.f_code
        is_callback = code.co_name in ("_remove", "remove") and code.co_filename.endswith(_WEAK_REFERENCES)
        if code.co_filename.startswith("<frozen importlib") or code.co_name == "__del__" or is_callback:
            return True
        frame = frame.f_back
    return False


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise Terminated, so that the process removes its temporary files and says how to resume.

    Libraries in C may turn Terminated into an error of their own, so whatever error ends the block after the
    signal counts as it. Torch aborts where its import is interrupted, so an import may end first, within
    some seconds. Only the main thread can handle signals; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received = threading.Event()

    postponed: list[float] = []

    def stop(_number: int, frame: FrameType | None) -> None:
        received.set()
        if _must_wait(frame) and sum(postponed) < _LONGEST_IMPORT:
            postponed.append(_PAUSE)
            again = threading.Timer(_PAUSE, os.kill, (os.getpid(), signal.SIGTERM))
            again.daemon = True
            again.start()
            return
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception as error:
        if received.is_set() and not isinstance(error, StoppedError):
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def describe_stop(stop: KeyboardInterrupt, run: Path | None, is_distributed: bool) -> StoppedError:
    """What a run that was stopped says.

    run: its folder, None before it was made. is_distributed: whether other processes train it as well.
    """
    more = ""
    if isinstance(stop, Terminated) and is_distributed:
        more = (
            ", which a launcher sends when another process of the run has stopped (its own output says why)"
        )
    if run is None:
        return StoppedError(stop, f"{more} before the run began; nothing was written")
    if (run / "report.json").exists():
        return StoppedError(stop, f"{more}; the run is complete: sparsify report {run}")
    more += f"; continue with: sparsify apply --resume {run}"
    return StoppedError(stop, more + (", on any number of processes" if is_distributed else ""))
