"""ECG5000 (UCR archive): 5,000 heartbeats of 140 samples, 5 classes, and two networks for them.

The recipes beside this file name its functions; run them from this folder. The data are the archive's own
ECG5000_TRAIN.tsv and ECG5000_TEST.tsv (label first) under $SPARSIFY_DATA/ucr, by default
~/.cache/sparsify/ucr:
https://www.timeseriesclassification.com/description.php?Dataset=ECG5000
"""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


def load() -> tuple[Pair, Pair]:
    """(train, test), each (x [N, 140], y [N]). The archive's two files are joined and split anew, 4,000 to
    1,000: its own
    split trains on 500 beats alone, of which 2 are of the rarest class."""
    root = Path(os.environ.get("SPARSIFY_DATA", "~/.cache/sparsify")).expanduser() / "ucr"
    rows = np.concatenate(
        [np.loadtxt(root / f"ECG5000_{part}.tsv", dtype=np.float32) for part in ("TRAIN", "TEST")]
    )
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    x, y = torch.from_numpy(rows[:, 1:].copy()), torch.from_numpy(rows[:, 0].astype(np.int64) - 1)
    return (x[:4000], y[:4000]), (x[4000:], y[4000:])


class Lstm(nn.Module):
    """Ten samples a step, an LSTM of two layers, a linear head on its last state."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.rnn = nn.LSTM(10, hidden, 2, batch_first=True)
        self.head = nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.view(-1, 14, 10))[0][:, -1])


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.per_head = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            p(y).view(*y.shape[:2], self.heads, self.per_head).transpose(1, 2)
            for p in (self.q, self.k, self.v)
        )
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Ten samples a token, two blocks of eight heads, mean over tokens."""

    def __init__(self, width: int = 64, heads: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(10, width)
        self.place = nn.Parameter(torch.randn(1, 14, width) * 0.02)
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x.view(-1, 14, 10)) + self.place)).mean(1))
