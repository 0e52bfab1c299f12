"""Stop by Ctrl-C, or by SIGTERM, which launchers, schedulers and `kill` send."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes, as in a shell: 128 plus the number of the signal."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C."""


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise Terminated, so that the process can say how to resume."""

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def describe_stop(error: KeyboardInterrupt, run: object, is_distributed: bool) -> tuple[str, int]:
    """The message and the exit code.

    run: the folder of the run, None before it was made. is_distributed: whether other processes train it as
    well.
    """
    is_terminated = isinstance(error, Terminated)
    code = TERMINATED if is_terminated else INTERRUPTED
    message = "stopped by SIGTERM" if is_terminated else "interrupted"
    if is_terminated and is_distributed:
        message += (
            ", which a launcher sends when another process of the run has stopped (its own output says why)"
        )
    if run is None:
        return f"{message} before the run began; nothing was written", code
    message += f"; continue with: sparsify apply --resume {run}"
    if is_distributed:
        message += ", on any number of processes"
    return message, code
