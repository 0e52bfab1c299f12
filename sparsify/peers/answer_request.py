"""The process that runs torch-pruning: `python -m sparsify.peers.answer_request FOLDER`.

It reads a request that the same user's process wrote into a private folder, and writes its answer beside it.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any, assert_never

import torch

from sparsify.peers.dependency_groups import list_groups
from sparsify.peers.limited_process import ANSWER, REQUEST, describe_failure, limit_memory
from sparsify.peers.pruner_cut import cut_to_share
from sparsify.peers.requests import CutRequest, GroupsRequest
from sparsify.peers.torch_pruning_import import torch_pruning


def answer_request(folder: Path) -> None:
    """Write what came of a request, or what was raised."""
    request, limits, threads = torch.load(folder / REQUEST, weights_only=False)
    torch.set_num_threads(threads)
    torch_pruning()
    warnings.simplefilter("ignore")
    try:
        with limit_memory(limits.memory):
            answer = _run_request(request)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # what code of other people raises, sys.exit too
        answer = {"raised": describe_failure(error, limits)}
    temporary = folder / f"{ANSWER}.part"
    temporary.write_text(json.dumps(answer))
    temporary.replace(folder / ANSWER)


def _run_request(request: CutRequest | GroupsRequest) -> dict[str, Any]:
    match request:
        case CutRequest():
            return cut_to_share(request)
        case GroupsRequest():
            return list_groups(request)
        case _:
            assert_never(request)


if __name__ == "__main__":
    answer_request(Path(sys.argv[1]))
