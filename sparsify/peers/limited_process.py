"""Run torch-pruning in a process of its own, within limits of time and memory.

On some networks it does not end, or takes all the memory there is. On Linux the process is a fork, which has
the model as it is. Elsewhere it is a new one, which reads the model from a file of a private folder. Either
answers in JSON: nothing that it writes is unpickled.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from sparsify.errors import describe_error
from sparsify.peers.answer_request import write_answer
from sparsify.peers.requests import ANSWER, REQUEST, Limits, Request
from sparsify.peers.torch_pruning_import import torch_pruning

_FORKS = sys.platform == "linux"
_PAUSE = 0.02


class PeerError(Exception):
    """torch-pruning came to no result: `raised: ...` or `timed out ...`."""


def ask_process(request: Request, limits: Limits, forks: bool = _FORKS) -> dict[str, Any]:
    """The answer of a process that `write_answer` runs in. Raises PeerError; ModelError without the
    package."""
    torch_pruning()
    with tempfile.TemporaryDirectory(prefix="sparsify-") as made:
        folder = Path(made)
        code = _fork(request, limits, folder) if forks else _start(request, limits, folder)
        file = folder / ANSWER
        if not file.exists():
            raise PeerError(f"raised: its process ended with {_describe_code(code)}")
        answer: dict[str, Any] = json.loads(file.read_bytes())
    if "raised" in answer:
        raise PeerError(f"raised: {answer['raised']}")
    return answer


def _fork(request: Request, limits: Limits, folder: Path) -> int:
    """Answer in a fork; its exit code, or the signal that ended it, below zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, whose locks it does not take
        child = os.fork()
    if child == 0:
        _answer_in_fork(request, limits, folder)
    deadline = time.monotonic() + limits.seconds
    ended = 0
    try:
        while not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() > deadline:
                raise _time_out(limits)
            time.sleep(0 if ended else _PAUSE)
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _answer_in_fork(request: Request, limits: Limits, folder: Path) -> None:
    """Never returns: what the parent would do next is not done twice."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        torch.set_num_threads(1)  # the threads of the parent are not there
        write_answer(request, limits, folder)
        code = 0
    finally:
        os._exit(code)


def _start(request: Request, limits: Limits, folder: Path) -> int:
    """Answer in a new process; its exit code, or the signal that ended it, below zero."""
    try:
        torch.save((request, limits), folder / REQUEST)
    except Exception as error:  # whatever pickle says of a class of somebody else's
        raise PeerError(f"raised: the model cannot be handed over: {describe_error(error)}") from error
    paths = [path or str(Path.cwd()) for path in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsify.peers.answer_request", str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return process.wait(limits.seconds)
    except subprocess.TimeoutExpired:
        raise _time_out(limits) from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _time_out(limits: Limits) -> PeerError:
    return PeerError(f"timed out after {limits.seconds:g} s")


def _describe_code(code: int) -> str:
    return f"signal {-code}, as where memory ends" if code < 0 else f"exit code {code}"
