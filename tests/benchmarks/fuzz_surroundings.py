"""What a command of fuzz_commands.py may meet besides its arguments: streams, variables, modes, signals.

The command runs in a forked process, with the rights of an ordinary user.
"""

import ctypes
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

VARIABLES: dict[str, tuple[str, ...]] = {
    "HOME": ("", "/nonexistent", "/dev/null", "closed"),
    "XDG_CACHE_HOME": ("", "/nonexistent", "/dev/null", "closed"),
    "SPARSIFY_CACHE": ("", "/nonexistent/x", "/dev/null", "closed", "recipe.yaml", "\u00a0", "loop"),
    "SPARSIFY_DATA": ("", "/nonexistent", "/dev/null", "recipe.yaml", "loop"),
    "TMPDIR": ("", "/nonexistent", "/dev/null", "closed"),
    "COLUMNS": ("", "0", "-1", "abc", "1", "1000000", "1e3"),
    "LINES": ("abc", "0"),
    "TERM": ("", "dumb", "nonsense"),
    "FORCE_COLOR": ("1", "", "x"),
    "NO_COLOR": ("", "1"),
    "LANG": ("", "C", "xx_YY.nonsense"),
    "LC_ALL": ("C", "tr_TR.UTF-8", "nonsense"),
    "TZ": ("", "nonsense", "Asia/Kathmandu"),
    "RANK": ("", "abc", "-1", "0", "3"),
    "WORLD_SIZE": ("", "abc", "0", "-1", "1"),
    "LOCAL_RANK": ("", "abc", "-1", "0"),
    "OMP_NUM_THREADS": ("", "abc", "0", "-1", "100000"),
    "CUDA_VISIBLE_DEVICES": ("", "abc", "-1", "99"),
    "ACCELERATE_MIXED_PRECISION": ("", "nonsense", "no"),
    "ACCELERATE_USE_CPU": ("", "nonsense", "true"),
}
LIMIT = 120
"""seconds after which a command counts as hanging"""


@dataclass(frozen=True)
class Surroundings:
    """What a command meets. `describe` and the seed of the case say what it was."""

    variables: Mapping[str, str] = field(default_factory=dict)
    closed: tuple[int, ...] = ()
    """Streams that are closed, 1 stdout and 2 stderr."""
    full: tuple[int, ...] = ()
    """Streams that are /dev/full."""
    modes: tuple[tuple[str, int], ...] = ()
    """File -> its permission bits."""
    kill: tuple[float, int] | None = None
    """Seconds after which a signal comes, and its number."""

    def describe(self) -> str:
        modes = " ".join(f"{name}:{mode:o}" for name, mode in self.modes)
        variables = " ".join(f"{name}={value!r}" for name, value in self.variables.items())
        streams = f"closed {self.closed} full {self.full}" if self.closed or self.full else ""
        killed = "" if self.kill is None else f"signal {self.kill[1]} after {self.kill[0]:.2f} s"
        return "; ".join(part for part in (variables, streams, modes, killed) if part)

    @property
    def is_quiet(self) -> bool:
        """Whether what the command says cannot be seen."""
        return bool(self.closed or self.full) or self.kill is not None


def draw_surroundings(chance: random.Random) -> Surroundings:
    names = chance.sample(sorted(VARIABLES), chance.choice((0, 0, 1, 2)))
    streams = tuple(stream for stream in (1, 2) if chance.random() < 0.15)
    is_full = chance.random() < 0.5
    files = ("recipe.yaml", "weights.pt", "damaged.pt", "runs", ".")
    modes = tuple((name, chance.choice((0o000, 0o444, 0o555, 0o222))) for name in files[: 4 + is_full])
    chosen = tuple(mode for mode in modes if chance.random() < 0.12)
    killed = chance.random() < 0.3
    number = chance.choice((signal.SIGTERM, signal.SIGKILL, signal.SIGINT))
    return Surroundings(
        variables={name: chance.choice(VARIABLES[name]) for name in names},
        closed=() if is_full else streams,
        full=streams if is_full else (),
        modes=chosen,
        kill=(chance.uniform(0, 4), number) if killed else None,
    )


def run_forked(around: Surroundings, work: Callable[[], int], folder: Path) -> tuple[int | str, str, str]:
    """The exit code of the work in a forked process, or 'hangs'; what it wrote to stdout and stderr."""
    said = [folder.with_name(f"{folder.name}.{stream}") for stream in ("out", "err")]
    for file in said:
        file.touch()
    process = os.fork()
    if process == 0:
        code = 99
        try:
            _enter(around, said)
            code = work()
            sys.stdout.flush()
        except OSError:
            code = 1 if around.is_quiet else 99
        finally:
            os._exit(code)
    code = _wait(process, around)
    for name, _ in around.modes:
        if (folder / name).exists() and not (folder / name).is_symlink():
            (folder / name).chmod(0o755)
    texts = [file.read_text(errors="replace") for file in said]
    for file in said:
        file.unlink()
    return code, texts[0], texts[1]


def _enter(around: Surroundings, said: list[Path]) -> None:
    os.setpgid(0, 0)
    for stream, file in enumerate(said, start=1):
        target = "/dev/full" if stream in around.full else str(file)
        handle = os.open(target, os.O_WRONLY)
        os.dup2(handle, stream)
        os.close(handle)
    # The streams of a new process; None where it was started without one, as Python has it.
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False) if 1 not in around.closed else None  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False) if 2 not in around.closed else None  # noqa: SIM115
    for stream in around.closed:
        os.close(stream)
    os.environ.update(around.variables)
    for name, mode in around.modes:
        if Path(name).exists():
            Path(name).chmod(mode)
    _put_down_rights()


def _put_down_rights() -> None:
    """Root reads and writes what it may not; an ordinary user does not."""
    libc = ctypes.CDLL(None)
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, rights)
    rights[0] &= ~0b110
    libc.capset(header, rights)


def _wait(process: int, around: Surroundings) -> int | str:
    began, sent = time.monotonic(), False
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        if around.kill is not None and not sent and seconds > around.kill[0]:
            os.kill(process, around.kill[1])
            sent = True
        if seconds > LIMIT:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "hangs"
        time.sleep(0.005)
