"""A cut in the middle of a training as checkpoints keep it, so that a training goes on after it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.adapters.cut_in_place import become
from sparsify.errors import ModelError, RunError
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.surgery.transfer_state import transfer_state
from sparsify.nn.load_tensors import load_tensors
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.report import Verdict

CUT = "cut"
"""in the state of a callback: the cut that was made"""
_LOOKED_AT = 512
"""Numbers of a tensor that a fingerprint holds at most."""


def describe_cut(result: Result) -> dict[str, Any]:
    """The log of a cut, what the proof said, and the weights of the dense model."""
    return {
        "cuts": result.cuts.model_dump_json(),
        "verdicts": [verdict.model_dump_json() for verdict in result.verdicts],
        "notes": list(result.notes),
        "dense": result.dense.state_dict(),
    }


def repeat_cut(
    saved: Mapping[str, Any], plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Result:
    """Cut a dense model in place as it was cut before. The weights of the cut model are loaded afterwards.

    saved: of `describe_cut`. optimizer: is given the cut model's parameters. Raises ModelError where the
    model is not the dense one.
    """
    cuts = Cuts.model_validate_json(saved["cuts"])
    try:
        thin = replay_cuts(model, cuts)
    except RunError as error:
        raise ModelError(
            f"the checkpoint is of a cut model, and its cut does not fit this one ({error}); give the dense "
            "model that the training began with"
        ) from error
    transfer_state(model, thin, cuts, optimizer)
    dense = become(model, thin)
    load_tensors(dense, saved["dense"])
    verdicts = tuple(Verdict.model_validate_json(text) for text in saved["verdicts"])
    return Result(model, dense, plan, cuts, verdicts, (), tuple(saved["notes"]))


def check_cut_after(cut_after: int | None, epochs: float | None = None) -> None:
    """Refuse a cut that a training does not come to. epochs: of the training; None where it is not known.

    Raises ModelError.
    """
    if cut_after is None:
        return
    if cut_after < 1:
        raise ModelError(f"cut_after={cut_after}: the model is cut after a whole epoch, the first is 1")
    if epochs is not None and epochs < cut_after:
        raise ModelError(
            f"cut_after={cut_after} is never reached: the training ends after {epochs:g} epochs; train "
            "longer, or cut earlier"
        )


def describe_weights(weights: Mapping[str, Any]) -> dict[str, str]:
    """Name -> a digest of its shape and of some of its numbers, to know a checkpoint by."""
    return {name: _hash_some(value) for name, value in weights.items() if isinstance(value, Tensor)}


def are_of(weights: Mapping[str, Any], described: Mapping[str, str]) -> bool:
    """Whether weights, all or a part of them, are those that were described."""
    known = {name: value for name, value in weights.items() if name in described}
    return bool(known) and all(_hash_some(value) == described[name] for name, value in known.items())


def _hash_some(value: Tensor) -> str:
    flat = value.detach().reshape(-1)
    some = flat[:: max(1, flat.numel() // _LOOKED_AT)].cpu().double().contiguous()
    digest = hashlib.sha256(f"{list(value.shape)}".encode())
    digest.update(some.numpy().data)
    return digest.hexdigest()[:16]
