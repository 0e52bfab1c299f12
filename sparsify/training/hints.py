"""Layers whose outputs a train stage draws to those of its teacher: `distill` with `features`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from sparsify.data import Datasets, batches
from sparsify.errors import TrainingError
from sparsify.objective.distillation import add_feature_losses
from sparsify.objective.losses import Losses
from sparsify.objective.objective import Objective, in_mode, move, predict
from sparsify.training.features import FeaturePairs
from sparsify.training.layout import order_inputs
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.stage import Train

MEASURED = 256
"""training examples that the variance of a layer is taken over"""


@dataclass(frozen=True)
class Hints:
    """What the features of a stage add to its loss."""

    pairs: FeaturePairs
    variances: Mapping[str, float]
    """layer -> var(t), over all units that stayed and examples together"""
    weight: float

    def add_to(self, losses: Losses) -> Losses:
        """The losses of the batch that was recorded, with the term of the features."""
        found = self.pairs.named_pairs()
        self.pairs.forget()
        variances = [self.variances.get(name, 0.0) for name, _, _ in found]
        return add_feature_losses(losses, [(own, t) for _, own, t in found], self.weight, variances)


def measure_hints(
    model: nn.Module,
    teacher: nn.Module | None,
    cuts: Sequence[Cuts],
    stage: Train,
    datasets: Datasets,
    objective: Objective,
    seed: int,
) -> Hints | None:
    """What `distill.features` compares; None without.

    The variances are taken once, on training examples that the seed draws, so that a step does not depend on
    how its batch is divided among parts and processes, and a resumed stage goes on with the same ones.

    Raises TrainingError where shapes differ for another reason than the cuts.
    """
    if stage.distill is None or stage.distill.features is None or teacher is None:
        return None
    where = f"stage '{stage.name}': "
    try:
        pairs = FeaturePairs(model, teacher, stage.distill.features, cuts)
        variances = _measure_variances(pairs, model, teacher, stage, datasets, objective, seed)
    except TrainingError as error:
        raise TrainingError(f"{where}{error}") from error
    return Hints(pairs, variances, stage.distill.features_weight)


def _measure_variances(
    pairs: FeaturePairs,
    model: nn.Module,
    teacher: nn.Module,
    stage: Train,
    datasets: Datasets,
    objective: Objective,
    seed: int,
) -> dict[str, float]:
    """Layer -> E(t^2) - E(t)^2."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(datasets.train), generator=generator)[:MEASURED]
    device = next(teacher.parameters()).device
    sums: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), in_mode(model, training=False):
        for x, y in batches(datasets.train[order], max(1, stage.batch // stage.accumulate)):
            inputs, targets = order_inputs(move(x, device), stage.layout), move(y, device)
            with pairs.record():
                for each in (model, teacher):
                    predict(objective, each, inputs, targets)
            for name, _, taught in pairs.named_pairs():
                wide = taught.double()
                part = torch.stack([wide.new_tensor(wide.numel()), wide.sum(), wide.square().sum()])
                sums[name] = sums.get(name, torch.zeros_like(part)) + part
    pairs.forget()
    variances = {}
    for name, value in sums.items():
        count, total, square = broadcast(value).tolist()
        variances[name] = max(square / count - (total / count) ** 2, 0.0)
    return variances
