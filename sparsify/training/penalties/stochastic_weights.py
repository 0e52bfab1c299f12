"""What gates and noise need: the trained weights, kept while the model computes with
others, and steps of their own."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.distributed import local_part
from sparsify.training.penalties.step_action import Tensors

BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class TrainedWeights:
    """The weights that the optimizer moves. While `away` the parameters hold what the model computes with
    instead."""

    flat: Tensor
    away: Tensor
    of: Tensors
    """views of `flat` in the parameters' shapes"""

    def keep(self, weights: Tensors) -> None:
        for name, own in self.of.items():
            own.copy_(weights[name])
        self.away.fill_(True)

    def give_back(self, weights: Tensors) -> None:
        for name, own in self.of.items():
            weights[name].copy_(own)
        self.away.fill_(False)


def make_trained_weights(names: Iterable[str], parameters: Tensors) -> TrainedWeights:
    """Of this process's parts of some parameters."""
    own = {name: local_part(parameters[name].detach()) for name in names}
    flat = torch.cat([weight.flatten() for weight in own.values()])
    pieces = torch.split(flat, [weight.numel() for weight in own.values()])
    return TrainedWeights(
        flat,
        torch.zeros((), dtype=torch.bool),
        {name: piece.view(own[name].shape) for name, piece in zip(own, pieces, strict=True)},
    )


@dataclass(frozen=True)
class PenaltyParameters:
    """Numbers of a penalty's own that Adam moves. Source: Kingma & Ba, arXiv:1412.6980, algorithm 1."""

    values: Tensor
    pull: Tensor
    """gradient of the loss by them, until the next step"""
    first: Tensor
    second: Tensor
    steps: Tensor

    def step(self, gradient: Tensor, rate: float) -> None:
        """One step along the gradient (that of the loss in `pull` included), which is then forgotten."""
        whole = self.pull + gradient
        self.steps.add_(1)
        self.first.lerp_(whole, 1 - BETAS[0])
        self.second.lerp_(whole.square(), 1 - BETAS[1])
        mean, spread = (
            moment / (1 - beta ** int(self.steps))
            for moment, beta in zip((self.first, self.second), BETAS, strict=True)
        )
        self.values.addcdiv_(mean, spread.sqrt().add_(EPSILON), value=-rate)
        self.pull.zero_()

    def state(self, name: str) -> dict[str, Tensor]:
        return {
            name: self.values,
            "pull": self.pull,
            "first": self.first,
            "second": self.second,
            "steps": self.steps,
        }

    def per(self, name: str) -> tuple[str, ...]:
        """Of the state what has a number for each value."""
        return name, "pull", "first", "second"


def make_penalty_parameters(values: Tensor) -> PenaltyParameters:
    zeros = torch.zeros_like(values)
    return PenaltyParameters(values, zeros, zeros.clone(), zeros.clone(), torch.zeros((), dtype=torch.int64))


def make_generator(name: str, step: int) -> torch.Generator:
    """The same on every process and after a resume; another for each tensor and step."""
    return torch.Generator().manual_seed((zlib.crc32(name.encode()) << 31) + step)
