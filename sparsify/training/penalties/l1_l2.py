"""l1, l2, and small ones to zero: every weight by itself."""

from collections.abc import Mapping

import torch

from sparsify.training.penalties.step_action import Tensors


def l1_proximal(names: tuple[str, ...], weights: Tensors, amounts: Mapping[str, float]) -> None:
    """w <- sign(w) * max(0, |w| - amount), amount = lr * strength."""
    for name in names:
        weights[name].copy_(torch.nn.functional.softshrink(weights[name], amounts[name]))


def l1_gradient(names: tuple[str, ...], weights: Tensors, gradients: Tensors, strength: float) -> None:
    """gradient += strength * sign(w)"""
    for name in names:
        if name in gradients:
            gradients[name].add_(weights[name].sign(), alpha=strength)


def l2_proximal(names: tuple[str, ...], weights: Tensors, amounts: Mapping[str, float]) -> None:
    """w <- w / (1 + amount), amount = lr * strength."""
    for name in names:
        weights[name].div_(1.0 + amounts[name])


def l2_gradient(names: tuple[str, ...], weights: Tensors, gradients: Tensors, strength: float) -> None:
    """gradient += strength * w"""
    for name in names:
        if name in gradients:
            gradients[name].add_(weights[name], alpha=strength)


def zero_below(names: tuple[str, ...], least: float, weights: Tensors, _strength: float) -> None:
    """w <- 0 where |w| < least."""
    for name in names:
        weights[name].masked_fill_(weights[name].abs() < least, 0.0)
