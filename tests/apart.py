"""What tests that start processes of their own share."""

import multiprocessing
import os
import random
import socket
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import sklearn.datasets
import torch._dynamo

import sparsify_cli.apply
from sparsify.runs import apply
from sparsify.training import fsdp

BRIEFLY = """
from sparsify.runs import timed_targets
from sparsify.runs.apply import apply
from sparsify_schemas.target import Cpu
apply.__kwdefaults__["timing"] = 0.05
timed_targets.default_targets = lambda: {"eager": Cpu(kind="cpu")}
"""
"""for the first lines of a process: it times as briefly as conftest.py has the tests do, and in eager PyTorch
alone"""

SERVER = multiprocessing.get_context("forkserver")
"""forks processes that have imported what is dear to import, and have done nothing else; it is started by the
first of them"""
SERVER.set_forkserver_preload(
    # A name of no module would be passed over; the last two are loaded for digits and by optimizers.
    [
        apply.__name__,
        fsdp.__name__,
        sparsify_cli.apply.__name__,
        sklearn.datasets.__name__,
        torch._dynamo.__name__,
    ]
)


class Apart:
    """A process that runs Python code in the current folder, as `python -W ignore -c CODE ARGUMENTS` does."""

    def __init__(self, code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        with (
            tempfile.NamedTemporaryFile(delete=False) as out,
            tempfile.NamedTemporaryFile(delete=False) as err,
        ):
            self._said = Path(out.name), Path(err.name)
        given = (
            code,
            arguments,
            dict(os.environ if environment is None else environment),
            str(Path.cwd()),
            self._said,
        )
        self._process = SERVER.Process(target=_run, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def communicate(self, timeout: float = 1800) -> tuple[str, str]:
        """What it wrote to stdout and stderr, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise TimeoutError(f"the process did not end within {timeout:g} s")
        out, err = (file.read_text() for file in self._said)
        for file in self._said:
            file.unlink()
        return out, err


def _run(
    code: str, arguments: tuple[str, ...], environment: dict[str, str], folder: str, said: tuple[Path, Path]
) -> None:
    for stream, file in enumerate(said, start=1):
        with file.open("w") as target:
            os.dup2(target.fileno(), stream)
    warnings.simplefilter("ignore")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def free_port() -> str:
    """A port that nothing uses, below those that a system gives to outgoing connections: so none takes it
    before it is bound."""
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(20_000, 30_000)
        with socket.socket() as here:
            try:
                here.bind(("127.0.0.1", port))
            except OSError:
                continue
        return str(port)
