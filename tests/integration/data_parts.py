"""Small models for data that lie in files, as a user's own module has them."""

from typing import Any

import torch
from torch import Tensor, nn


def mlp(inputs: int = 4, outputs: int = 3) -> nn.Module:
    """Rows of numbers."""
    return nn.Sequential(nn.Linear(inputs, 24), nn.ReLU(), nn.Linear(24, outputs))


class Letters(nn.Module):
    """Tokens in one tensor -> logits of the next token at each, from the token and the one before it."""

    def __init__(self, tokens: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 16)
        self.up, self.head = nn.Linear(32, 32), nn.Linear(32, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        return self.head(torch.relu(self.up(torch.cat([x, before], dim=2))))


class Reader(nn.Module):
    """Tokens in one tensor, or by name with their mask -> logits of two classes."""

    def __init__(self, tokens: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 16)
        self.up, self.head = nn.Linear(16, 24), nn.Linear(24, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_others: Any) -> Tensor:
        mask = input_ids > 0 if attention_mask is None else attention_mask
        mask = mask[:, :, None].to(torch.float32)
        x = (self.embed(input_ids) * mask).sum(dim=1) / mask.sum(dim=1)
        return self.head(torch.relu(self.up(x)))


def conv_net(channels: int = 1, classes: int = 2) -> nn.Module:
    """Images of any size to classes."""
    return nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, classes),
    )


def mask_net(channels: int = 1, classes: int = 2) -> nn.Module:
    """Images of any size to a class in each pixel."""
    return nn.Sequential(
        nn.Conv2d(channels, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, classes, 3, padding=1)
    )
