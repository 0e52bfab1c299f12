"""A cut model as torch-pruning's own documentation saves one: weights, and the history of the cut."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.exporters.compare import compute_outputs
from sparsify.formatting.numbers import list_few
from sparsify.forward.calls import Inputs
from sparsify.graph.adoption.pruning_history import write_history
from sparsify.nn.load_tensors import load_tensors
from sparsify.peers.limited_process import PeerError, ask_process
from sparsify.peers.requests import Limits, ReplayRequest
from sparsify.runs.model_base import Base, Build

WEIGHTS, HISTORY = "model", "pruning"
"""keys of the file"""


def save_history(model: nn.Module, base: Base, build: Build | None, inputs: Inputs, path: Path) -> None:
    """Write weights and history; torch-pruning repeats the history first, and must keep the same elements.

    base: how to rebuild the cut model. Raises ModelError where a history cannot say the cut, or
    torch-pruning makes another one of it.
    """
    dense = replace(base, cuts=()).build_structure(build).eval()
    history = write_history(dense, base.cuts)
    try:
        request = ReplayRequest(model=dense, inputs=inputs, history=history, cuts=base.cuts)
        differ = ask_process(request, Limits())["differ"]
    except PeerError as error:
        raise ModelError(f"torch-pruning cannot repeat the cut ({error}); export another format") from error
    if differ:
        raise ModelError(
            "torch-pruning makes another cut of the history: it keeps other elements of "
            f"{list_few(tuple(differ))}; export another format"
        )
    told = [[entry.layer, entry.outputs, list(entry.indices)] for entry in history]
    # Into memory first: where it cannot be written, torch's writer raises an error of its own.
    content = io.BytesIO()
    torch.save({WEIGHTS: model.state_dict(), HISTORY: told}, content)
    path.write_bytes(content.getbuffer())


def load_history(path: Path, base: Base, build: Build | None) -> Callable[[Inputs], list[Tensor]]:
    """The weights of the file in the structure that the run's log gives."""
    model = base.build_structure(build)
    with path.open("rb") as file:
        load_tensors(model, torch.load(file, map_location="cpu", weights_only=True)[WEIGHTS])
    return lambda inputs: compute_outputs(model.eval(), inputs)
