"""What torch-pruning makes of a history: whether it keeps the same elements as a log of cuts."""

from typing import Any

import torch

from sparsify.forward.call_model import convert_inputs
from sparsify.forward.copies import copy_model
from sparsify.graph.names import all_names
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.peers.dependency_groups import build_graph
from sparsify.peers.kept_elements import put_positions
from sparsify.peers.requests import ReplayRequest


def compare_replays(request: ReplayRequest) -> dict[str, Any]:
    """Replay a history by torch-pruning and cuts by their log, on copies whose weights hold their positions.

    Returns the tensors that then hold other elements, under `differ`.
    """
    ours = copy_model(request.model).double().eval()
    put_positions(ours)
    theirs = copy_model(ours)
    for cuts in request.cuts:
        ours = replay_cuts(ours, cuts)
    graph = build_graph(theirs, convert_inputs(request.inputs, torch.float64))
    graph.load_pruning_history([list(entry) for entry in request.history])
    wanted, found = all_names(ours), all_names(theirs)
    differ = [
        name for name, tensor in wanted.items() if name not in found or not torch.equal(found[name], tensor)
    ]
    return {"differ": differ}
