"""Variational dropout: as much noise on every single weight as the loss bears; what is all noise goes."""

import torch
from torch import Tensor

from sparsify.graph.group_index import Layout, broadcast
from sparsify.training.penalties.step_action import Action, Tensors
from sparsify.training.penalties.stochastic_weights import (
    make_generator,
    make_penalty_parameters,
    make_trained_weights,
)
from sparsify_schemas.penalty import VariationalDropout

K1, K2, K3 = 0.63576, 1.87320, 1.48695
NOISE = 3.0
"""log alpha above which a weight is noise: a dropout rate of 95 %"""
START = -10.0
"""log sigma^2 at first"""
LEAST = 1e-16
"""added to w^2, so that its logarithm is finite"""


def make_action(spec: VariationalDropout, layout: Layout, parameters: Tensors) -> Action:
    """The model computes with w + sigma * eps, the optimizer moves w, Adam log sigma^2.
    Every weight is a slot of the layout.

    Source: Molchanov et al., arXiv:1701.05369, equations 11 and 14.
    """
    names = tuple(part.name for part in layout.parts)
    weights_of = make_trained_weights(names, parameters)
    own = make_penalty_parameters(torch.full((layout.count + 1,), START, device=weights_of.flat.device))
    noise = torch.zeros_like(own.values)

    def here(values: Tensor, weights: Tensors) -> dict[str, Tensor]:
        return {
            part.name: broadcast(values, part.axes[0], weights[part.name].shape).to(weights[part.name].dtype)
            for part in layout.parts
        }

    def restore(weights: Tensors, gradients: Tensors, factor: float) -> None:
        if not bool(weights_of.away):
            return
        weights_of.give_back(weights)
        by_weight = layout.reduce(gradients.get)
        own.pull.add_(by_weight.to(noise) * noise * (own.values / 2).exp() / (2 * factor))

    def pull(weights: Tensors, gradients: Tensors, strength: float) -> None:
        for name, spread in here(own.values, weights).items():
            if name in gradients:
                square = weights[name].square() + LEAST
                gradients[name].sub_(
                    compute_slope(spread - square.log()) * 2 * weights[name] / square, alpha=strength
                )

    def learn(weights: Tensors, strength: float) -> None:
        squares = layout.reduce(lambda name: weights[name].square()) + LEAST
        own.step(strength * compute_slope(own.values - squares.log().to(own.values)), spec.rate)

    def show(weights: Tensors, noisy: bool) -> None:
        weights_of.keep(weights)
        if noisy:
            noise.copy_(torch.randn(len(noise), generator=make_generator(names[0], int(own.steps))))
            for name, added in here(noise * (own.values / 2).exp(), weights).items():
                weights[name].add_(added)
        else:
            noise.zero_()
            for name, spread in here(own.values, weights).items():
                weights[name].masked_fill_(spread - (weights[name].square() + LEAST).log() > NOISE, 0.0)

    state = {"dense": weights_of.flat, "away": weights_of.away, "noise": noise, **own.state("spread")}
    return Action(
        gradient=pull,
        after=learn,
        restore=restore,
        show=show,
        state=state,
        per={"dense": "weight", **dict.fromkeys(("noise", *own.per("spread")), "group")},
    )


def compute_divergence(log_alpha: Tensor) -> Tensor:
    """KL of one weight, up to a constant: 1/2 log(1 + 1/alpha) - k1 sigmoid(k2 + k3 log alpha)."""
    return 0.5 * torch.nn.functional.softplus(-log_alpha) - K1 * torch.sigmoid(K2 + K3 * log_alpha)


def compute_slope(log_alpha: Tensor) -> Tensor:
    """Its derivative by log alpha."""
    s = torch.sigmoid(K2 + K3 * log_alpha)
    return -0.5 * torch.sigmoid(-log_alpha) - K1 * K3 * s * (1 - s)
