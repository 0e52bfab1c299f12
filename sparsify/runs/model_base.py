"""How the models of a run are rebuilt: a builder, and the logs of cuts.

Without pickle, and without inputs or a trace.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
from torch import nn

from sparsify import files
from sparsify.errors import RunError, first_line
from sparsify.files import read_bytes
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.modelfile import build_model
from sparsify.runs import run_folder
from sparsify_schemas.cuts import Cuts, Rounds
from sparsify_schemas.model import Model

Build = Callable[[], nn.Module]
"""Builds a dense model, with any weights."""


@dataclass(frozen=True)
class Base:
    """How to rebuild the structure of a run's dense model.

    A builder, then the cuts of earlier runs, in order.
    """

    model: Model | None = None
    cuts: tuple[Cuts, ...] = ()

    def build_structure(self, build: Build | None = None) -> nn.Module:
        """The dense model, with the weights that its builder gives it. Raises RunError without a builder."""
        with torch.random.fork_rng(devices=[]):
            if build is not None:
                model = build()
            elif self.model is not None:
                model = build_model(self.model)
            else:
                raise RunError(
                    "the run does not say how its model is built, as its recipe has no `model:`; "
                    "write `model:` into the recipe of the next run; in Python, pass build=callable, which "
                    "returns the dense model"
                )
        for cuts in self.cuts:
            model = replay_cuts(model, cuts)
        return model

    def to_json(self) -> dict[str, Any]:
        """JSON that `from_json` reads."""
        return {
            "model": self.model and self.model.model_dump(mode="json"),
            "cuts": [c.model_dump(mode="json") for c in self.cuts],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Raises ValueError, KeyError or TypeError when the JSON is not of a base."""
        model = Model.model_validate(body["model"]) if body["model"] else None
        return cls(model, tuple(Cuts.model_validate(c) for c in body["cuts"]))

    def write(self, folder: Path) -> None:
        files.write_bytes(folder / run_folder.BASE, files.as_json(self.to_json()))


def read_base(folder: Path) -> Base:
    """How to rebuild a run's dense model: base.json where it was the model of another run, else `model:`."""
    path = folder / run_folder.BASE
    if not path.exists():
        return Base(run_folder.read_recipe(folder).model)
    try:
        return Base.from_json(json.loads(read_bytes(path)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from None


def read_cut_base(run: Path) -> Base:
    """How to rebuild a run's cut model, which is the base of a run that starts from it."""
    dense = read_base(run)
    return replace(dense, cuts=(*dense.cuts, *read_cuts(run)))


def write_cuts(folder: Path, cuts: tuple[Cuts, ...]) -> None:
    """Write one cut as version 1 of the log, several as version 2, which a reader of version 1 refuses."""
    log = cuts[0] if len(cuts) == 1 else Rounds(rounds=cuts)
    files.write_bytes(folder / run_folder.CUTS, (log.model_dump_json(indent=1) + "\n").encode())


def read_cuts(folder: Path) -> tuple[Cuts, ...]:
    """The cut logs of a run, in order. Raises RunError."""
    path = folder / run_folder.CUTS
    body = read_bytes(path)
    try:
        if _is_version_2(body):
            return Rounds.model_validate_json(body).rounds
        return (Cuts.model_validate_json(body),)
    except ValidationError as error:
        damaged = f"{path} is damaged: {first_line(error)}"
        raise RunError(files.explain_unreadable(path, error, damaged)) from None


def _is_version_2(body: bytes) -> bool:
    """Whether a cut log is of version 2. Text that is not JSON is left to the reader of version 1."""
    try:
        return bool(json.loads(body)["version"] == 2)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
