"""Batches mixed with themselves in another order, in training alone: mixup and cutmix."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparsify.data import Examples
from sparsify.data.columns import Column, Varied
from sparsify.data.targets import describe
from sparsify.objective.losses import Losses
from sparsify_schemas.stage import Train


@dataclass(frozen=True)
class Mix:
    """How a batch of N examples is mixed with itself."""

    share: float
    """what each example keeps of itself; the rest is its partner's"""
    partners: Tensor
    """[N]: with which example each is mixed"""
    box: tuple[slice, slice] | None = None
    """rows and columns of an image that are the partner's; None where whole examples are added up"""

    def mix_inputs(self, x: Tensor) -> Tensor:
        """m * x + (1 - m) * x[partners], or x with the box of x[partners]. [N, ...], always a new tensor."""
        partners = x[self.partners.to(x.device)]
        if self.box is None:
            return self.share * x + (1 - self.share) * partners
        mixed = x.clone()
        mixed[(..., *self.box)] = partners[(..., *self.box)]
        return mixed

    def find_others(self, targets: Tensor) -> Tensor:
        """The partners' targets: [N, ...]."""
        return targets[self.partners.to(targets.device)]

    def mix_values(self, own: Tensor, other: Tensor) -> Tensor:
        """m * own + (1 - m) * other: [N]."""
        return self.share * own + (1 - self.share) * other

    def mix_losses(self, own: Losses, other: Losses) -> Losses:
        """The losses of both targets, in the shares of the mixture."""
        return Losses(self.mix_values(own.sums, other.sums), own.weights)


def draw_mix(stage: Train, shape: tuple[int, ...], seed: int, step: int) -> Mix | None:
    """How a batch is mixed in a step; None where the stage mixes nothing.

        m ~ Beta(alpha, alpha)                                                mixup
        a box of sqrt(1 - m) of height and width, its centre uniform in the   cutmix
        image and its ends within; m <- 1 - the box's share of the image

    The same seed and step draw the same on every process, each for its part of the batch.

    shape: of the batch's inputs. Source: arXiv:1710.09412; arXiv:1905.04899, algorithm A1.
    """
    ways = list(stage.mixes)
    if not ways:
        return None
    chance = np.random.default_rng([seed, step])
    way = ways[int(chance.integers(len(ways)))]
    alpha = stage.mixes[way]
    share = float(chance.beta(alpha, alpha))
    partners = torch.from_numpy(chance.permutation(shape[0]))
    if way == "mixup":
        return Mix(share, partners)
    height, width = shape[-2:]
    side = math.sqrt(1 - share)
    rows = _place(int(chance.integers(height)), int(height * side), height)
    columns = _place(int(chance.integers(width)), int(width * side), width)
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mix(1 - area / (height * width), partners, (rows, columns))


def _place(centre: int, length: int, limit: int) -> slice:
    """The part of a length around a centre that lies within 0..limit."""
    start = centre - length // 2
    return slice(max(start, 0), min(start + length, limit))


def why_unmixable(stage: Train, examples: Examples) -> tuple[str, str] | None:
    """(key, what is wrong) where the stage cannot mix batches of these examples."""
    if not stage.mixes or not len(examples):
        return None
    # Those that are read only when a batch needs them show what they are in the first ones.
    inputs = (examples if examples.read is None else examples[:2].loaded()).inputs
    key = next(iter(stage.mixes))
    why = _why_no_numbers(inputs)
    if why is not None:
        return key, f"'{key}' {why}"
    if "cutmix" in stage.mixes and inputs.dim() != 4:
        return (
            "cutmix",
            "'cutmix' pastes boxes into images [channels, height, width], and an example is "
            f"{describe(inputs[0])}; write 'mixup' in its place",
        )
    return None


def _why_no_numbers(inputs: Column) -> str | None:
    """Why examples cannot be added up; None where they can."""
    if isinstance(inputs, Varied):
        return "mixes inputs of one shape, and these vary; give all of them one size, or leave it out"
    if isinstance(inputs, Mapping):
        return f"mixes one tensor of inputs, and these come by name ({', '.join(inputs)}); leave it out"
    if not isinstance(inputs, Tensor):
        return f"mixes one tensor of inputs, and these come in {len(inputs)} parts; leave it out"
    if inputs.is_floating_point() or inputs.dtype == torch.uint8:
        return None
    kind = str(inputs.dtype).removeprefix("torch.")
    return f"mixes real numbers, and the inputs are whole ones such as tokens ({kind}); leave it out"
