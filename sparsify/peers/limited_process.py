"""Run torch-pruning in a process of its own, within limits of time and memory.

On some networks it does not end, or takes all the memory there is. The process gets the model in a file of a
private folder that is removed afterwards, and answers in JSON: nothing that it writes is unpickled.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sparsify.errors import describe_error
from sparsify.formatting.numbers import format_size
from sparsify.peers.requests import CutRequest, GroupsRequest, Limits

REQUEST, ANSWER = "request.pt", "answer.json"


class PeerError(Exception):
    """torch-pruning came to no result: `raised: ...` or `timed out ...`."""


def ask_process(request: CutRequest | GroupsRequest, limits: Limits) -> dict[str, Any]:
    """The answer of a process that `answer_request` runs in. Raises PeerError."""
    with tempfile.TemporaryDirectory(prefix="sparsify-") as made:
        folder = Path(made)
        try:
            torch.save((request, limits, torch.get_num_threads()), folder / REQUEST)
        except Exception as error:  # whatever pickle says of a class of somebody else's
            raise PeerError(f"raised: the model cannot be handed over: {describe_error(error)}") from error
        code = _run_process(folder, limits)
        file = folder / ANSWER
        if not file.exists():
            raise PeerError(f"raised: its process ended with {_describe_code(code)}")
        answer: dict[str, Any] = json.loads(file.read_bytes())
    if "raised" in answer:
        raise PeerError(f"raised: {answer['raised']}")
    return answer


def _run_process(folder: Path, limits: Limits) -> int:
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
        raise PeerError(f"timed out after {limits.seconds:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _describe_code(code: int) -> str:
    return f"signal {-code}, as where memory ends" if code < 0 else f"exit code {code}"


@contextlib.contextmanager
def limit_memory(size: float) -> Iterator[None]:
    """Let allocations fail beyond so many bytes more than the process holds now; not on Windows."""
    try:
        import resource
    except ImportError:
        yield
        return
    pages = Path("/proc/self/statm")
    held = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(ValueError, OSError):  # a system may refuse
        resource.setrlimit(resource.RLIMIT_AS, (held + int(size), before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, before)


def describe_failure(error: BaseException, limits: Limits) -> str:
    """An error of torch-pruning in one line; of memory that ended, the limit."""
    said = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said:
        return f"more than {format_size(limits.memory)} of memory"
    return describe_error(error)
