"""What the process that runs torch-pruning does: `python -m sparsify.peers.answer_request FOLDER`.

It answers a request that the same user's process made, in a private folder.
"""

import contextlib
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any, assert_never

import torch

from sparsify.errors import SparsifyError, describe_error
from sparsify.formatting.numbers import format_size
from sparsify.peers.dependency_groups import list_groups
from sparsify.peers.history_replay import compare_replays
from sparsify.peers.pruner_cut import cut_to_share
from sparsify.peers.requests import ANSWER, REQUEST, CutRequest, GroupsRequest, Limits, ReplayRequest, Request
from sparsify.peers.torch_pruning_import import torch_pruning

_GRACE = 60
"""seconds that it outlives its limit where nobody ends it"""


def write_answer(request: Request, limits: Limits, folder: Path) -> None:
    """Write what came of a request, or what was raised."""
    warnings.simplefilter("ignore")
    torch_pruning()
    _limit_process(limits)
    try:
        answer = _run_request(request)
    except BaseException as error:  # what code of other people raises, sys.exit too
        answer = {"raised": _describe_failure(error, limits)}
    temporary = folder / f"{ANSWER}.part"
    temporary.write_text(json.dumps(answer))
    temporary.replace(folder / ANSWER)


def _run_request(request: Request) -> dict[str, Any]:
    match request:
        case CutRequest():
            return cut_to_share(request)
        case GroupsRequest():
            return list_groups(request)
        case ReplayRequest():
            return compare_replays(request)
        case _:
            assert_never(request)


def _limit_process(limits: Limits) -> None:
    """Let allocations fail beyond the limit, and end where nobody is left who asked; not on Windows."""
    try:
        import resource
    except ImportError:
        return
    pages = Path("/proc/self/statm")
    held = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0
    bounds = (
        (resource.RLIMIT_AS, held + int(limits.memory)),
        (resource.RLIMIT_CPU, math.ceil(limits.seconds) + _GRACE),
    )
    for kind, bound in bounds:
        with contextlib.suppress(ValueError, OSError):  # a system may refuse
            resource.setrlimit(kind, (bound, resource.getrlimit(kind)[1]))


def _describe_failure(error: BaseException, limits: Limits) -> str:
    """An error in one line; of memory that ended, the limit."""
    said = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said:
        return f"it takes more than {format_size(limits.memory)} of memory"
    return str(error) if isinstance(error, SparsifyError) else describe_error(error)


if __name__ == "__main__":
    private = Path(sys.argv[1])
    asked, within = torch.load(private / REQUEST, weights_only=False)
    write_answer(asked, within, private)
