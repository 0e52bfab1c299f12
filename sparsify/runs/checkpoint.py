"""The checkpoint of an unfinished run: how far it is, in plain tensors, numbers and text."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from sparsify.errors import RunError, find_refusal, first_line
from sparsify.files import replace_file
from sparsify.modelfile.formats import check_entries, check_sizes
from sparsify.runs.run_folder import CHECKPOINT
from sparsify.training.stage_state import StageState
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.report import Epoch, Round, Search, StageRow

_HISTORY = TypeAdapter(tuple[Epoch, ...])
_STAGES = TypeAdapter(tuple[StageRow, ...])
_CUTS = TypeAdapter(tuple[Cuts, ...])
_ROUNDS = TypeAdapter(tuple[Round, ...])


class _NewerError(Exception):
    """The checkpoint is of a version that is not known here."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two epochs, or after a cut."""

    recipe: str
    """Digest of the resolved recipe."""
    model: str | None
    """SHA-256 of the model file."""
    stage: int
    """Index of the stage to continue or to begin."""
    weights: Mapping[str, Any] = field(repr=False)
    """State dict of the model as it is now."""
    stage_state: StageState | None = None
    """Progress within that stage; None at its beginning. Its `model` is `weights`."""
    history: tuple[Epoch, ...] = ()
    """Rows of the epochs of earlier stages."""
    stages: tuple[StageRow, ...] = ()
    """Rows of earlier stages."""
    cuts: tuple[Cuts, ...] = ()
    """Logs of the cuts so far, in order."""
    rounds: tuple[Round, ...] = ()
    """A row for each cut."""
    search: Search | None = None
    """Trials so far, where the budget limits the accuracy drop."""

    def write(self, folder: Path, name: str = CHECKPOINT) -> None:
        """Replace the folder's checkpoint by this one, atomically. Raises RunError."""
        body = {
            "version": 1,
            "recipe": self.recipe,
            "model": self.model,
            "stage": self.stage,
            "weights": dict(self.weights),
            "history": _HISTORY.dump_json(self.history).decode(),
            "stages": _STAGES.dump_json(self.stages).decode(),
            "cuts": _CUTS.dump_json(self.cuts).decode(),
            "rounds": _ROUNDS.dump_json(self.rounds).decode(),
            "search": None if self.search is None else self.search.model_dump_json(),
            "moment": None if self.stage_state is None else _dump_stage_state(self.stage_state),
        }
        try:
            with replace_file(folder / name) as temporary:
                torch.save(body, temporary)
        except RuntimeError as error:  # how torch says that a disk is full
            raise RunError(
                f"cannot write {folder / name}: the file did not fit; free some space on the disk, "
                "then continue the run with --resume"
            ) from error

    @classmethod
    def read(cls, folder: Path, name: str = CHECKPOINT) -> "Checkpoint | None":
        """Read a checkpoint; None when the run stopped before its first.

        Raises RunError when it is damaged.
        """
        path = folder / name
        if not path.exists():
            return None
        try:
            if not path.is_file():
                raise RunError("it is not a regular file")
            with zipfile.ZipFile(path) as archive:
                check_entries(archive)  # torch itself does not check the CRCs
            body = torch.load(path, map_location="cpu", weights_only=True)
            check_sizes(body, path)
            version = body.get("version") if isinstance(body, dict) else None
            if isinstance(version, int) and version > 1:
                raise _NewerError(f"version: {version}")
            return cls._parse(body)
        except _NewerError as error:
            raise RunError(
                f"{path} was written by a newer sparsify ({error}); continue the run with that version"
            ) from None
        except Exception as error:  # torch, zipfile and pickle each raise their own errors for a damaged file
            if find_refusal(error):
                raise RunError(f"cannot read {path}: {find_refusal(error)}") from error
            raise RunError(
                f"{path} is damaged ({first_line(error)}); the run cannot be resumed, start a new one"
            ) from error

    @classmethod
    def _parse(cls, body: Mapping[str, Any]) -> "Checkpoint":
        return cls(
            recipe=body["recipe"],
            model=body["model"],
            stage=body["stage"],
            weights=body["weights"],
            stage_state=_parse_stage_state(body["moment"], body["weights"]),
            history=_HISTORY.validate_json(body["history"]),
            stages=_STAGES.validate_json(body["stages"]),
            cuts=_CUTS.validate_json(body["cuts"]),
            rounds=_ROUNDS.validate_json(body["rounds"]),
            search=None if body.get("search") is None else Search.model_validate_json(body["search"]),
        )


def _dump_stage_state(state: StageState) -> dict[str, Any]:
    """All of a stage's progress but the weights, which the checkpoint holds already."""
    return {
        "epochs": state.epochs,
        "history": _HISTORY.dump_json(state.history).decode(),
        "seconds": (state.seconds, state.step_seconds, state.penalty_seconds),
        "optimizer": dict(state.optimizer),
        "hooks": dict(state.hooks),
        "scaler": dict(state.scaler),
        "average": dict(state.average),
        "best": dict(state.best),
    }


def _parse_stage_state(part: Mapping[str, Any] | None, weights: Mapping[str, Any]) -> StageState | None:
    if part is None:
        return None
    seconds, step_seconds, penalty_seconds = map(float, part["seconds"])
    if type(part["epochs"]) is not int or part["epochs"] < 0:
        raise ValueError(f"{part['epochs']} is not a number of epochs")
    own = part["hooks"].get("own", {})
    if not all(isinstance(row, dict) for row in (own, *own.values())):
        raise ValueError("the state of the penalties is not a mapping")
    return StageState(
        epochs=part["epochs"],
        history=_HISTORY.validate_json(part["history"]),
        seconds=seconds,
        step_seconds=step_seconds,
        penalty_seconds=penalty_seconds,
        model=weights,
        optimizer=part["optimizer"],
        hooks=part["hooks"],
        scaler=part["scaler"],
        average=part.get("average", {}),
        best=part.get("best", {}),
    )
