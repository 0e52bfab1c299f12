"""What the process that runs torch-pruning is asked, and the limits that it runs within."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from sparsify.forward.calls import Inputs
from sparsify_schemas.cuts import Cuts

REQUEST, ANSWER = "request.pt", "answer.json"
What = Literal["macs", "params", "bytes"]


@dataclass(frozen=True)
class Limits:
    """Of the process: beyond them it is ended."""

    seconds: float = 600.0
    """by the clock, its start included"""
    memory: float = 2.0**33
    """bytes beyond those that it holds before torch-pruning begins"""


@dataclass(frozen=True)
class CutRequest:
    """Cut a model by a pruner of torch-pruning, down to a cost."""

    model: nn.Module
    """on the CPU, in eval mode"""
    inputs: Inputs
    ignored: tuple[str, ...]
    """modules whose outputs stay"""
    pruner: str
    args: Mapping[str, Any]
    """keyword arguments of the pruner"""
    importance: str
    importance_args: Mapping[str, Any]
    gradients: Mapping[str, Tensor] | None
    """of the weights, where the importance looks at them"""
    squares: Mapping[str, Tensor] | None
    """sum over examples of the squared gradients, where it looks at those"""
    what: What
    share: float
    """of the dense model's cost, which is not exceeded"""
    seed: int


@dataclass(frozen=True)
class ReplayRequest:
    """Say whether torch-pruning makes of a history what a log of cuts says."""

    model: nn.Module
    """the dense one"""
    inputs: Inputs
    history: Sequence[tuple[str, bool, Sequence[int]]]
    cuts: Sequence[Cuts]


@dataclass(frozen=True)
class GroupsRequest:
    """Say what torch-pruning couples with some layers' channels."""

    model: nn.Module
    inputs: Inputs
    roots: Sequence[str]
    """modules whose outputs are the channels"""


Request = CutRequest | GroupsRequest | ReplayRequest
