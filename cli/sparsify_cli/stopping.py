"""Being stopped from outside: by Ctrl-C, or by SIGTERM, which launchers, schedulers and `kill` send."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED, TERMINATED = 130, 143
"""exit codes, as of a shell: 128 and the signal's number"""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be."""


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises Terminated here, in place of ending the process without a word."""

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stopped(by: KeyboardInterrupt, run: object, together: bool) -> tuple[str, int]:
    """What to say, and the exit code. run: its folder, None before it was made; together: whether other processes train it too."""
    terminated = isinstance(by, Terminated)
    word = "stopped by SIGTERM" if terminated else "interrupted"
    if terminated and together:
        word += ", which a launcher sends when another process of the run is gone (its own output says why)"
    if run is None:
        way = " before the run began; nothing was written"
    else:
        way = f"; go on with: sparsify apply --resume {run}" + (
            ", on any number of processes" if together else ""
        )
    return word + way, TERMINATED if terminated else INTERRUPTED
